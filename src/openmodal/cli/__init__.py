"""The `openmodal` command: one small function per command, over the public API.

Nothing but this file is imported until it is known what was asked for: `openmodal --version` costs an interpreter's
start, `--help` click's import. Every error is one sentence on stderr and exit code 1 (2 for wrong usage); `--debug`
shows its traceback. An exception in the user's own program keeps its traceback, without our frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        from openmodal import __version__

        sys.exit(_print(f"openmodal {__version__}"))
    from openmodal.cli._root import run

    sys.exit(run(given))


def _print(line: str) -> int:
    print(line)
    return 0


__all__ = ["main"]
