"""Volumes that end with the block that made them: whose process lives, and whose was killed.

    <state>/ephemeral/<name>    locked by the process that uses the volume of that name

Engines know them by their names. `gc` removes those that nobody holds.
"""

from __future__ import annotations

import os
from pathlib import Path

from openmodal._files import made
from openmodal.build.locks import Lock, lock, try_lock

PREFIX = "ephemeral-"


def new_name() -> str:
    """A name for one."""
    return PREFIX + os.urandom(8).hex()


def hold(state: Path, name: str) -> Lock:
    """Hold a new one, until `release` or this process's end."""
    # The name is new, but `sweep` looks at each file for a moment.
    return lock(made(state / "ephemeral") / name)


def release(state: Path, name: str, held: Lock) -> None:
    """Give it up, when the volume is gone."""
    (state / "ephemeral" / name).unlink(missing_ok=True)
    held.close()


def is_abandoned(state: Path, name: str) -> bool:
    """Whether it is one, and nobody holds it any more."""
    if not name.startswith(PREFIX):
        return False
    if held := try_lock(made(state / "ephemeral") / name):
        release(state, name, held)
    return held is not None


def sweep(state: Path) -> None:
    """Remove the files of those that are gone, and that nobody holds."""
    for file in made(state / "ephemeral").iterdir():
        is_abandoned(state, file.name)


__all__ = ["PREFIX", "hold", "is_abandoned", "new_name", "release", "sweep"]
