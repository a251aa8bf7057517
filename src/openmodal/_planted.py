"""Links that a sandbox may have made on this machine, refused on the way to a local file: it chose
where they lead.

A user's own links are followed, as cp follows them; so the two must be told apart, also by another
process, days later. What is copied from a sandbox is marked: a link has no attributes of the user's
(xattr(7)), but a time of its own, which stays when the tree is moved or archived. What is made in a
folder that a sandbox was given for writing (HostDirectory) cannot be: such folders are noted, and a
link in one may lead to places in it only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from openmodal import _config, _files
from openmodal.errors import InvalidError

PLANTED = 31_536_001
"""The time of change, in seconds, of each link that was copied from a sandbox: a second of the year 1971."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40  # the kernel follows no more (path_resolution(7))
_REMEDY = "give the path that it leads to (os.path.realpath), or remove it"


def plant(target: bytes, name: bytes, folder: int) -> None:
    """Make a link whose target a sandbox chose."""
    os.symlink(target, name, dir_fd=folder)
    os.utime(name, (PLANTED, PLANTED), dir_fd=folder, follow_symlinks=False)


def note(folder: str) -> None:
    """Note a folder of this machine, by its real path, that a sandbox is given for writing.

    Those that were deleted since are forgotten, but not those of a disk that is away.
    """
    import hashlib

    file = _noted() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    if file.exists():
        return
    for other, known in _read():
        if not os.path.lexists(known) and os.path.isdir(os.path.dirname(known)):
            other.unlink(missing_ok=True)
    _files.made(file.parent)
    _files.place(file, os.fsencode(folder))


def refuse(path: Path) -> str:
    """Look at every link that leads to `path`.

    Returns:
        The real path, if a sandbox was given a folder that it lies in, and so can change it; else "".

    Raises:
        InvalidError: one of them was copied from a sandbox, or leads out of a folder that one was
            given for writing.
    """
    noted = [folder for _, folder in _read()]
    way, left, links = "", [*reversed(path.absolute().parts)], list[str]()
    while left and len(links) <= _MOST_LINKS:
        way = os.path.normpath(os.path.join(way, left.pop()))  # where a target is absolute, the way begins anew
        try:
            info = os.lstat(way)
        # What is missing is no link. It may be made, and then ".." leads back from it.
        except OSError:
            continue
        if not stat.S_ISLNK(info.st_mode):
            continue
        if int(info.st_mtime) == PLANTED:
            raise InvalidError(f"{way!r} is a link that was copied from a sandbox, which no copy follows; {_REMEDY}")
        links.append(way)
        try:
            left += reversed(Path(os.readlink(way)).parts)
        except OSError as error:
            raise _exchanged(way) from error
        way = os.path.dirname(way)
    real = os.path.normpath(os.path.join(way, *reversed(left)))
    here = _around(real, noted)
    for link in reversed(links):
        if _around(link, noted) not in ("", here, real):
            raise InvalidError(
                f"{link!r} is a link that leads out of a folder that a sandbox was given for writing, which no copy "
                f"follows; {_REMEDY}"
            )
    return real if here else ""


def made(folder: Path) -> int:
    """Open a folder, which is made with those above it if it is not there.

    Raises:
        InvalidError: as `refuse` and `stay`; nothing is made elsewhere then.
    """
    real = refuse(folder)
    if not real:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, _FOLDER)
    at = os.open("/", _FOLDER)
    for name in Path(real).parts[1:]:
        at = _below(at, name, real)
    stay(real, at)
    return at


def _below(folder: int, name: str, real: str) -> int:
    """Open a folder in another one, which is closed; no link is followed."""
    try:
        try:
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT):
            raise
        raise _exchanged(real) from error
    finally:
        os.close(folder)


def holder(path: str) -> str:
    """The folder that a path lies in and that a sandbox was given for writing; "" if none."""
    return _around(path, [folder for _, folder in _read()])


def _exchanged(real: str) -> InvalidError:
    return InvalidError(f"{real!r} was exchanged while it was opened; copy when no sandbox changes it")


def stay(real: str, fd: int) -> None:
    """See that what was opened is what `refuse` has looked at, if a sandbox could exchange it meanwhile.

    Raises:
        InvalidError: it is not, and is closed.
    """
    if real and os.readlink(f"/proc/self/fd/{fd}") != real:
        os.close(fd)
        raise _exchanged(real)


def _noted() -> Path:
    return _config.state() / "given"


def _read() -> Iterator[tuple[Path, str]]:
    """Each note and its folder, the shortest path first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        files = [file for file in _noted().iterdir() if not file.name.startswith(".")]
        yield from sorted(((file, os.fsdecode(file.read_bytes())) for file in files), key=lambda note: len(note[1]))


def _around(path: str, folders: list[str]) -> str:
    """The folder, the outermost one, that a path lies in; "" if none."""
    return next((folder for folder in folders if path.startswith(f"{folder.rstrip('/')}/")), "")
