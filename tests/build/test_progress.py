"""Progress is quiet in a pipe and alive in a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty

from openmodal._spec import Progress
from openmodal.build.progress import terminal_report


def news(report, *, event="done"):
    report(Progress("start", 1, 2, "FROM scratch"))
    report(Progress("cached", 1, 2, "FROM scratch"))
    report(Progress("start", 2, 2, "RUN make"))
    report(Progress("output", 2, 2, "compiling \x1b[31mred\nmore"))
    report(Progress(event, 2, 2, "RUN make"))


def test_lines_in_a_pipe_name_only_what_is_really_made():
    file = io.StringIO()
    with terminal_report(file) as report:
        news(report)
    assert file.getvalue() == "image: [2/2] RUN make\n"


def test_a_terminal_sees_steps_and_output_and_gets_its_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    main, side = pty.openpty()
    with os.fdopen(side, "w") as file, terminal_report(file) as report:
        news(report)
        report(Progress("start", 2, 2, "RUN again"))
        report(Progress("output", 2, 2, "x\n"))
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end of a terminal
        while data := os.read(main, 65536):
            shown += data
    os.close(main)
    text = shown.decode()
    assert "[1/2] FROM scratch" in text
    assert "cached" in text
    assert "compiling" in text
    assert "\x1b[31mred" not in text
    assert text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l")
