"""Progress is quiet in a pipe and alive in a terminal, and never silent for long."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pty
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from openmodal import InvalidError
from openmodal._spec import Progress
from openmodal.build import progress
from openmodal.build.activity import Activity
from openmodal.build.progress import Lines, Silent, View, terminal_report
from openmodal.testing.fixtures import eventually

COLOUR = re.compile(r"\x1b\[(?!\?25|\d*[AGJK]|[12]K)[\d;]*m")


def news(report, *, event="done"):
    report(Progress("start", 1, 2, "FROM scratch"))
    report(Progress("cached", 1, 2, "FROM scratch"))
    report(Progress("start", 2, 2, "RUN make"))
    report(Progress("output", 2, 2, "compiling \x1b[31mred\nmore"))
    report(Progress(event, 2, 2, "RUN make"))


def shown_in_a_terminal(draw: Callable[[Lines], None]) -> str:
    """What a terminal gets."""
    main, side = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the end of a terminal
            while data := os.read(main, 65536):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(side, "w") as file, terminal_report(file) as report:
        draw(report)
    reader.join()
    os.close(main)
    return b"".join(shown).decode()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock ticks at once, and a moment is a long silence."""
    for name, value in {"_TICK": 0.01, "_SILENT": 0.02, "_PATIENCE": 0.05}.items():
        monkeypatch.setattr(progress, name, value)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "OPENMODAL_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not progress._TURN.locked(), "a build that ended still has its turn to draw"


def test_lines_in_a_pipe_name_only_what_is_really_made():
    file = io.StringIO()
    with terminal_report(file) as report:
        news(report)
    assert file.getvalue() == "image: [2/2] RUN make\n"


def test_a_terminal_sees_steps_and_output_and_gets_its_cursor_back():
    def draw(report: Lines) -> None:
        news(report)
        report(Progress("start", 2, 2, "RUN again"))
        report(Progress("output", 2, 2, "x\n"))

    text = shown_in_a_terminal(draw)
    assert "[1/2] FROM scratch" in text
    assert "cached" in text
    assert "compiling" in text
    assert "\x1b[31mred" not in text
    assert text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l")


def test_a_terminal_sees_a_bar_and_no_color_takes_its_colours(monkeypatch: pytest.MonkeyPatch):
    def draw(report: Lines) -> None:
        report(Progress("start", 1, 1, "RUN apt-get install git"))
        report(
            Progress("output", 1, 1, "0 upgraded, 2 newly installed, 0 to remove.\nNeed to get 10.0 MB of archives.\n")
        )
        time.sleep(0.11)  # it draws ten times a second
        report(Progress("output", 1, 1, "Get:1 http://deb.debian.org/debian trixie/main amd64 git amd64 1 [5000 kB]\n"))

    assert COLOUR.search(shown_in_a_terminal(news))
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown_in_a_terminal(draw)
    assert "17%, downloading packages, 5.0 of 10.0 MB" in text
    assert "━" in text
    assert not re.search(r"\x1b\[[\d;]*3\d[\d;]*m", text), "a colour"


def test_a_remark_is_told_by_the_build_that_makes_the_image():
    def draw(report: Lines, *, event: str) -> None:
        report(Progress("start", 1, 1, "FROM python"))
        report(Progress("remark", 1, 1, "no registry, so Debian's packages are used"))
        report(Progress("start", 1, 1, "FROM packages"))
        report(Progress("waiting", 1, 1, "") if event == "cached" else Progress("output", 1, 1, "x\n"))
        report(Progress(event, 1, 1, "FROM packages"))  # type: ignore[arg-type]

    for event, told in {"done": 1, "cached": 0}.items():
        file = io.StringIO()
        with terminal_report(file) as report:
            draw(report, event=event)
        assert file.getvalue().count("image: no registry, so Debian's packages are used\n") == told
        assert shown_in_a_terminal(functools.partial(draw, event=event)).count("packages are used") == told


@pytest.mark.parametrize(
    ("said", "terminal", "kind"),
    [
        ("", True, View),
        ("", False, Lines),
        ("plain", True, Lines),
        ("live", False, View),
        ("quiet", True, Silent),
    ],
)
def test_how_it_is_shown_can_be_said(said: str, terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENMODAL_PROGRESS", said)
    file = io.StringIO()
    file.isatty = lambda: terminal  # type: ignore[method-assign]
    with terminal_report(file) as report:
        assert type(report) is kind
        news(report)
    assert (file.getvalue() == "") == (said == "quiet")
    monkeypatch.setenv("OPENMODAL_PROGRESS", "loud")
    with pytest.raises(InvalidError, match="use auto, live, plain or quiet"):
        terminal_report(file)


def test_a_terminal_that_can_do_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown_in_a_terminal(news)


@pytest.mark.usefixtures("hasty")
def test_a_silent_step_is_told_of_again_and_again():
    file = io.StringIO()
    with terminal_report(file) as report:
        report(Progress("start", 2, 3, "RUN sleep 60"))
        eventually(lambda: file.getvalue().count("image: [2/3] 0 s") > 1)
        report(Progress("output", 2, 3, "Setting up git (1:2) ...\n"))
        eventually(lambda: "image: [2/3] 0 s: setting up git\n" in file.getvalue())
    assert file.getvalue().startswith("image: [2/3] RUN sleep 60\n")


@pytest.mark.usefixtures("hasty")
def test_of_many_that_wait_one_says_so():
    """Eight agents said eight times that they waited."""
    files = [io.StringIO() for _ in range(8)]
    with contextlib.ExitStack() as stack:
        reports = [stack.enter_context(terminal_report(file)) for file in files]
        for report in reports:
            report(Progress("start", 1, 1, "FROM python"))
            report(Progress("waiting", 1, 1, ""))
        eventually(lambda: any(file.getvalue() for file in files))
        eventually(lambda: max(file.getvalue().count("waiting") for file in files) > 2)
        assert len([file for file in files if file.getvalue()]) == 1


@pytest.mark.usefixtures("hasty")
def test_those_that_wait_for_a_build_of_this_process_say_nothing():
    made, waits = io.StringIO(), io.StringIO()
    with terminal_report(made) as builder, terminal_report(waits) as waiter:
        builder(Progress("start", 1, 1, "FROM python"))
        builder(Progress("output", 1, 1, "layer 1\n"))
        eventually(lambda: made.getvalue().count("image:") > 2)
        waiter(Progress("start", 1, 1, "FROM python"))
        waiter(Progress("waiting", 1, 1, ""))
        before = made.getvalue().count("image:")
        eventually(lambda: made.getvalue().count("image:") > before + 10)
        waiter(Progress("cached", 1, 1, "FROM python"))
    assert waits.getvalue() == ""


@pytest.mark.parametrize(
    ("lines", "doing", "part"),
    [
        (
            ["Get:1 http://deb.debian.org/debian trixie InRelease [138 kB]"],
            "downloading lists of packages, 0.1 MB",
            None,
        ),
        (
            [
                "Get:1 http://deb.debian.org/debian trixie InRelease [9,138 kB]",
                "0 upgraded, 2 newly installed, 0 to remove and 3 not upgraded.",
                "Need to get 1,000 kB/9,876 kB of archives.",
                "Get:1 http://deb.debian.org/debian trixie/main amd64 less amd64 668-1 [1000 kB]",
            ],
            "downloading packages, 1.0 of 1.0 MB",
            1 / 3,
        ),
        (
            [
                "1 upgraded, 1 newly installed, 0 to remove and 3 not upgraded.",
                "Need to get 0 B/9,876 kB of archives.",
                "Unpacking less (668-1) ...",
                "Unpacking libc6:amd64 (2.41) over (2.40) ...",
                "Setting up less (668-1) ...",
            ],
            "setting up less, 1 of 2",
            3 / 4,
        ),
        (["Processing triggers for libc-bin (2.41-12) ..."], "finishing libc-bin", None),
        (
            ["Collecting requests", "  Downloading six-1.17.0-py2.whl (11 kB)"],
            "downloading six-1.17.0-py2.whl, 0.0 MB",
            None,
        ),
        (["Collecting requests", "Collecting urllib3<3 (from requests)"], "collecting urllib3<3, 2 so far", None),
        (["Installing collected packages: urllib3, requests"], "installing 2 Python packages", None),
        (["  Building wheel for lxml (pyproject.toml): started"], "building lxml", None),
        (["Downloading torch (783.0MiB)"], "downloading torch, 783.0 MB", None),
        (["downloaded 12.5 MB of 50.0 MB"], "downloading 12.5 of 50.0 MB", 0.25),
        (["gcc -c main.c", "Setting up a game"], "", None),
    ],
)
def test_what_package_managers_print_is_understood(lines: list[str], doing: str, part: float | None):
    activity = Activity()
    for line in lines:
        activity.hear(line)
    assert activity.doing == doing
    assert activity.part == (None if part is None else pytest.approx(part))
