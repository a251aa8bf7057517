"""How a build looks to a person: a live view in a terminal, one quiet line per step elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import IO, TYPE_CHECKING, TextIO, cast

from openmodal._spec import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_SHOWN = 4  # lines of a step's output
_WIDTH = 100


def terminal_report(file: TextIO | None = None) -> Lines:
    """A report for people, on stderr: stdout belongs to the program. Close it, or use a `with`
    block.

    It is decoration: whatever stderr is, and does, the build goes on.
    """
    stream = Quiet(sys.stderr if file is None else file)
    return View(stream) if stream.isatty() else Lines(stream)


class Quiet(io.TextIOBase):
    """A stream that drops what stderr does not take: it is closed, full, or no file."""

    # What a stream that is none raises, beside OSError and (closed, wrong characters) ValueError.
    _REFUSALS = (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError)

    def __init__(self, file: TextIO | None) -> None:
        self._below = file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's, for what is drawn in a terminal."""
        found = getattr(self._below, "encoding", None)
        return found if isinstance(found, str) else "utf-8"

    def isatty(self) -> bool:
        """Whether somebody looks at it now."""
        try:
            return self._below is not None and bool(self._below.isatty())
        except self._REFUSALS:
            return False

    def write(self, text: str) -> int:
        """Write what the stream takes, at once."""
        if self._below is not None:
            with contextlib.suppress(*self._REFUSALS):
                self._write(self._below, text.encode(self.encoding, "backslashreplace"))
        return len(text)

    def _write(self, below: TextIO, data: bytes) -> None:
        below.flush()
        # Past the buffer of a file: a full disk would leave text there that makes Python's exit
        # fail.
        if type(below) is io.TextIOWrapper and type(below.buffer) is io.BufferedWriter:
            below.buffer.raw.write(data)
        else:
            below.write(data.decode(self.encoding))
            below.flush()


class Lines:
    """One line when a step begins to be made, one when it took long. Cached steps are silent."""

    def __init__(self, file: Quiet) -> None:
        self._file = file
        self._begun: tuple[Progress, float] | None = None
        self._shown: Progress | None = None
        self._waits = False

    def __call__(self, progress: Progress) -> None:
        match progress.event:
            case "start":
                self._begun = (progress, time.monotonic())
            case "output":
                self._announce()
            case "waiting":  # of many that want the image, one tells its steps
                if not self._waits:
                    self._waits = True
                    self._print("image: waiting for another build of it")
            case _:
                if progress.event == "done":
                    self._announce()
                    self._finish(progress)
                self._begun = None

    def _announce(self) -> None:
        """Only now is it known that the step is not cached."""
        if self._begun is None or self._shown is self._begun[0]:
            return
        self._shown = self._begun[0]
        self._print(f"image: {_counted(self._shown)} {_short(self._shown.text)}")

    def _finish(self, progress: Progress) -> None:
        seconds = time.monotonic() - self._begun[1] if self._begun else 0.0
        if seconds >= 1:
            self._print(f"image: {_counted(progress)} done in {seconds:.1f} s")

    def _print(self, text: str) -> None:
        self._file.write(text + "\n")
        self._file.flush()

    def close(self) -> None:
        """The build is over, however it ended."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class View(Lines):
    """The current step and its last lines, below finished ones. Only the caller's thread draws."""

    def __init__(self, file: Quiet) -> None:
        from rich.console import Console

        super().__init__(file)
        self._console: Console = Console(file=cast("IO[str]", file), highlight=False)
        self._live: Live | None = None
        self._lines: list[str] = []
        self._rest = ""
        self._drawn = 0.0

    def __call__(self, progress: Progress) -> None:
        match progress.event:
            case "start":
                self._begin(progress)
            case "output" | "waiting":
                self._add(progress.text)
            case _:
                self._end(progress)

    def _begin(self, progress: Progress) -> None:
        self.close()
        self._begun = (progress, time.monotonic())
        self._lines, self._rest = [], ""

    def _add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        self._lines = [*self._lines, *(line for line in lines if line.strip())][-_SHOWN:]
        if time.monotonic() - self._drawn > 0.1:
            self._draw()

    def _draw(self) -> None:
        from rich.live import Live

        self._drawn = time.monotonic()
        if self._live is None:
            # It would redirect sys.stdout, too, and what another thread prints to a file meanwhile.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            # A build that is killed must not leave a terminal without a cursor.
            self._console.show_cursor(True)
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        from rich.text import Text

        picture = Text(no_wrap=True, overflow="ellipsis")
        if self._begun is not None:
            progress, since = self._begun
            picture.append(f"{_counted(progress)} {_short(progress.text)}", style="bold")
            picture.append(f"  {time.monotonic() - since:.0f} s", style="dim")
        for line in self._lines:
            picture.append(f"\n  {_printable(line)}", style="dim")
        return picture

    def _end(self, progress: Progress) -> None:
        from rich.text import Text

        self.close()
        seconds = time.monotonic() - self._begun[1] if self._begun else 0.0
        end = "cached" if progress.event == "cached" else f"{seconds:.1f} s"
        line = Text(f"{_counted(progress)} {_short(progress.text)}  ", no_wrap=True, overflow="ellipsis")
        self._console.print(line.append(end, style="green" if progress.event == "cached" else "dim"))

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _counted(progress: Progress) -> str:
    return f"[{progress.step}/{progress.steps}]"


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _printable(line: str) -> str:
    """Without what a terminal would obey: a build's output is the image's, not ours."""
    return "".join(c if c.isprintable() else " " for c in line)
