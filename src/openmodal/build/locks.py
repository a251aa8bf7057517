"""Locks between processes: flock on small files, which the kernel releases whatever happens to their owner.

A lock's file may be removed by whoever holds it exclusively. So after locking, the file is compared with what the path names now.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class Lock:
    """A lock that is held until `close`, the end of its `with` block, or this process's death.

    `fd` may be inherited by another process, which then holds the lock, too: the lock is gone when the last copy is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def share(self) -> None:
        """Let others have the lock in shared mode. Not atomic: what the lock protects must be looked at again."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock(path: Path, *, shared: bool = False) -> Lock:
    """Wait for the lock of that name."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while (held := _attempt(path, operation)) is None:
        pass
    return held


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """The lock of that name if nobody is in the way, else None."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        return _attempt(path, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def _attempt(path: Path, operation: int) -> Lock | None:
    """None: the file was removed by its last owner meanwhile; the lock of a file without a name excludes nobody."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, operation)
        if _is_at(fd, path):
            return Lock(fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def lock_folder(path: Path) -> Lock | None:
    """Lock a folder itself; None if it is locked or gone. A folder's lock needs no file beside it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, path):
            return Lock(fd)
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
