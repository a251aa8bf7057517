"""How much of a command's output is given, what is left out, and how the reader is told: `max_output`, `keep`, gaps, long lines."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from openmodal._spec import OutputGap
from openmodal.errors import ExecTimeoutError, LineTooLongError, OutputLostWarning
from openmodal.sandbox import Sandbox

DEFAULT = 64 << 20
TAIL = 8 << 20
ALL = "".join(f"{number}\n" for number in range(1, 20_001))

KEEPS: dict[str, tuple[dict[str, Any], int, int]] = {
    "head": ({"max_output": 1000, "keep": "head"}, 1000, 0),
    "tail": ({"max_output": 1000, "keep": "tail"}, 0, 1000),
    "both": ({"max_output": 1000, "keep": "both"}, 500, 500),
    "unsaid": ({"max_output": 1001}, 501, 500),
    "nothing": ({"max_output": 0}, 0, 0),
}


class TestOutputLimits:
    @pytest.mark.parametrize("how", KEEPS)
    @pytest.mark.parametrize("function", ["exec", "spawn"])
    def test_so_many_bytes_are_given_and_the_gap_is_told(self, sandbox: Sandbox, function: str, how: str) -> None:
        options, head, tail = KEEPS[how]
        process = getattr(sandbox, function)("sh", "-c", "seq 1 20000 | tee /dev/stderr; exit 3", **options)
        assert process.wait() == 3, "what is left out does not make the command wait"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # who asks for so much and no more is not warned
            text = process.stdout.read()
        lost = len(ALL) - head - tail
        assert text == ALL[:head] + ALL[head + lost :]
        assert process.stdout.gaps == (OutputGap(at=head, size=lost),)
        assert process.stdout.dropped == lost
        assert process.stderr.read() == text

    def test_what_is_below_the_limit_is_whole(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("seq", "1", "20000", max_output=len(ALL))
        assert process.stdout.read() == ALL
        assert process.stdout.gaps == ()

    def test_a_line_ends_at_a_gap(self, sandbox: Sandbox) -> None:
        """What the two halves of different lines make together was never written."""
        process = sandbox.exec("sh", "-c", "echo 12345; echo 23456; echo 34567", max_output=8)
        assert list(process.stdout) == ["1234", "567\n"]

    def test_letters_are_not_made_of_the_bytes_around_a_gap(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("printf", "éé", max_output=2, keep="both")
        assert process.stdout.read() == "\ufffd\ufffd"

    def test_the_first_bytes_of_a_running_command_come_at_once_and_the_newest_at_its_end(
        self, sandbox: Sandbox
    ) -> None:
        process = sandbox.spawn("sh", "-c", "seq 1 20000; echo written >&2; read go; echo end", max_output=1000)
        assert process.stdout.read_some() == ALL[:500]
        assert process.stderr.readline() == "written\n"
        process.stdin.write("go\n")
        process.stdin.drain()
        assert process.stdout.read() == (ALL + "end\n")[-500:]

    def test_a_command_that_never_stops_writing_leaves_little_here(self, sandbox: Sandbox) -> None:
        with pytest.raises(ExecTimeoutError) as caught:
            sandbox.exec("yes", timeout=1, max_output=1 << 20, text=False)
        stdout = caught.value.process.stdout
        assert stdout.read() == b"y\n" * (1 << 19)
        assert stdout.dropped > 0

    def test_exec_gives_64_megabytes_if_nothing_is_said_and_warns_of_the_rest(self, sandbox: Sandbox) -> None:
        """Without a limit `exec("yes")` filled this machine's folder for temporary files."""
        process = sandbox.exec("head", "-c", "70000000", "/dev/zero", text=False)
        with pytest.warns(OutputLostWarning, match=r"2891136 bytes of output are missing here.*max_output="):
            assert len(process.stdout.read()) == DEFAULT
        assert process.stdout.gaps == (OutputGap(at=DEFAULT - TAIL, size=70_000_000 - DEFAULT),)

    def test_nobody_reads_and_the_gap_is_told(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo first; head -c 76000000 /dev/zero; echo last; exit 2")
        assert process.wait() == 2
        with pytest.warns(OutputLostWarning, match=r"\d+ bytes of output are missing here.*max_output="):
            text = process.stdout.read()
        (gap,) = process.stdout.gaps
        assert gap.at == 64 << 20
        assert text.startswith("first\n")
        assert text.endswith("last\n")
        assert TAIL // 2 < len(text) - gap.at <= TAIL
        assert gap.size + len(text) == 76_000_011

    def test_a_warning_that_is_an_exception_loses_nothing_more(self, sandbox: Sandbox) -> None:
        process = sandbox.exec("head", "-c", "70000000", "/dev/zero", text=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(OutputLostWarning):
                process.stdout.read()
        assert len(process.stdout.read()) == DEFAULT

    def test_as_much_as_was_asked_for_waits_for_a_late_reader(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("head", "-c", "76000000", "/dev/zero", max_output=100_000_000, keep="head", text=False)
        assert process.wait() == 0
        assert len(process.stdout.read()) == 76_000_000
        assert process.stdout.dropped == 0

    @pytest.mark.parametrize("function", ["exec", "spawn"])
    def test_a_line_that_is_too_long_is_an_error_and_stays(self, sandbox: Sandbox, function: str) -> None:
        process = getattr(sandbox, function)("sh", "-c", "head -c 300000 /dev/zero | tr '\\0' A; echo; echo next")
        with pytest.raises(LineTooLongError, match="100000") as caught:
            process.stdout.readline(100_000)
        assert caught.value.limit == 100_000
        with pytest.raises(LineTooLongError):
            process.stdout.readline(300_000)
        assert process.stdout.readline(300_001) == "A" * 300_000 + "\n"
        assert process.stdout.read() == "next\n"


__all__ = ["TestOutputLimits"]
