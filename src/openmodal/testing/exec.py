"""`Sandbox.exec`: a command runs to its end, and everything about it is there."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from openmodal._spec import OutputGap
from openmodal.engines import Engine
from openmodal.errors import CommandFailedError, ExecTimeoutError, InvalidError
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, Flaky, eventually, promise, running

GLIBC_PRIVATE = 0b11 << 31
"""Signals 32 and 33, which glibc's posix_spawn leaves ignored in every process that it starts."""


class TestExec:
    def test_exec_returns_the_finished_process(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo out; echo err >&2; exit 3")
        assert process.returncode == 3
        assert process.poll() == 3
        assert process.wait() == 3
        assert (process.stdout.read(), process.stderr.read()) == ("out\n", "err\n")
        assert not process.timed_out
        assert not process.out_of_memory

    def test_output_can_be_read_after_the_sandbox_is_gone(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo out; echo err >&2")
        sandbox.terminate()
        assert process.returncode == 0
        assert (process.stdout.read(), process.stderr.read()) == ("out\n", "err\n")

    def test_process_tells_its_arguments_pid_and_record(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo $$")
        assert process.args == ("sh", "-c", "echo $$")
        assert process.pid == int(process.stdout.read())
        record = process.record
        assert record
        assert record.started <= record.ended
        assert abs(record.ended - time.time()) < 3600
        assert record.memory > 0

    def test_arguments_reach_the_command_unchanged(self, sandbox: Sandbox) -> None:
        arguments = ["a b", "$HOME", "*", "", "new\nline", "'\"\\", "umläut 😀", "-n", "\udcff\udcfe"]
        process = sandbox.exec("printf", r"%s\0", *arguments, text=False)
        assert process.stdout.read().split(b"\0")[:-1] == [os.fsencode(argument) for argument in arguments]

    @pytest.mark.parametrize("code", [0, 1, 2, 7, 100, 124, 125, 126, 127, 128, 137, 143, 254, 255])
    def test_exit_code_is_the_kernels(self, sandbox: Sandbox, code: int) -> None:
        process = sandbox.exec("sh", "-c", f"exit {code}")
        assert process.returncode == code
        assert process.record
        assert not process.record.signaled

    @pytest.mark.parametrize("name", ["HUP", "INT", "KILL", "SEGV", "PIPE", "TERM", "USR1"])
    def test_death_by_a_signal_is_128_and_its_number(self, sandbox: Sandbox, name: str) -> None:
        process = sandbox.exec("sh", "-c", f"kill -{name} $$")
        number = int(signal.Signals[f"SIG{name}"])
        assert process.returncode == 128 + number
        assert process.record
        assert (process.record.signaled, process.record.code) == (True, number)

    @pytest.mark.parametrize("path", ["no-such-command", "/no/such/command", "./nothing"])
    def test_missing_executable_is_127_with_a_line_on_stderr(self, sandbox: Sandbox, path: str) -> None:
        process = sandbox.exec(path, "argument")
        assert process.returncode == 127
        assert process.stdout.read() == ""
        line = process.stderr.read()
        assert path in line
        assert line.count("\n") == 1
        assert line.endswith("\n")

    def test_a_line_that_means_a_shell_is_told_so(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("echo hi && ls")
        assert process.returncode == 127
        assert '"sh", "-c"' in process.stderr.read()

    def test_with_check_a_command_that_fails_raises_and_keeps_its_output(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("echo", "fine", check=True).stdout.read() == "fine\n"
        with pytest.raises(CommandFailedError, match=r"'sh' ended with 3: the reason$") as caught:
            sandbox.exec("sh", "-c", "echo out; echo one >&2; echo the reason >&2; exit 3", check=True)
        assert caught.value.process.returncode == 3
        assert caught.value.process.stdout.read() == "out\n"
        assert caught.value.process.stderr.read() == "one\nthe reason\n"

    @pytest.mark.parametrize("path", ["/etc/passwd", "/etc"])
    def test_what_cannot_be_executed_is_126_with_a_line_on_stderr(self, sandbox: Sandbox, path: str) -> None:
        process = sandbox.exec(path)
        assert process.returncode == 126
        line = process.stderr.read()
        assert path in line
        assert line.count("\n") == 1

    def test_a_script_without_its_interpreter_is_a_result(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "printf '#!/no/interpreter\\n' > /tmp/script; chmod +x /tmp/script")
        assert sandbox.exec("/tmp/script").returncode in (126, 127)

    def test_files_persist_between_execs(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "echo hello > /tmp/file")
        assert sandbox.exec("cat", "/tmp/file").stdout.read() == "hello\n"

    def test_commands_start_where_the_image_says(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("pwd").stdout.read() == "/srv\n"

    def test_workdir_of_the_command_beats_the_sandboxs_and_that_the_images(self, create: Create) -> None:
        sandbox = create(workdir="/home")
        assert sandbox.exec("pwd").stdout.read() == "/home\n"
        assert sandbox.exec("pwd", workdir="/tmp").stdout.read() == "/tmp\n"

    def test_a_workdir_that_is_not_there_is_the_callers_mistake(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidError, match="/no/such/folder cannot be entered: No such file"):
            sandbox.exec("pwd", workdir="/no/such/folder")
        assert sandbox.exec("pwd").returncode == 0

    def test_home_path_user_and_lang_are_sane(self, sandbox: Sandbox) -> None:
        lines = sandbox.exec("env").stdout.read().splitlines()
        variables = dict(line.split("=", 1) for line in lines)
        assert variables["HOME"] == "/root"
        assert variables["USER"] == "root"
        assert {"/usr/bin", "/bin"} <= set(variables["PATH"].split(":"))
        assert "UTF-8" in variables["LANG"]

    def test_env_beats_secrets_beats_the_sandboxs_beats_the_images(self, create: Create) -> None:
        sandbox = create(env={"IN_ALL": "sandbox", "FROM_SANDBOX": "sandbox"})
        script = "echo $FROM_IMAGE $FROM_SANDBOX $FROM_SECRET $FROM_ENV $IN_ALL"
        secret = Secret.from_dict({"FROM_SECRET": "secret", "IN_ALL": "secret"})

        def words(**options: object) -> list[str]:
            process = sandbox.exec("sh", "-c", script, **options)  # type: ignore[call-overload]
            text: str = process.stdout.read()
            return text.split()

        assert words() == ["image", "sandbox", "sandbox"]
        assert words(secrets=[secret]) == ["image", "sandbox", "secret", "secret"]
        assert words(secrets=[secret], env={"FROM_ENV": "env", "IN_ALL": "env"}) == [
            "image",
            "sandbox",
            "secret",
            "env",
            "env",
        ]

    def test_secrets_of_the_sandbox_reach_every_command_and_its_env_beats_them(self, create: Create) -> None:
        sandbox = create(secrets=[Secret.from_dict({"KEY": "value", "BOTH": "secret"})], env={"BOTH": "env"})
        assert sandbox.exec("sh", "-c", "echo $KEY $BOTH").stdout.read() == "value env\n"

    @promise("users")
    @pytest.mark.parametrize(
        ("user", "expected"),
        [
            ("agent", "1000 1000 /home/agent agent"),
            ("1000", "1000 1000 /home/agent agent"),
            ("agent:staff", "1000 50 /home/agent agent"),
            ("1000:50", "1000 50 /home/agent agent"),
            ("0", "0 0 /root root"),
        ],
    )
    def test_commands_run_as_the_user_asked_for(self, sandbox: Sandbox, user: str, expected: str) -> None:
        process = sandbox.exec("sh", "-c", "echo $(id -u) $(id -g) $HOME $USER", user=user)
        assert process.stdout.read().strip() == expected, process.stderr.read()

    @promise("users")
    def test_another_user_has_no_rights_of_root(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("sh", "-c", "echo x > /etc/new", user="agent").returncode != 0
        assert sandbox.exec("sh", "-c", "echo x > /etc/new", user="root").returncode == 0

    @pytest.mark.parametrize("user", ["nobody-there", "agent:no-such-group"])
    def test_a_user_that_is_not_there_is_the_callers_mistake(self, sandbox: Sandbox, user: str) -> None:
        with pytest.raises(InvalidError):
            sandbox.exec("true", user=user)
        assert sandbox.exec("true").returncode == 0

    def test_a_background_child_that_holds_stdout_does_not_delay_the_result(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "sleep 54321 & echo hi")
        assert process.returncode == 0
        assert process.stdout.read() == "hi\n"
        assert running(sandbox, "54321"), "it lives on"

    def test_many_commands_run_at_once(self, sandbox: Sandbox, face: Face) -> None:
        calls = [face.start(sandbox.exec, "sh", "-c", f"sleep 0.05; echo {n}; exit {n}") for n in range(40)]
        for n, call in enumerate(calls):
            process = call.result(60)
            assert (process.returncode, process.stdout.read()) == (n, f"{n}\n")

    def test_commands_do_not_see_each_others_ids_or_descriptors(self, sandbox: Sandbox) -> None:
        descriptors = sandbox.exec("ls", "/proc/self/fd").stdout.read().split()
        assert set(descriptors) <= {"0", "1", "2", "3"}, "3 is the folder that ls reads"

    @promise("proc")
    def test_signals_are_as_a_fresh_process_has_them(self, sandbox: Sandbox) -> None:
        status = sandbox.exec("cat", "/proc/self/status").stdout.read()
        masks = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
        assert int(masks["SigBlk"], 16) == 0
        assert int(masks["SigIgn"], 16) & ~GLIBC_PRIVATE == 0


class TestExecInput:
    def test_without_stdin_the_input_is_empty(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("cat").stdout.read() == ""

    def test_stdin_takes_text(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("cat", stdin="hellö\n").stdout.read() == "hellö\n"

    def test_stdin_takes_bytes(self, sandbox: Sandbox) -> None:
        data = bytes(range(256))
        assert sandbox.exec("cat", stdin=data, text=False).stdout.read() == data

    @pytest.mark.parametrize("stdin", ["", b""])
    def test_an_empty_stdin_is_an_empty_stdin(self, sandbox: Sandbox, stdin: str | bytes) -> None:
        assert sandbox.exec("wc", "-c", stdin=stdin).stdout.read().strip() == "0"

    def test_stdin_takes_a_binary_file(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(os.urandom(1_000_000))
        with (tmp_path / "file").open("rb") as file:
            process = sandbox.exec("sha256sum", stdin=file)
        assert process.stdout.read().split()[0] == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()

    def test_stdin_takes_a_text_file(self, sandbox: Sandbox) -> None:
        text = "äöü\n" * 200_000
        assert sandbox.exec("cat", stdin=io.StringIO(text)).stdout.read() == text

    def test_stdin_larger_than_the_pipe_comes_back_whole(self, sandbox: Sandbox) -> None:
        data = random.Random(1).randbytes(10_000_000)
        assert sandbox.exec("cat", stdin=data, text=False).stdout.read() == data

    def test_a_command_that_reads_no_input_does_not_hang(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("echo", "done", stdin=b"x" * 10_000_000)
        assert (process.returncode, process.stdout.read()) == (0, "done\n")

    def test_a_command_that_reads_a_part_of_its_input_does_not_hang(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("head", "-c", "5", stdin=b"0123456789" * 1_000_000)
        assert process.stdout.read() == "01234"

    def test_a_command_that_closes_its_input_and_goes_on_is_waited_for(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "exec <&-; sleep 0.2; echo done", stdin=b"x" * 10_000_000)
        assert process.stdout.read() == "done\n"

    def test_input_and_output_larger_than_the_pipes_do_not_lock_each_other(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "cat; cat /proc/self/status >&2", stdin=b"y" * 20_000_000, text=False)
        assert len(process.stdout.read()) == 20_000_000


class TestExecOutput:
    def test_text_is_decoded_across_the_borders_of_pieces(self, sandbox: Sandbox) -> None:
        text = "x" + "é€😀" * 300_000
        assert sandbox.exec("cat", stdin=text).stdout.read() == text

    def test_undecodable_bytes_become_the_replacement_character(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("printf", r"a\377b\303\50c\342\202")
        assert process.stdout.read() == "a\ufffdb\ufffd(c\ufffd"

    def test_bytes_come_unchanged_with_text_false(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "head -c 3000000 /dev/urandom | tee /tmp/data", text=False)
        assert process.stdout.read() == sandbox.filesystem.read_bytes("/tmp/data")

    def test_a_second_read_returns_nothing(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("echo", "once")
        assert process.stdout.read() == "once\n"
        assert process.stdout.read() == ""
        assert process.stdout.readline() == ""
        assert list(process.stdout) == []

    def test_a_second_read_of_bytes_returns_no_bytes(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("echo", "once", text=False)
        assert [process.stdout.read(), process.stdout.read()] == [b"once\n", b""]

    def test_iteration_gives_lines(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("printf", r"one\n\ntwo\nlast without newline")
        assert list(process.stdout) == ["one\n", "\n", "two\n", "last without newline"]

    def test_iteration_of_bytes_gives_lines_of_bytes(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("printf", r"one\n\377\n", text=False)
        assert list(process.stdout) == [b"one\n", b"\xff\n"]

    def test_readline_iteration_and_read_go_on_where_the_last_one_ended(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("seq", "1", "6")
        assert process.stdout.readline() == "1\n"
        for line in process.stdout:
            assert line == "2\n"
            break
        assert process.stdout.readline() == "3\n"
        assert process.stdout.read() == "4\n5\n6\n"

    def test_only_newlines_end_lines(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("printf", r"a\rb\fc\302\205d\n")
        assert list(process.stdout) == ["a\rb\fc\x85d\n"]

    def test_no_output_is_an_empty_text(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("true")
        assert (process.stdout.read(), process.stderr.read()) == ("", "")

    def test_stdout_can_go_nowhere(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo out; echo err >&2", stdout=StreamType.DEVNULL)
        assert (process.stdout.read(), process.stderr.read()) == ("", "err\n")

    def test_stderr_can_go_nowhere(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo out; echo err >&2", stderr=StreamType.DEVNULL)
        assert (process.stdout.read(), process.stderr.read()) == ("out\n", "")

    def test_stderr_can_go_where_stdout_goes_in_order(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2", stderr=StreamType.STDOUT)
        assert (process.stdout.read(), process.stderr.read()) == ("1\n2\n3\n4\n", "")

    def test_bufsize_is_accepted(self, sandbox: Sandbox) -> None:
        assert sandbox.exec("echo", "x", bufsize=1).stdout.read() == "x\n"

    def test_a_terminal_is_24_by_80_and_one_stream(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "tty; stty size; echo err >&2", pty=True)
        output = process.stdout.read()
        assert output.startswith("/dev/pts/"), output + process.stderr.read()
        assert output.splitlines()[1:] == ["24 80", "err"]
        assert process.stderr.read() == ""

    def test_what_looks_like_the_protocol_is_only_output(self, sandbox: Sandbox) -> None:
        forged = (
            b"\x0b\x00\x00\x00\x22\x07" + bytes(40) + b"\x06\x00\x00\x00\x2f" + b"\xff" * 64 + b"\x01\x00\x00\x00\x23"
        )
        script = "cat; cat /tmp/forged >&2; for fd in 3 4 5 6 7 8 9; do cat /tmp/forged 2>/dev/null >&$fd; done; exit 9"
        sandbox.filesystem.write_bytes("/tmp/forged", forged)
        process = sandbox.exec("sh", "-c", script, stdin=forged, text=False)
        assert process.returncode != 0
        assert process.stdout.read() == forged
        assert process.stderr.read().startswith(forged)

    def test_both_streams_full_at_once_lose_nothing(self, sandbox: Sandbox) -> None:
        script = "seq 1 1000000 & seq 1 1000000 >&2; wait"
        process = sandbox.exec("sh", "-c", script)
        whole = "".join(f"{n}\n" for n in range(1, 1_000_001))
        assert process.stdout.read() == whole
        assert process.stderr.read() == whole

    def test_200_megabytes_of_output_do_not_become_memory(self, sandbox: Sandbox) -> None:
        _check_spooling(sandbox, 200_000_000, LINES)

    @pytest.mark.slow
    def test_one_gigabyte_of_output_does_not_become_memory(self, sandbox: Sandbox) -> None:
        _check_spooling(sandbox, 1_000_000_000, LINES)

    def test_output_without_a_newline_is_whole(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' A")
        line = process.stdout.readline()
        assert len(line) == 50_000_000
        assert line.strip("A") == ""


LINES = "yes $(head -c 65535 /dev/zero | tr '\\0' A)"


def _check_spooling(sandbox: Sandbox, size: int, writer: str) -> None:
    with _memory_growth() as growth:
        process = sandbox.exec("sh", "-c", f"{writer} | head -c {size}", max_output=None)
        assert sum(len(line) for line in process.stdout) == size
    assert process.stdout.dropped == 0
    assert max(growth) <= 64 << 20


@contextmanager
def _memory_growth() -> Iterator[list[int]]:
    """Watch this process's resident memory during the block; the list gets how much it has grown, sample by sample."""
    before, samples, stop = _resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            samples.append(_resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        samples.append(_resident() - before)
        stop.set()
        watcher.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Children that left the command's session and were given to another parent, as daemons are.
DAEMONS = "setsid sh -c 'setsid sleep 54321 & setsid sleep 54321 &' & "


class TestExecTimeout:
    def test_timeout_is_a_builtin_timeout_error_with_the_process_and_its_output(
        self, sandbox: Sandbox, face: Face
    ) -> None:
        with pytest.raises(ExecTimeoutError) as caught:
            sandbox.exec("sh", "-c", "echo out; echo err >&2; sleep 54321", timeout=0.5)
        assert isinstance(caught.value, TimeoutError)
        process = face(caught.value.process)
        assert (process.stdout.read(), process.stderr.read()) == ("out\n", "err\n")
        assert process.timed_out
        assert process.returncode == 137
        assert process.poll() == 137
        with pytest.raises(ExecTimeoutError):
            process.wait()

    def test_without_a_timeout_daemons_of_a_command_live_on(self, sandbox: Sandbox) -> None:
        """The control of the next test: what it looks for can be seen."""
        sandbox.exec("sh", "-c", DAEMONS)
        eventually(lambda: len(running(sandbox, "sleep 54321")) >= 2)

    def test_timeout_kills_all_descendants_also_daemons(self, sandbox: Sandbox) -> None:
        script = f"{DAEMONS} while ! [ $(ps -o args | grep -c '^sleep 54321') = 2 ]; do :; done; echo up; sleep 54321"
        for timeout in (2, 8, 32):  # for a busy machine to come to the end of the loop
            with pytest.raises(ExecTimeoutError) as caught:
                sandbox.exec("sh", "-c", script, timeout=timeout)
            assert running(sandbox, "54321") == []
            if caught.value.process.stdout.read() == "up\n":
                return
        pytest.fail("the daemons did not come up")

    @pytest.mark.parametrize(
        "script",
        [
            "trap '' TERM INT HUP QUIT; while :; do :; done",
            "exec <&- >&- 2>&-; sleep 54321",
            "setsid sh -c 'exec <&- >&- 2>&-; trap \"\" TERM; sleep 54321' & exec <&- >&- 2>&-; sleep 54321",
            "kill -STOP $$; sleep 54321",
        ],
        ids=["ignores signals", "closes its descriptors", "all of it", "is stopped"],
    )
    def test_timeout_ends_a_command_that(self, sandbox: Sandbox, script: str) -> None:
        with pytest.raises(ExecTimeoutError):
            sandbox.exec("sh", "-c", script, timeout=0.3)
        assert running(sandbox, "54321") == []
        assert running(sandbox, "while") == []

    def test_timeout_that_does_not_expire_changes_nothing(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("sh", "-c", "echo x; exit 4", timeout=60)
        assert (process.returncode, process.timed_out) == (4, False)

    def test_timeout_spares_other_commands(self, sandbox: Sandbox) -> None:
        other = sandbox.spawn("sh", "-c", "read x; echo $x")
        with pytest.raises(ExecTimeoutError):
            sandbox.exec("sleep", "54321", timeout=0.2)
        other.stdin.write("still here\n")
        other.stdin.close()
        assert other.stdout.read() == "still here\n"
        assert other.wait() == 0

    def test_timeout_holds_while_output_flows(self, sandbox: Sandbox) -> None:
        with pytest.raises(ExecTimeoutError) as caught:
            sandbox.exec("yes", timeout=0.5)
        assert caught.value.process.stdout.dropped == 0


COUNTED = "echo started >> /tmp/starts; seq 1 200000; seq 1 50000 >&2; exit 6"
WHOLE = ("".join(f"{n}\n" for n in range(1, 200_001)), "".join(f"{n}\n" for n in range(1, 50_001)))


class TestLostLinks:
    """The link breaks under a command's feet: what comes is as if it had not, and nothing starts twice."""

    def again(
        self, face: Face, engine: Engine, sandbox: Sandbox, breaks: list[tuple[str, int]]
    ) -> tuple[Sandbox, Flaky]:
        flaky = Flaky(engine, breaks)
        return face(Sandbox(sandbox.id, cast("Engine", flaky))), flaky

    @pytest.mark.parametrize(
        "breaks",
        [
            [("connect", 0)],
            [("send", 1)],
            [("send", 2)],
            [("send", 1)] * 5,
            [("receive", 1)],
            [("receive", 20)],
            [("receive", 60)],
            [("receive", 100_000), ("receive", 1_000), ("send", 1), ("receive", 700_000)],
            [("receive", 90_000)] * 20,
        ],
        ids=str,
    )
    def test_reading_goes_on_at_the_right_byte_and_nothing_starts_twice(
        self, face: Face, engine: Engine, sandbox: Sandbox, breaks: list[tuple[str, int]]
    ) -> None:
        again, flaky = self.again(face, engine, sandbox, breaks)
        process = again.exec("sh", "-c", COUNTED)
        assert process.returncode == 6
        assert (process.stdout.read(), process.stderr.read()) == WHOLE
        assert process.stdout.dropped == 0
        assert flaky.breaks == [], "every link was cut"
        assert sandbox.exec("cat", "/tmp/starts").stdout.read() == "started\n"

    def test_stdin_goes_on_at_the_right_byte(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        data = random.Random(2).randbytes(3_000_000)
        breaks = [("send", 3), ("send", 1), ("receive", 200_000), ("send", 2), ("receive", 50)]
        again, flaky = self.again(face, engine, sandbox, breaks)
        assert again.exec("cat", stdin=data, text=False).stdout.read() == data
        assert flaky.breaks == []

    def test_live_streams_go_on_at_the_right_byte(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        again, flaky = self.again(
            face, engine, sandbox, [("send", 1), ("receive", 300), ("receive", 100_000), ("send", 1)]
        )
        process = again.spawn("sh", "-c", f"read go; {COUNTED}")
        process.stdin.write("go\n")
        process.stdin.drain()
        assert process.stdout.read() == WHOLE[0]
        assert process.stderr.read() == WHOLE[1]
        assert process.wait() == 6
        assert flaky.breaks == []
        assert sandbox.exec("cat", "/tmp/starts").stdout.read() == "started\n"

    def test_what_is_left_out_is_told_once(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        breaks = [("receive", 60), ("receive", 600), ("send", 1), ("receive", 90), ("receive", 1_000)]
        again, flaky = self.again(face, engine, sandbox, breaks)
        process = again.exec("sh", "-c", COUNTED, max_output=2_000)
        for reader, whole in zip((process.stdout, process.stderr), WHOLE, strict=True):
            assert reader.read() == whole[:1_000] + whole[-1_000:]
            assert reader.gaps == (OutputGap(at=1_000, size=len(whole) - 2_000),)
        assert flaky.breaks == []

    def test_idle_links_that_died_are_replaced(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        again, flaky = self.again(face, engine, sandbox, [("receive", 400)])
        for n in range(10):
            assert again.exec("echo", str(n)).stdout.read() == f"{n}\n"
        assert flaky.breaks == []

    def test_reading_files_survives(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        data = random.Random(3).randbytes(2_000_000)
        again, flaky = self.again(
            face, engine, sandbox, [("send", 1), ("send", 2), ("receive", 600_000), ("receive", 1)]
        )
        again.filesystem.write_bytes("/tmp/data", data)
        assert again.filesystem.read_bytes("/tmp/data") == data
        assert flaky.breaks == []
        names = sorted(info.name for info in sandbox.filesystem.list_files("/tmp"))
        assert names == ["data"], "no temporary file stays"

    def test_links_are_reused(self, face: Face, engine: Engine, sandbox: Sandbox) -> None:
        again, flaky = self.again(face, engine, sandbox, [])
        for _ in range(20):
            again.exec("true")
        assert flaky.links == 1


__all__ = ["DAEMONS", "TestExec", "TestExecInput", "TestExecOutput", "TestExecTimeout", "TestLostLinks"]
