"""Folders for what is half made. Who makes one removes what killed processes have left beside it.

A folder is its maker's while that holds its lock (flock(2)), which the kernel releases however the
maker ends. The name tells the boot: locks of another machine that shares the disk are not seen
here, so its folders are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Iterator

from openmodal import _trash
from openmodal._files import text

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PERIOD = 60.0
"""Seconds between two looks at a folder: whoever copies thousands of files into one does not list
it each time."""

_looked: dict[tuple[int, int], float] = {}
_MOST_LOOKED = 1000


@contextlib.contextmanager
def folder(parent: int) -> Iterator[int]:
    """A new folder in an open one, for this user only, open; it ends with the block."""
    _sweep(parent)
    name, fd = _made(parent)
    try:
        yield fd
    finally:
        try:
            _remove(name, parent)
        finally:
            os.close(fd)  # not before: until then, nobody else removes it


@contextlib.contextmanager
def temporary() -> Iterator[str]:
    """The path of a new folder among the temporary files; it ends with the block."""
    import tempfile

    parent = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with folder(parent) as fd:
            yield os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(parent)


@functools.cache
def _prefix() -> str:
    return f".openmodal-{text('/proc/sys/kernel/random/boot_id')[:8]}-"


def _made(parent: int) -> tuple[str, int]:
    """Make a folder and lock it."""
    prefix = _prefix()
    while True:
        name = f"{prefix}{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=parent)
        # Who sweeps may come between: then it is gone, or about to go, and the next one is made.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, _OPEN, dir_fd=parent)
            if _lock(fd) and _is_at(fd, name, parent):
                return name, fd
            os.close(fd)


def _lock(fd: int, *, unknown: bool = True) -> bool:
    """Take a lock if nobody has it; `unknown`: the answer where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def _is_at(fd: int, name: str, parent: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(name, dir_fd=parent))
    except FileNotFoundError:
        return False


def _sweep(parent: int) -> None:
    """Remove what killed processes have left, as far as this user may."""
    info, now = os.fstat(parent), time.monotonic()
    place = (info.st_dev, info.st_ino)
    if now < _looked.get(place, -_PERIOD) + _PERIOD:
        return
    if len(_looked) >= _MOST_LOOKED:
        _looked.clear()
    _looked[place] = now
    prefix = _prefix()
    # Where it may be written, but not listed, nothing is known of the others.
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(prefix):
                with _trash.going_on([]):  # it is no part of what is asked for
                    _sweep_one(name, parent)


def _sweep_one(name: str, parent: int) -> None:
    fd = os.open(name, _OPEN, dir_fd=parent)
    try:
        if os.fstat(fd).st_uid == os.geteuid() and _lock(fd, unknown=False):
            _trash.remove(name, dir_fd=parent)
    finally:
        os.close(fd)


def _remove(name: str, parent: int) -> None:
    """Remove a folder of ours with what is in it, most often nothing."""
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)
        return
    import shutil

    try:
        shutil.rmtree(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except PermissionError:  # an archive has brought folders that we may not look into
        _trash.remove(name, dir_fd=parent)
