"""Small files of this machine, in the fewest system calls: each creation looks at some. Below everything else."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from pathlib import Path

from openmodal.errors import InvalidError

_PIECE = 1 << 16
_KEY_SIZE = 32

Stamp = tuple[int, int, int]


def text(path: str | os.PathLike[str]) -> str:
    """What a file says, whole; "" if there is none. A fifth of what a Path takes for it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        pieces: list[bytes] = []
        # To the end: files of /proc may give a part at a time.
        while piece := os.read(file, _PIECE):
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")
    finally:
        os.close(file)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Make a file of these bytes, or make it so. A third of what a Path takes for it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)


def place(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file that only we read, whole or not at all.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
    """
    new = path.with_name(f".{os.urandom(8).hex()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        if replace:
            new.rename(path)
        else:
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def key(path: Path) -> bytes:
    """The key in a file that only we read, made once.

    Raises:
        InvalidError: the file is no key, such as an empty one after a power cut, which everybody
            could sign with.
    """
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another process made it meanwhile
            place(path, os.urandom(_KEY_SIZE), replace=False)
    found = path.read_bytes()
    if len(found) != _KEY_SIZE:
        raise InvalidError(f"{path} is no key; remove it, and the next start makes another")
    return found


def stamp(path: str | os.PathLike[str]) -> Stamp | None:
    """What is another whenever a file is another, or says something else; None if there is none."""
    found = stat_of(path)
    return (found.st_ino, found.st_mtime_ns, found.st_size) if found else None


def stat_of(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What the kernel says of a file or folder; None if there is none."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@functools.lru_cache(maxsize=256)
def within(folder: Path, name: str) -> Path:
    """A file in a folder. Each creation names the same twenty, and making a Path costs more than
    looking at its file."""
    return folder / name


def made(folder: Path) -> Path:
    """The folder. It, and those above it, are private to this user if they were not there."""
    stat_of_made(folder)
    return folder


def stat_of_made(folder: Path) -> os.stat_result:
    """What the kernel says of a folder, which is made as `made` does if it was not there."""
    found = stat_of(folder)
    if found and stat.S_ISDIR(found.st_mode):
        return found
    made(folder.parent)  # `parents=True` would make them with the mode that the umask leaves
    folder.mkdir(mode=0o700, exist_ok=True)
    return os.stat(folder)
