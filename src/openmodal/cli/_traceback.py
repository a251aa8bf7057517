"""The traceback of the user's program as the user knows it: without the frames of OpenModal around and below it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

_PACKAGE = f"{Path(__file__).resolve().parents[1]}/"


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception that nobody caught; a sys.excepthook."""
    shown = traceback.TracebackException(kind, error, trace)
    _trim(shown)
    print("".join(shown.format()), end="", file=sys.stderr)


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
    return traceback.StackSummary.from_list(
        [frame for frame in stack if not frame.filename.startswith((_PACKAGE, "<frozen "))]
    )
