"""Folders for what is half made. Who makes one removes what killed processes have left beside it.

A folder is its maker's while that holds its lock (flock(2)), which the kernel releases however the
maker ends. Names are numbered, and each maker takes the first one that nobody holds: nobody lists a
folder of thousands of files for that. The name tells the boot: locks of another machine that shares
the disk are not seen here, so its folders are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterator

from openmodal import _trash
from openmodal._files import text

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NUMBERS = 64
"""How many names are tried. A sandbox that may write there could hold them all; then one is made by
chance."""


@contextlib.contextmanager
def folder(parent: int) -> Iterator[int]:
    """A new folder in an open one, for this user only, open; it ends with the block."""
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
    for number in range(_NUMBERS):
        name = f"{_prefix()}{number}"
        if (fd := _taken(name, parent)) >= 0:
            _sweep(number + 1, parent)
            return name, fd
    while True:
        if (fd := _taken(name := _by_chance(), parent)) >= 0:
            return name, fd


def _taken(name: str, parent: int) -> int:
    """Make a folder of that name and lock it; -1: it is somebody else's."""
    while True:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not _cleared(name, parent):
                return -1
            continue
        # Who clears away may come between: then it is gone, or about to go.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, _OPEN, dir_fd=parent)
            if _lock(fd) and _is_at(fd, name, parent):
                return fd
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


def _sweep(number: int, parent: int) -> None:
    """Clear away what others that were killed at the same time have left: their names follow."""
    while number < _NUMBERS and _trash.is_there(name := f"{_prefix()}{number}", parent):
        _cleared(name, parent)
        number += 1


def _cleared(name: str, parent: int) -> bool:
    """Remove a folder of this user's that nobody holds; tell whether it is gone."""
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError:  # a link, a file, or somebody else's
        return False
    try:
        if os.fstat(fd).st_uid != os.geteuid() or not _lock(fd, unknown=False):
            return False
        # Another maker may have the name by now: what is left over still has its own.
        if not _is_at(fd, name, parent):
            return False
        with _trash.going_on([]):  # it is no part of what is asked for
            _trash.remove(_renamed(name, parent), dir_fd=parent)
        return not _trash.is_there(name, parent)
    finally:
        os.close(fd)


def _renamed(name: str, parent: int) -> str:
    """Give a folder a name that nobody else takes: another one may have this name as soon as it is
    free."""
    away = _by_chance()
    os.rename(name, away, src_dir_fd=parent, dst_dir_fd=parent)
    return away


def _by_chance() -> str:
    return f"{_prefix()}{os.urandom(8).hex()}"


def _remove(name: str, parent: int) -> None:
    """Remove a folder of ours with what is in it, most often nothing."""
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)
        return
    import shutil

    try:
        away = _renamed(name, parent)
    except FileNotFoundError:
        return
    try:
        shutil.rmtree(away, dir_fd=parent)
    except PermissionError:  # an archive has brought folders that we may not look into
        _trash.remove(away, dir_fd=parent)
