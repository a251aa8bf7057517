"""A folder below /run that is in memory. On most machines all of /run is; in most containers it is a
folder of the container's disk, where each small file costs a tenth of a millisecond."""

from __future__ import annotations

import contextlib
import fcntl
import os

_FLAGS = 2 | 4 | 8
"""MS_NOSUID, MS_NODEV, MS_NOEXEC of mount(2)."""

_OPTIONS = b"mode=700,size=10%"
"""As much as systemd gives to /run."""

_ROOM = 32 << 20
"""Bytes that must be free; and one file for each 4 KiB of them."""


def has_room(folder: str) -> bool:
    """Whether some thousands of small files fit into a folder, which is in memory then if that can be.

    Raises:
        OSError: it is not there.
    """
    if folder.startswith("/run/") and is_on_disk(folder):
        move(folder)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize > _ROOM and found.f_favail > _ROOM // 4096


def is_on_disk(folder: str) -> bool:
    """Whether a folder is on the file system of the machine's root."""
    return os.stat(folder).st_dev == os.stat("/").st_dev


def move(folder: str) -> None:
    """Have an empty folder in memory, if this process may mount that; one with files in it stays as
    it is. Who is just making a file in the folder finds no folder for a moment."""
    fd = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Else another process was faster, or the folder is not empty.
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            os.mkdir(folder, mode=0o700)
            _mount(folder)
    finally:
        os.close(fd)


def _mount(folder: str) -> None:
    import ctypes

    ctypes.CDLL(None).mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(_FLAGS), _OPTIONS)


__all__ = ["has_room", "is_on_disk", "move"]
