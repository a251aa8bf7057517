"""The `openmodal` command: one small function per command, over the public API.

Nothing but this file is imported until it is known what was asked for: `openmodal --version` costs
an interpreter's start, `--help` click's import. Every error is one sentence on stderr and exit code
1 (2 for wrong usage); `--debug` shows its traceback. An exception in the user's own program keeps
its traceback, without our frames.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    if given == ["--version"]:
        from openmodal import __version__

        with contextlib.suppress(OSError):  # a full disk is told below
            print(f"openmodal {__version__}", flush=True)
            sys.exit(0)
    from openmodal.cli._ending import unwinding
    from openmodal.cli._root import run

    with unwinding():
        sys.exit(run(given))


def _open_streams() -> None:
    """Have something at descriptors 0 to 2, also after `2>&-`: what is opened next would
    get their numbers, and be written to."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                continue
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


__all__ = ["main"]
