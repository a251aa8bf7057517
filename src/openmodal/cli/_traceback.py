"""The traceback of the user's program as the user knows it: without the frames of OpenModal around and below it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from openmodal.cli._output import tell

_PACKAGE = f"{Path(__file__).resolve().parents[1]}/"
_LIBRARIES = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib")})


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception that nobody caught; a sys.excepthook."""
    shown = traceback.TracebackException(kind, error, trace)
    shown.stack = _below_start(shown.stack)
    _trim(shown)
    tell("".join(shown.format()), newline=False)


def _below_start(stack: traceback.StackSummary) -> traceback.StackSummary:
    """The frames from our first on: before it there is only the script that starts the command line."""
    start = next((i for i, frame in enumerate(stack) if frame.filename.startswith(_PACKAGE)), 0)
    return traceback.StackSummary.from_list(list(stack)[start:])


def _trim(shown: traceback.TracebackException) -> None:
    shown.stack = _theirs(shown.stack)
    shown.__cause__ = _trimmed(shown.__cause__)
    shown.__context__ = _trimmed(shown.__context__)
    for inner in shown.exceptions or ():
        _trim(inner)


def _trimmed(shown: traceback.TracebackException | None) -> traceback.TracebackException | None:
    """A cause, or None if it happened in our code only: what it means is said by the exception that it caused."""
    if shown is None or not _theirs(shown.stack):
        return None
    _trim(shown)
    return shown


def _theirs(stack: traceback.StackSummary) -> traceback.StackSummary:
    """The frames that are not ours, nor of what our code calls."""
    kept: list[traceback.FrameSummary] = []
    ours = False
    for frame in stack:
        ours = frame.filename.startswith((_PACKAGE, "<frozen ")) or (ours and frame.filename.startswith(_LIBRARIES))
        if not ours:
            kept.append(frame)
    return traceback.StackSummary.from_list(kept)
