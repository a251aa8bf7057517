"""Which checkpoints a running sandbox has: their keys, a line each, in a file of its folder.

Whoever ends the sandbox removes them. Of one that ends by itself, `gc` does when they expire.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_FILE = "checkpoints"


def note(folder: Path, key: str) -> None:
    """The sandbox of that folder has one more."""
    # If it has ended meanwhile, its checkpoint expires.
    with contextlib.suppress(FileNotFoundError), (folder / _FILE).open("a", encoding="ascii") as file:
        file.write(f"{key}\n")


def of(folder: Path) -> list[str]:
    """The keys, the newest first."""
    try:
        return (folder / _FILE).read_text("ascii").split()[::-1]
    except OSError:
        return []
