"""How a build looks to a person: a live view in a terminal, a few lines elsewhere.

stderr is one for the whole process, however many of its sandboxes wait for images: so one build
draws or waits aloud at a time (`_TURN`). A clock ticks while something is being made, because a
silent minute looks like a program that hangs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, TextIO, cast

from openmodal import _config
from openmodal._spec import Progress
from openmodal.build.activity import Activity

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

_SHOWN = 4  # lines of a step's output
_WIDTH = 100
_BAR = 32
_TICK = 0.5
_SILENT = 10.0  # seconds after which a step that prints nothing is told of again
_PATIENCE = 2.0  # seconds that somebody waits in silence for an image that another one makes
_WAITING = "another build is making this image; waiting for it"

_TURN = threading.Lock()


def terminal_report(file: TextIO | None = None) -> Lines:
    """A report for people, on stderr: stdout belongs to the program. Close it, or use a `with`
    block.

    It is decoration: whatever stderr is, and does, the build goes on.
    """
    stream, wanted = Quiet(sys.stderr if file is None else file), _config.progress()
    if wanted == "quiet":
        return Silent(stream)
    draws = stream.isatty() and os.environ.get("TERM") != "dumb"
    return View(stream) if wanted == "live" or (wanted == "auto" and draws) else Lines(stream)


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
    """One line when a step begins to be made, one when it took long, and in between one each time
    nothing was said for a while. Cached steps are silent."""

    def __init__(self, file: Quiet) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._clock: _Clock | None = None
        self._turn = False
        self._begun: tuple[Progress, float] | None = None
        self._waits = False  # for another build of it
        self._rest = ""
        self._activity = Activity()
        self._remarks: list[str] = []  # until it is known that the step is not cached
        self._shown: Progress | None = None
        self._said = 0.0

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._clock = self._clock or _Clock(self._ticks)
            match progress.event:
                case "start":
                    self._begun, self._waits = (progress, time.monotonic()), False
                    self._rest, self._activity, self._said = "", Activity(), time.monotonic()
                    self._start()
                case "output":
                    self._waits = False
                    *lines, self._rest = (self._rest + progress.text).replace("\r", "\n").split("\n")
                    self._hear([line for line in lines if line.strip() and not self._activity.hear(line.rstrip())])
                case "waiting":
                    self._begun, self._waits, self._said = (progress, time.monotonic()), True, 0.0
                    self._start()
                    self._give_turn()  # to the build that this one waits for
                case "remark":
                    self._remarks.append(progress.text)
                case _:
                    self._end(progress)
                    self._begun = None
                    self._remarks.clear()

    # --------------------------------------------------------------------------- what is made of it

    def _start(self) -> None:
        """Nothing: it is not known yet whether the step is cached."""

    def _hear(self, lines: list[str]) -> None:
        self._announce()

    def _end(self, progress: Progress) -> None:
        if progress.event == "done":
            self._announce()
            if self._seconds >= 1:
                self._print(f"image: {_counted(progress)} done in {self._seconds:.1f} s")

    def _ticks(self) -> None:
        with self._lock:
            # Who makes the image speaks before those in this process who only wait for it.
            if self._begun is not None and not (self._waits and self._seconds < _PATIENCE) and self._may_speak():
                self._tick(self._begun[0])

    def _tick(self, step: Progress) -> None:
        if time.monotonic() - self._said < _SILENT:
            return
        if self._waits:
            self._print(f"image: {_WAITING}, {self._seconds:.0f} s")
        else:
            self._announce()
            self._print(f"image: {_counted(step)} {self._seconds:.0f} s{self._state(': ')}")

    def _announce(self) -> None:
        """Only now is it known that the step is not cached."""
        if self._begun is not None and self._shown is not self._begun[0]:
            self._shown = self._begun[0]
            while self._remarks:
                self._print(f"image: {self._remarks.pop(0)}")
            self._print(f"image: {_counted(self._shown)} {_short(self._shown.text)}")

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        self._file.write(text + "\n")
        self._file.flush()

    # -------------------------------------------------------------------------------------- helpers

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begun[1] if self._begun else 0.0

    def _state(self, before: str) -> str:
        """What the step does, and how much of it is done; "" if neither is known."""
        part = f"{self._activity.part:.0%}" if self._activity.part is not None else ""
        text = ", ".join(filter(None, (part, _printable(self._activity.doing))))
        return before + text if text else ""

    def _may_speak(self) -> bool:
        """Whether no other build of this process draws, or waits aloud."""
        self._turn = self._turn or _TURN.acquire(blocking=False)
        return self._turn

    def _give_turn(self) -> None:
        if self._turn:
            self._turn = False
            _TURN.release()

    def close(self) -> None:
        """The build is over, however it ended."""
        if self._clock:
            self._clock.stop()
        self._give_turn()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Silent(Lines):
    """Tells nothing."""

    def __call__(self, progress: Progress) -> None:
        """Keep it to oneself."""


class View(Lines):
    """The current step, a bar and its last lines, below finished steps."""

    def __init__(self, file: Quiet) -> None:
        from rich.console import Console

        super().__init__(file)
        self._console: Console = Console(file=cast("IO[str]", file), highlight=False, force_terminal=True)
        self._live: Live | None = None
        self._lines: list[str] = []
        self._drawn = 0.0

    def _start(self) -> None:
        self._wipe()
        self._lines = []

    def _hear(self, lines: list[str]) -> None:
        self._lines = [*self._lines, *lines][-_SHOWN:]
        if time.monotonic() - self._drawn > 0.1:
            self._draw()

    def _remark(self) -> None:
        from rich.text import Text

        while self._remarks:
            self._console.print(Text(_printable(self._remarks.pop(0)), style="yellow"))

    def _tick(self, step: Progress) -> None:
        self._lines = [_WAITING] if self._waits else self._lines
        self._draw()

    def _end(self, progress: Progress) -> None:
        from rich.text import Text

        self._wipe()
        if not self._may_speak():
            return
        if progress.event == "done":
            self._remark()
        end = "cached" if progress.event == "cached" else f"{self._seconds:.1f} s"
        line = Text(f"{_counted(progress)} {_short(progress.text)}  ", no_wrap=True, overflow="ellipsis")
        self._console.print(line.append(end, style="green" if progress.event == "cached" else "dim"))

    def _draw(self) -> None:
        from rich.live import Live

        if not self._may_speak():
            return
        self._drawn = time.monotonic()
        if not self._waits:
            self._remark()
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
            progress = self._begun[0]
            title = f"{_counted(progress)} {_short(progress.text)}" if progress.steps else "image"
            picture.append(title, style="bold").append(f"  {self._seconds:.0f} s", style="dim")
        if state := self._state("  "):
            picture.append("\n  ")
            self._draw_bar(picture)
            picture.append(state.lstrip(), style="cyan")
        for line in self._lines:
            picture.append(f"\n  {_printable(line)}", style="dim")
        return picture

    def _draw_bar(self, picture: Text) -> None:
        if self._activity.part is None:
            return
        full, empty = ("━", "─") if "utf" in self._file.encoding.lower() else ("#", "-")
        done = round(_BAR * self._activity.part)
        picture.append(full * done, style="green").append(f"{empty * (_BAR - done)} ", style="dim")

    def close(self) -> None:
        if self._clock:
            self._clock.stop()
        self._wipe()
        super().close()

    def _wipe(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


class _Clock:
    """Calls something twice a second, until it is stopped."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="openmodal-progress")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_TICK):
            self._tick()

    def stop(self) -> None:
        """Return when it calls nothing any more. Idempotent."""
        self._over.set()
        self._thread.join()


def _counted(progress: Progress) -> str:
    return f"[{progress.step}/{progress.steps}]"


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _printable(line: str) -> str:
    """Without what a terminal would obey: a build's output is the image's, not ours."""
    return "".join(c if c.isprintable() else " " for c in line)
