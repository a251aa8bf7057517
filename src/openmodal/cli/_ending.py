"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """Those that are not ignored. `nohup` has SIGHUP ignored, which stays so."""
    return [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM and SIGHUP (the window was closed) raise SystemExit(128 + number), so that what was
    begun is ended.

    Only the first one does: of a window that is closed, the shell and the kernel both tell, and the
    second must not interrupt what the first one has begun. Ctrl-C does.
    """
    begun = False

    def stop(number: int, _frame: object) -> None:
        nonlocal begun
        if not begun:
            begun = True
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # `openmodal run` has its own, to the end of the process.
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)
