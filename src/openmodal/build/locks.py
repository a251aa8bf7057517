"""Locks between processes: flock on small files, which the kernel releases however their owner
ends.

The exclusive owner may remove a lock's file. So after locking, the file is compared with its path.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class Lock:
    """A lock that is held until `close`, the end of its `with` block, or this process's death.

    Another process may inherit `fd`, and then holds the lock, too, until the last copy is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def share(self) -> None:
        """Share the lock. Not atomic: look again at what the lock protects."""
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


def lock(path: str | Path, *, shared: bool = False) -> Lock:
    """Wait for the lock of that name."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while (held := _attempt(path, operation)) is None:
        pass
    return held


def try_lock(path: str | Path, *, shared: bool = False) -> Lock | None:
    """The lock of that name if nobody is in the way, else None."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        return _attempt(path, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def _attempt(path: str | Path, operation: int) -> Lock | None:
    """None if the lock file was unlinked meanwhile: try again, its lock protects nothing."""
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
    """Lock a folder itself, which needs no file beside it; None if it is locked or gone."""
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


def _is_at(fd: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
