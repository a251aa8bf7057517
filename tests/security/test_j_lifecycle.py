"""J. Surviving, lying about the end, and being somebody else."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded
from openmodal.errors import Error, ExecTimeoutError, SandboxNotRunningError, StdinClosedError
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.security import attack
from tests.security.attack import sh

Create = Callable[..., Sandbox]
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def test_no_daemon_survives(engine: Embedded, create: Create) -> None:
    """J1: in a session of its own, forked twice, deaf to signals."""
    sandbox = create()
    sh(sandbox, "(setsid sh -c \"trap '' TERM HUP INT; sleep 54321 & sleep 54321 &\" >/dev/null 2>&1 &)")
    eventually(lambda: sh(sandbox, "ps").count("sleep 54321") >= 2)
    inside = attack.members(engine, sandbox)
    assert len(inside) >= 3, "the control"
    sandbox.terminate()
    assert not any(attack.status(pid).get("NSpid", "").endswith("\t2") for pid in inside)
    assert not [pid for pid in inside if len(attack.status(pid).get("NSpid", "").split()) > 1]


def test_what_ignores_signals_is_killed(create: Create) -> None:
    """J2: at its timeout."""
    sandbox = create()
    with pytest.raises(ExecTimeoutError) as caught:
        sandbox.exec("sh", "-c", "trap '' TERM INT HUP QUIT; echo up; while :; do :; done", timeout=1)
    assert caught.value.process.stdout.read() == "up\n"
    assert caught.value.process.returncode == 137


def test_a_child_that_holds_the_output_holds_up_nobody(create: Create) -> None:
    """J5: the command is over when its process is."""
    begin = time.monotonic()
    assert create().exec("sh", "-c", "sleep 54321 & echo hi").stdout.read() == "hi\n"
    assert time.monotonic() - begin < 20


def test_process_1_cannot_be_killed_from_within(create: Create) -> None:
    """J7: by no signal."""
    sandbox = create()
    sh(sandbox, "for s in 1 2 3 6 9 11 15 19 20; do kill -$s 1; done")
    assert sh(sandbox, "echo alive") == "alive\n"


def test_the_end_of_the_main_command_is_the_end(create: Create) -> None:
    """J8: commands under way are told."""
    sandbox = create("sh", "-c", "until test -e /tmp/go; do sleep 0.05; done; exit 3")
    waiting = sandbox.spawn("sleep", "54321")
    sandbox.filesystem.write_text("/tmp/go", "")
    with pytest.raises(SandboxNotRunningError, match="exited with 3"):
        waiting.wait()
    assert sandbox.wait() == 3


FORGERIES = (
    "reason=exited\\nreturncode=0\\n",
    "exited 0",
    "ready 1\\n",
    "\\x13\\0\\0\\0\\x22\\x07\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0",
    '{\\"returncode\\":0}',
    "\\x1f\\x1b]0;x\\x07",
)


def test_no_output_is_taken_for_a_status(create: Create) -> None:
    """J10: not on stdout or stderr, nor on any other descriptor."""
    sandbox = create()
    script = "for t in " + " ".join(f"'{text}'" for text in FORGERIES) + '; do printf "$t"; printf "$t" >&2; '
    script += 'for n in 3 4 5 6 7 8 9; do eval "printf x >&$n" 2>/dev/null && echo open; done; done; '
    script += "head -c 1000000 /dev/urandom; exit 7"
    process = sandbox.exec("sh", "-c", script, text=False)
    assert process.returncode == 7
    assert b"open" not in process.stdout.read()[:2000]
    assert sh(sandbox, "echo alive") == "alive\n"


def test_stdin_ends_and_breaks_as_a_pipe_does(create: Create) -> None:
    """J13: empty, large, never read, written to after the end."""
    sandbox = create()
    assert sandbox.exec("wc", "-c", stdin=b"").stdout.read().strip() == "0"
    assert sandbox.exec("wc", "-c", stdin=bytes(30_000_000)).stdout.read().strip() == "30000000"
    assert sandbox.exec("true", stdin=bytes(10_000_000)).returncode == 0
    process = sandbox.spawn("true")
    process.wait()
    process.stdin.write("x" * 1000)
    with pytest.raises(StdinClosedError):
        process.stdin.drain()


def test_ends_can_be_told_apart(create: Create) -> None:
    """J14: an exit with 137, a signal, too much memory, a timeout."""
    sandbox = create(memory=64)
    codes = {
        code: sandbox.exec("sh", "-c", f"exit {code}").returncode for code in (0, 1, 2, 77, 124, 126, 127, 137, 255)
    }
    assert all(code == found for code, found in codes.items())
    for number in (1, 6, 9, 11, 15, 31):
        assert sandbox.exec("sh", "-c", f"kill -{number} $$").returncode == 128 + number
    plain = sandbox.exec("sh", "-c", "exit 137")
    hungry = sandbox.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=500M", "count=1")
    with pytest.raises(ExecTimeoutError) as caught:
        sandbox.exec("sleep", "54321", timeout=0.5)
    slow = caught.value.process
    found = [(process.returncode, process.out_of_memory, process.timed_out) for process in (plain, hungry, slow)]
    assert found == [(137, False, False), (137, True, False), (137, False, True)]


def test_sandboxes_of_one_image_draw_different_random_numbers(create: Create) -> None:
    """J16: nothing of a sandbox's state is copied."""
    script = "head -c 16 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid"
    assert len({sh(create(), script) for _ in range(4)}) == 4


@pytest.mark.skipif(not LAST_PID.exists(), reason="this kernel is without CONFIG_CHECKPOINT_RESTORE")
def test_a_number_that_is_used_again_is_not_killed(engine: Embedded, create: Create) -> None:
    """J17: commands are known by ids that are never used again."""
    sandbox = create()
    before = len(attack.members(engine, sandbox))
    finished = sandbox.spawn("true")
    finished.wait()
    eventually(lambda: len(attack.members(engine, sandbox)) == before)  # its monitor is gone, too
    rewind(attack.members(engine, sandbox)[0], finished.pid - 2)  # a command's monitor gets a number first
    stranger = sandbox.spawn("sleep", "54321")
    assert stranger.pid == finished.pid, "the control: the number was used again"
    with contextlib.suppress(Error):
        finished.kill()
    assert stranger.poll() is None
    sandbox.exec("kill", "-9", str(finished.pid))
    assert stranger.wait() == 137, "the control: it could be killed"


def rewind(init: int, number: int) -> None:
    """Make a process namespace go on counting behind a number. Only this machine's root may."""
    script = f"echo {number} > {LAST_PID}"
    subprocess.run(["nsenter", f"--pid=/proc/{init}/ns/pid", "sh", "-c", script], check=True)
