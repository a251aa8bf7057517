"""The journal of a sandbox: one line of JSON for each call to it, from any process of this user.

It has what was asked for and what came of it: arguments, paths, times, how commands ended. It never
has variables, content of files, or output. A journal never fails a call: if a line cannot be
written, there is none. Budget: 0.1 ms a call, 1 MiB a sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

from openmodal import _config, _files
from openmodal._spec import ExitRecord
from openmodal.errors import Error

MOST = 512 << 10
"""Bytes of the file that is written, and of the one before it. Older lines are forgotten."""

MOST_TEXT = 4096
"""Bytes of the arguments of one call."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT

caller: ContextVar[str] = ContextVar("openmodal_caller", default="")
"""Who calls, if that is not the program itself, such as the user of a web page."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call to a sandbox, or what else happened to it.

    Attributes:
        at: when it began, in seconds of the Unix clock.
        call: what it was: "create", "exec", "spawn", "write", "reset", … "end".
        seconds: how long it took; None: it goes on, or nobody saw its end.
        error: the name of the exception that it raised.
        command: of a command, its `Process.id`.
        argv: of a command, its first 4 KiB; `cut`: there is more.
        record: how the command ended.
        path: of a file or folder.
        size: of what was read or written, in bytes.
        detail: more about it, such as the reason of an end.
        by: who called, if that was not a program that uses the API.
    """

    at: float
    call: str
    seconds: float | None = None
    error: str = ""
    command: str = ""
    argv: tuple[str, ...] = ()
    cut: bool = False
    record: ExitRecord | None = None
    path: str = ""
    size: int | None = None
    detail: str = ""
    by: str = ""


def fields(event: Event) -> dict[str, Any]:
    """An event as JSON has it, with the exit code of its command."""
    plain: dict[str, Any] = msgspec.to_builtins(event)
    return {**plain, "returncode": event.record.returncode} if event.record else plain


class Journal:
    """Where calls to one sandbox are noted."""

    def __init__(self, place: Callable[[], Path] | None = None) -> None:
        """`place`: tells the file; None: nothing is noted."""
        self._place = place
        self._file: str | None = None

    @contextmanager
    def call(self, name: str, **what: Any) -> Iterator[dict[str, Any]]:
        """Note a call when the block ends, with what is added to its fields meanwhile."""
        at, begin = time.time(), time.monotonic()
        try:
            yield what
        except BaseException as error:
            what["error"] = type(error).__name__
            raise
        finally:
            self.note(name, at=at, seconds=round(time.monotonic() - begin, 6), **what)

    def note(
        self,
        name: str,
        *,
        at: float = 0.0,
        argv: Iterable[str] = (),
        path: str = "",
        detail: str = "",
        **what: Any,
    ) -> None:
        """Note something; what was asked for is cut to MOST_TEXT."""
        if self._place is None:
            return
        # What the configuration says wrong is told by the calls that need it.
        with contextlib.suppress(OSError, Error):
            if file := self._wanted(self._place):
                words, cut = _cut(argv)
                event = Event(
                    at or time.time(),
                    name,
                    argv=words,
                    cut=cut,
                    path=plain(path),
                    detail=plain(detail),
                    by=caller.get(),
                    **what,
                )
                _append(file, msgspec.json.encode(event) + b"\n")

    def _wanted(self, place: Callable[[], Path]) -> str:
        """The file; "" if the configuration wants no journal. Both are asked once: that takes as
        long as a line."""
        if self._file is None:
            self._file = str(place()) if _config.journal() else ""
        return self._file

    def events(self) -> list[Event]:
        """What was noted, as far as it is kept."""
        found: list[Event] = []
        with contextlib.suppress(OSError, Error):
            place = str(self._place()) if self._place else ""
            for path in (_older(place), place) if place else ():
                found += _events(path)
        return found


SILENT = Journal()


def _cut(argv: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """The words, up to MOST_TEXT, and whether there are more."""
    words: list[str] = []
    left = MOST_TEXT
    for word in argv:
        words.append(plain(word, left))
        left -= len(word)
        if left < 0:
            return tuple(words), True
    return tuple(words), False


def plain(text: str, most: int = MOST_TEXT) -> str:
    """A text that JSON takes: bytes that are no UTF-8 become escapes."""
    return text[:most].encode("utf-8", "backslashreplace").decode()


def _older(path: str) -> str:
    return f"{path}.old"


def _append(path: str, line: bytes) -> None:
    """Add a line, at once and whole: many processes do so."""
    try:
        file, size = _open(path, _APPEND)
    except FileNotFoundError:
        _files.made(Path(path).parent)  # of a sandbox that another machine has created
        file, size = _open(path, _APPEND)
    try:
        os.write(file, line)
        if size + len(line) > MOST:
            _turn(path, file)
    finally:
        os.close(file)


def _turn(path: str, file: int) -> None:
    """Begin another file; of several processes one does so."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.stat(path).st_ino == os.fstat(file).st_ino:
        os.rename(path, _older(path))


def _events(path: str) -> Iterator[Event]:
    """The lines of a file that are whole."""
    try:
        file, _ = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    with open(file, "rb") as lines:
        for line in lines.read(2 * MOST).split(b"\n"):
            # A full disk, or a power cut, may have left a part of a line.
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=Event)


def _open(path: str, flags: int) -> tuple[int, int]:
    """Open a file, and nothing else in its place, and tell its size; a pipe is not waited for."""
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode):
        os.close(file)
        raise FileNotFoundError(f"{path} is no file")
    return file, about.st_size


__all__ = ["MOST", "SILENT", "Event", "Journal", "caller", "fields", "plain"]
