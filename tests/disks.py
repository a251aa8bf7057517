"""Disks of a size that tests fill."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmodal.testing.fixtures import eventually


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Where a disk of 64 MB is mounted, as long as the block; a state folder can be there. Before
    Linux 6.3 a tmpfs cannot hold root's."""
    with mounted_disk(folder, 64, ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal"]) as home:
        yield home


@contextmanager
def mounted_disk(folder: Path, mebibytes: int, mkfs: list[str], options: str = "loop") -> Iterator[Path]:
    """Where a disk is mounted that `mkfs` has formatted, as long as the block.

    Raises:
        CalledProcessError: the kernel does not mount such a one.
    """
    home, disk = folder / "home", folder / "disk"
    home.mkdir()
    with open(disk, "wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run([*mkfs, str(disk)], check=True)
    subprocess.run(["mount", "-o", options, str(disk), str(home)], check=True)
    home.chmod(0o700)
    try:
        yield home
    finally:
        try:
            eventually(lambda: _unmounted(home))
        except AssertionError as error:
            raise AssertionError(f"{home} stays mounted, held by {_holders(home)}") from error


def _holders(home: Path) -> list[str]:
    """What processes have open there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends
            for place in (process / "cwd", process / "root", *(process / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    if os.readlink(place).startswith(f"{home}"):
                        found.append(f"{place} -> {os.readlink(place)}")
    return found


def _unmounted(home: Path) -> bool:
    gc.collect()  # a lease of a layer lives as long as the engine that took it
    return subprocess.run(["umount", str(home)], check=False, capture_output=True).returncode == 0
