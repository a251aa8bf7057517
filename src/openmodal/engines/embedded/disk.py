"""A disk of limited size for one sandbox: a sparse file with an ext4 file system, which the box
mounts through a loop device.

It is the one hard limit of bytes and inodes that needs no quotas in the kernel. The file is beside
the sandbox's upper folder and goes with the sandbox. mkfs takes tens of milliseconds, so a disk of
each size is kept ready, and a sandbox gets a copy of what is written of that one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from openmodal import _binary
from openmodal._files import stat_of
from openmodal.engines.embedded import network
from openmodal.errors import EngineError, disk_full

_NAME = "disk.img"
_MOST_INODES = 1_000_000
_BYTES_PER_INODE = 8192

# No journal: the disk does not outlive the sandbox. Nothing is kept back for root: root in the
# sandbox is the user.
_OPTIONS = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1")


def program() -> str:
    """The path of the program that makes disks.

    Raises:
        EngineError: this user may not mount a disk, or the program is missing.
    """
    if os.geteuid() != 0:
        raise EngineError(
            "disk= needs root, because a limit of disk space needs a mount of its own; leave it out, or run as root"
        )
    if mkfs := network.tool("mkfs.ext4"):
        return mkfs
    raise EngineError("disk= needs mkfs.ext4; install it with `apt-get install e2fsprogs`")


def make(folder: Path, mebibytes: int, ready: Path) -> str:
    """Make the disk and return its path. What it holds counts on this machine's disk only as it is
    written.

    Args:
        ready: the folder where disks are kept ready; anybody may remove what is in it at any time.

    Raises:
        EngineError: as `program`.
        OSError: ENOSPC; there is no room even for its tables.
    """
    from hashlib import sha256

    path = folder / _NAME
    options = (*_OPTIONS, "-N", str(min(_MOST_INODES, (mebibytes << 20) // _BYTES_PER_INODE)))
    kept = ready / f"{mebibytes}-{sha256(' '.join(options).encode()).hexdigest()[:8]}"
    try:
        _copy(kept, path)
    except FileNotFoundError:
        _format(path, mebibytes, options)
        _keep(path, kept)
    return str(path)


def size(folder: Path) -> int | None:
    """What a sandbox can write, in MiB: the size of its disk, or what a project quota allows
    (native/quota.c); None if there is neither."""
    if found := stat_of(folder / _NAME):
        return found.st_size >> 20
    with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
        whole, allowed = os.statvfs(folder), os.statvfs(folder / "upper")
        if allowed.f_blocks < whole.f_blocks:
            return allowed.f_blocks * allowed.f_frsize >> 20
    return None


def _format(path: Path, mebibytes: int, options: tuple[str, ...]) -> None:
    mkfs = program()
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(mebibytes << 20)
    done = _binary.run([mkfs, *options, "--", str(path)])
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        if "No space left" in said:
            raise disk_full(path.parent)
        raise EngineError(f"the sandbox's disk of {mebibytes} MiB cannot be made: {said}")


def _keep(path: Path, kept: Path) -> None:
    """Keep a copy for the next sandboxes. It has its name only when it has reached the disk: after a power cut it is whole or not there."""
    new = path.with_name("disk.ready")  # if we are killed, it goes with the sandbox's folder
    _copy(path, new)
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        new.rename(kept)
    except FileNotFoundError:  # somebody has just removed the folder; the next sandbox keeps one
        new.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy what is written of a file to a name that is free; where the file system can, both share it."""
    with open(source, "rb") as old, open(target, "xb") as new:
        size = os.fstat(old.fileno()).st_size
        os.fchmod(new.fileno(), 0o600)
        new.truncate(size)
        for at, end in _written(old.fileno(), size):
            while at < end:
                at += os.copy_file_range(old.fileno(), new.fileno(), end - at, at, at)


def _written(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            at = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole
                return
            raise
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, end
