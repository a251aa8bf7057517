"""`Sandbox.shell`: commands that build on each other."""

from __future__ import annotations

import re

import pytest

from openmodal.errors import ExecError, InvalidError, SandboxTerminatedError, ShellTimeoutError
from openmodal.sandbox import Sandbox
from openmodal.shell import Shell, ShellResult
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, eventually, running

PATIENCE = 300.0


class TestShell:
    @pytest.fixture
    def shell(self, sandbox: Sandbox) -> Shell:
        return sandbox.shell()

    def test_folder_variables_functions_and_jobs_stay(self, shell: Shell) -> None:
        first = shell.run(
            "cd /tmp; X='a b'; export Y=1; f() { echo f $1; }; sleep 12345 & echo out; echo err >&2; false"
        )
        assert (first.output, first.returncode, first.cwd) == ("out\nerr\n", 1, "/tmp")
        assert shell.run('echo "$X" $Y; f 3; pwd; kill %1').output == "a b 1\nf 3\n/tmp\n"
        assert first.omitted == 0

    def test_it_takes_any_text(self, shell: Shell) -> None:
        """Control characters do nothing to the terminal; a quote of one command ends with it."""
        text = "".join(map(chr, range(1, 256))).replace("'", "") + "é\n\\0101%s"
        assert shell.run(f"cd /tmp; printf %s '{text}' | od -An -v -tx1").output.split() == [
            f"{byte:02x}" for byte in text.encode()
        ]
        assert shell.run("cat <<end\n$((6 * 7)) `echo '\"'`\nend\n").output == '42 "\n'
        assert shell.run("x=" + "y" * 30_000 + "; echo ${#x}").output == "30000\n"
        assert shell.run("").returncode == 0

    def test_wrong_syntax_is_a_failed_command(self, shell: Shell) -> None:
        for wrong in ("if", "echo )", "'"):
            result = shell.run(wrong)
            assert result.returncode, result
            assert result.output
        assert shell.run("echo well").output == "well\n"

    def test_the_end_of_an_answer_cannot_be_forged_or_moved(self, shell: Shell) -> None:
        """Nothing that a program can know shows the mark, and no setting of the shell moves it."""
        shown = shell.run("set -xv; echo one; printf '\\036%s:0:/\\036' 0123456789abcdef; set; set +xv").output
        assert "0123456789abcdef:0:/\x1e" in shown
        assert shell.run("PS1='> '; PS2='>> '; exec >/dev/null; echo lost; exec >/dev/tty").returncode == 0
        assert shell.run("echo two").output.replace("> ", "") == "two\n"
        assert not re.search(r"([0-9a-f]{8}) ([0-9a-f]{8})", shown), "the mark's own line is not traced"

    def test_a_command_reads_nothing_unless_it_is_talked_with(self, shell: Shell) -> None:
        assert shell.run("cat; read x; echo read $?").output == "read 1\n"
        asked = shell.run("printf 'name? '; read n; echo hello $n; printf 'again? '; read n; exit_code=$n", expect="? ")
        assert asked == ShellResult("name? ", None, asked.cwd)
        assert shell.run("bob", expect=re.compile("AGAIN. ", re.IGNORECASE)).output == "hello bob\nagain? "
        assert shell.run("eve").returncode == 0
        assert shell.run("echo $exit_code").output == "eve\n"
        with pytest.raises(ShellTimeoutError) as caught:
            shell.run("cat", expect="never", timeout=0.3)
        assert caught.value.result
        assert shell.run("echo on").output.endswith("on\n")

    # Busybox's shell leaves a loop of built-ins at once, also while glibc's clearerr() holds a lock
    # for it; then the shell waits for that lock for ever.
    @pytest.mark.parametrize(
        "busy",
        [
            "sleep 54321; echo not",
            "while case x in *) ;; esac do case x in *) ;; esac; done",
            "while :; do sh -c 'trap \"\" INT; sleep 54321'; done",
        ],
        ids=["program", "shell", "deaf"],
    )
    def test_after_a_timeout_it_is_as_before(self, sandbox: Sandbox, shell: Shell, busy: str) -> None:
        shell.run("cd /tmp; X=5; sleep 12345 &")
        with pytest.raises(ShellTimeoutError, match="timeout") as caught:
            shell.run(f"echo begun; {busy}", timeout=0.5)
        assert caught.value.result
        assert "begun\n" in caught.value.result.output
        assert isinstance(caught.value, TimeoutError)
        result = shell.run("echo $X")
        assert (result.output.splitlines()[-1], result.cwd) == ("5", "/tmp")
        eventually(lambda: not running(sandbox, "sleep 54321"))
        assert running(sandbox, "sleep 12345"), "only the foreground is ended"

    def test_a_loop_of_programs_is_ended_whenever_that_comes(self, shell: Shell) -> None:
        for tenth in range(10):
            with pytest.raises(ShellTimeoutError):
                shell.run("while :; do /bin/true; done", timeout=0.1 + tenth / 100)
            assert shell.run("echo on").output.endswith("on\n")

    def test_a_command_can_be_interrupted(self, sandbox: Sandbox, shell: Shell, face: Face) -> None:
        waiting = face.start(shell.run, "sleep 54321")
        eventually(lambda: running(sandbox, "sleep 54321"))
        with pytest.raises(ExecError, match="another command"):
            shell.run("true")
        shell.interrupt()
        assert waiting.result(PATIENCE).returncode == 130
        assert shell.run("echo on").output.endswith("on\n")

    def test_much_output_is_bounded(self, shell: Shell) -> None:
        result = shell.run("seq 1 20000; echo end", max_output=100)
        assert result.output.startswith("1\n2\n")
        assert result.output.endswith("20000\nend\n")
        assert f"[… {result.omitted} bytes left out …]" in result.output
        assert result.omitted == len("".join(f"{n}\n" for n in range(1, 20001)) + "end\n") - 100

    def test_one_that_ends_says_so(self, sandbox: Sandbox, shell: Shell) -> None:
        assert shell.returncode is None
        result = shell.run("echo last; exit 7")
        assert (result.output, result.returncode) == ("last\n", 7)
        assert shell.returncode == result.returncode
        with pytest.raises(ExecError, match=r"ended with 7.*sandbox\.shell\(\)"):
            shell.run("true")
        other = sandbox.shell()
        other.run("sleep 54321 &")
        other.close()
        other.close()
        eventually(lambda: not running(sandbox, "sleep 54321"))

    def test_it_is_of_the_user_and_folder_that_were_asked_for(self, sandbox: Sandbox) -> None:
        with sandbox.shell("sh", user="agent", workdir="/tmp", env={"A": "1"}) as shell:
            assert shell.run("id -un; pwd; echo $A").output == "agent\n/tmp\n1\n"

    def test_what_ignores_ctrl_c_is_ended_and_the_shell_stays(self, sandbox: Sandbox) -> None:
        with sandbox.shell("sh", user="agent") as shell:
            with pytest.raises(ShellTimeoutError):
                shell.run("sh -c 'trap \"\" INT; sleep 54321'", timeout=0.3)
            assert shell.run("id -u").output.endswith("1000\n")

    def test_what_is_wrong_is_told(self, sandbox: Sandbox, shell: Shell) -> None:
        with pytest.raises(InvalidError, match="expect"):
            shell.run("true", expect="")
        with pytest.raises(InvalidError, match="timeout"):
            shell.run("true", timeout=0)
        with pytest.raises(InvalidError, match="NUL"):
            shell.run("echo \0")
        with pytest.raises(ExecError, match="nosuch"):
            sandbox.shell("/bin/nosuch")
        assert shell.run("true").returncode == 0

    def test_it_ends_with_its_sandbox(self, create: Create, face: Face) -> None:
        sandbox = create()
        shell = sandbox.shell()
        waiting = face.start(shell.run, "sleep 54321", timeout=PATIENCE)
        eventually(lambda: running(sandbox, "sleep 54321"))
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            waiting.result(PATIENCE)
        shell.close()


__all__ = ["TestShell"]
