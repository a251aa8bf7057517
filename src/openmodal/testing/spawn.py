"""`Sandbox.spawn`: a command with live streams."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from functools import cache

import pytest

from openmodal.errors import ExecError, ExecTimeoutError, InvalidError, StdinClosedError
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox
from openmodal.testing.exec import DAEMONS
from openmodal.testing.faces import Face, plain
from openmodal.testing.fixtures import eventually, running


class TestSpawn:
    def test_spawn_returns_at_once_with_live_streams(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo ready; read x; echo got $x; echo err >&2; exit 5")
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        assert process.returncode is None
        process.stdin.write("hello\n")
        process.stdin.drain()
        assert process.stdout.readline() == "got hello\n"
        assert process.wait() == 5
        assert process.poll() == 5
        assert [process.returncode] == [5]
        assert (process.stdout.read(), process.stderr.read()) == ("", "err\n")

    def test_lines_come_while_the_command_runs(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "while read x; do echo $x; done")
        process.stdin.write("0\n")
        process.stdin.drain()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) < 5:
                process.stdin.write(f"{len(lines)}\n")
                process.stdin.drain()
            else:
                process.stdin.close()
        assert lines == ["0\n", "1\n", "2\n", "3\n", "4\n"]
        assert process.wait() == 0

    def test_bytes_come_with_text_false(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("printf", r"\377\n\376", text=False)
        assert list(process.stdout) == [b"\xff\n", b"\xfe"]

    def test_keywords_are_those_of_exec(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn(
            "sh",
            "-c",
            "pwd; echo $NAME; id -u; echo err >&2",
            workdir="/tmp",
            env={"NAME": "value"},
            user="0",
            stderr=StreamType.STDOUT,
            timeout=60,
            bufsize=-1,
        )
        assert process.stdout.read() == "/tmp\nvalue\n0\nerr\n"

    def test_a_missing_executable_is_127(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("no-such-command")
        assert process.wait() == 127
        assert "no-such-command" in process.stderr.read()

    def test_kill_reaches_the_command_and_all_its_descendants(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", f"{DAEMONS} trap '' TERM; while :; do sleep 54321; done")
        eventually(lambda: len(running(sandbox, "sleep 54321")) >= 3)
        process.kill()
        assert process.wait() == 137
        assert running(sandbox, "54321") == []
        assert not process.timed_out

    def test_kill_after_the_end_does_nothing(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("true")
        assert process.wait() == 0
        process.kill()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0

    def test_kill_of_a_command_that_ended_unseen_does_nothing(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "exit 3")
        eventually(lambda: not running(sandbox, "exit 3"))
        process.kill()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 3

    def test_a_signal_reaches_the_command(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.02; done")
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "caught\n"
        assert process.wait() == 9

    def test_a_signal_reaches_only_the_commands_own_process(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "sleep 54321 & echo ready; read x")
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert running(sandbox, "sleep 54321")

    @pytest.mark.parametrize("number", [0, -1, 65, 1000])
    def test_a_signal_that_does_not_exist_is_the_callers_mistake(self, sandbox: Sandbox, number: int) -> None:
        process = sandbox.spawn("cat")
        with pytest.raises(InvalidError):
            process.send_signal(number)
        process.kill()

    def test_timeout_is_raised_by_wait(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo out; sleep 54321", timeout=0.4)
        with pytest.raises(ExecTimeoutError) as caught:
            process.wait()
        assert caught.value.process is plain(process)
        assert process.timed_out
        assert (process.returncode, process.poll()) == (137, 137)
        assert process.stdout.read() == "out\n"
        assert running(sandbox, "54321") == []

    def test_timeout_is_seen_by_poll(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sleep", "54321", timeout=0.2)
        eventually(lambda: process.poll() is not None)
        assert process.timed_out
        assert process.returncode == 137

    def test_timeout_ends_reading(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo out; sleep 54321", timeout=0.4)
        assert process.stdout.read() == "out\n"

    def test_a_background_child_delays_neither_wait_nor_read(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "sleep 54321 & echo hi")
        assert process.stdout.read() == "hi\n"
        assert process.wait() == 0

    def test_two_wait_for_one_command(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("sh", "-c", "read x; exit 4")
        waiting = [face.start(process.wait) for _ in range(2)]
        process.stdin.write("go\n")
        process.stdin.drain()
        assert [call.result(30) for call in waiting] == [4, 4]

    def test_hundred_commands_live_at_once(self, sandbox: Sandbox) -> None:
        processes = [sandbox.spawn("cat") for _ in range(100)]
        for n, process in enumerate(processes):
            process.stdin.write(f"{n}\n")
            process.stdin.close()
        for n, process in enumerate(processes):
            assert process.stdout.read() == f"{n}\n"
            assert process.wait() == 0

    def test_a_process_nobody_asks_about_any_more_leaves_the_sandbox_usable(self, sandbox: Sandbox) -> None:
        for _ in range(20):
            sandbox.spawn("sleep", "0.01")
        assert sandbox.exec("echo", "x").stdout.read() == "x\n"

    def test_repr_tells_command_and_state(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("cat")
        assert "cat" in repr(process)
        assert "running" in repr(process)
        process.stdin.close()
        process.wait()
        assert "returncode 0" in repr(process)


class TestStdin:
    def test_writing_to_a_finished_command_is_a_clear_error(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("true")
        process.wait()
        with pytest.raises(StdinClosedError, match=r"exited|closed") as caught:
            _write(process.stdin, "x")
        assert isinstance(caught.value, BrokenPipeError)

    def test_writing_to_a_command_that_closed_its_stdin_is_a_clear_error(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "exec <&-; echo closed; sleep 54321")
        assert process.stdout.readline() == "closed\n"
        with pytest.raises(StdinClosedError):
            _write(process.stdin, b"x" * 100_000)
        process.kill()

    @pytest.mark.parametrize("how", ["write_eof", "close"])
    def test_writing_after_the_end_is_a_clear_error(self, sandbox: Sandbox, how: str) -> None:
        process = sandbox.spawn("cat")
        getattr(process.stdin, how)()
        with pytest.raises(StdinClosedError):
            process.stdin.write("x")
        process.stdin.close()
        assert process.wait() == 0

    def test_write_eof_and_drain_end_the_input(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("cat")
        process.stdin.write("a")
        process.stdin.write(b"b")
        process.stdin.write_eof()
        process.stdin.drain()
        assert process.stdout.read() == "ab"

    def test_close_sends_what_was_written_and_may_be_repeated(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("cat")
        process.stdin.write("text")
        process.stdin.close()
        process.stdin.close()
        assert process.stdout.read() == "text"
        assert process.wait() == 0
        process.stdin.close()

    def test_wait_sends_what_was_written_and_not_drained(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "read x; [ $x = word ]")
        process.stdin.write("word\n")
        assert process.wait() == 0

    def test_input_larger_than_the_pipe_is_taken_whole(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sha256sum")
        data = random.Random(4).randbytes(10_000_000)
        for start in range(0, len(data), 3_000_000):
            process.stdin.write(data[start : start + 3_000_000])
            process.stdin.drain()
        process.stdin.close()
        assert process.stdout.read().split()[0] == hashlib.sha256(data).hexdigest()

    def test_reading_and_writing_at_once_do_not_lock_each_other(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("cat", text=False)
        data = random.Random(5).randbytes(30_000_000)
        reading = face.start(process.stdout.read)
        process.stdin.write(data)
        process.stdin.close()
        assert reading.result(60) == data


def _write(stdin: object, data: str | bytes) -> None:
    """Write and drain: which of the two tells of a closed pipe depends on when the news arrives."""
    stdin.write(data)  # type: ignore[attr-defined]
    stdin.drain()  # type: ignore[attr-defined]


@cache
def numbers() -> str:
    """What `seq 1 3000000` prints."""
    return "\n".join(map(str, range(1, 3_000_001))) + "\n"


class TestFlow:
    def test_who_waits_first_and_reads_then_gets_all_of_both_streams(self, sandbox: Sandbox) -> None:
        """Of 30 MB 8 came, and nothing told."""
        process = sandbox.spawn("sh", "-c", "seq 1 3000000; seq 1 3000000 >&2; exit 2")
        assert process.wait() == 2, "nobody reads, and it ends all the same"
        assert process.stderr.read() == numbers()
        assert process.stdout.read() == numbers()
        assert process.stdout.dropped == 0

    def test_live_output_beyond_the_buffer_waits_for_a_late_reader(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "seq 1 3000000; touch /tmp/done; read go; seq 1 3000000; exit 3")
        eventually(lambda: sandbox.filesystem.exists("/tmp/done"))
        assert process.stdout.readline() == "1\n"
        process.stdin.write("go\n")
        process.stdin.drain()
        assert process.stdout.read() == numbers()[2:] + numbers()
        assert process.wait() == 3

    def test_unread_output_leaves_no_file(self, sandbox: Sandbox) -> None:
        sandbox.spawn("seq", "1", "3000000").wait()
        assert not [info.name for info in sandbox.filesystem.list_files("/") if info.name.startswith(".openmodal-")]

    def test_what_fits_is_not_dropped_without_a_reader(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("seq", "1", "1000000")
        process.wait()
        assert process.stdout.read() == numbers()[: numbers().index("\n1000001\n") + 1]
        assert process.stdout.dropped == 0

    def test_with_a_reader_nothing_is_lost_and_the_command_waits(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "read go; seq 1 3000000; touch /tmp/done")
        process.stdin.write("go\n")
        process.stdin.drain()
        text = process.stdout.readline()
        before = sandbox.exec("sh", "-c", "sleep 1; ls /tmp").stdout.read()
        assert before == "", "22 MB cannot have been written with 8 MiB of buffer"
        text += process.stdout.read()
        assert text == numbers()
        assert process.stdout.dropped == 0
        assert process.wait() == 0
        assert sandbox.exec("ls", "/tmp").stdout.read() == "done\n"

    def test_a_stream_that_nobody_reads_does_not_block_the_one_that_is_read(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "read go; seq 1 3000000 >&2; seq 1 3000000")
        process.stdin.write("go\n")
        process.stdin.drain()
        assert process.stdout.read() == numbers()
        assert process.wait() == 0

    def test_who_gives_up_reading_and_reads_again_loses_nothing(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("sh", "-c", "printf 'first half, '; read go; echo second half")
        if face.name == "async":
            reading = face.start(process.stdout.readline)
            time.sleep(0.1)
            reading.cancel()
            eventually(lambda: not plain(process.stdout)._reading)
        process.stdin.write("go\n")
        process.stdin.drain()
        assert process.stdout.readline() == "first half, second half\n"

    def test_a_second_reader_of_a_stream_is_told_so(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("cat")
        first = face.start(process.stdout.read)
        eventually(lambda: plain(process.stdout)._reading)
        with pytest.raises(ExecError, match="another"):
            process.stdout.read()
        with pytest.raises(ExecError, match="another"):
            process.stdout.readline()
        process.stdin.write("x")
        process.stdin.close()
        assert first.result(30) == "x"

    def test_the_two_streams_can_be_read_at_once(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("sh", "-c", "seq 1 1000000 & seq 1 1000000 >&2; wait")
        both = [face.start(process.stdout.read), face.start(process.stderr.read)]
        assert [len(call.result(60)) for call in both] == [6_888_896, 6_888_896]

    def test_reading_is_not_disturbed_by_waiting(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("sh", "-c", "echo ready; read go; seq 1 3000000")
        assert process.stdout.readline() == "ready\n", "from now on it has a reader, for whom nothing is dropped"
        waiting = face.start(process.wait)
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stdout.read() == numbers()
        assert waiting.result(30) == 0


class TestTerminal:
    def test_a_terminal_can_be_resized(self, sandbox: Sandbox) -> None:
        script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.02; done"
        process = sandbox.spawn("sh", "-c", script, pty=True)
        assert process.stdout.readline().strip() == "24 80"
        process.resize(40, 120)
        assert process.stdout.readline().strip() == "40 120"
        assert process.wait() == 0

    @pytest.mark.parametrize("size", [(0, 80), (24, 0), (-1, 80), (24, 65536)])
    def test_a_size_that_cannot_be_is_the_callers_mistake(self, sandbox: Sandbox, size: tuple[int, int]) -> None:
        process = sandbox.spawn("cat", pty=True)
        with pytest.raises(InvalidError):
            process.resize(*size)
        process.kill()

    def test_what_is_typed_reaches_the_command_and_is_echoed(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "read x; echo got $x", pty=True)
        process.stdin.write("hello\n")
        process.stdin.drain()
        assert process.stdout.read().replace("\r", "") == "hello\ngot hello\n"

    def test_control_c_interrupts_the_foreground_process(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo ready; sleep 54321", pty=True)
        process.stdout.readline()
        process.stdin.write("\x03")
        process.stdin.drain()
        assert process.wait() == 128 + signal.SIGINT

    def test_the_end_of_the_input_ends_a_reader_of_the_terminal(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("cat", pty=True)
        process.stdin.write("line\n")
        process.stdin.close()
        assert process.stdout.read().replace("\r", "") == "line\nline\n"
        assert process.wait() == 0

    def test_a_session_in_a_terminal_ends_with_its_shell(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-i", pty=True)
        process.stdin.write("echo $((6*7))\nexit 3\n")
        process.stdin.drain()
        assert "42" in process.stdout.read()
        assert process.wait() == 3


__all__ = ["TestFlow", "TestSpawn", "TestStdin", "TestTerminal"]
