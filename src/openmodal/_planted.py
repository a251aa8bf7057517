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
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from openmodal import _config, _files
from openmodal.errors import InvalidError

PLANTED = 31_536_001
"""The time of change, in seconds, of each link that was copied from a sandbox: a second of the year 1971."""

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
        except OSError:  # whoever opens it, or makes it, is told
            break
        if not stat.S_ISLNK(info.st_mode):
            continue
        if int(info.st_mtime) == PLANTED:
            raise InvalidError(f"{way!r} is a link that was copied from a sandbox, which no copy follows; {_REMEDY}")
        links.append(way)
        left += reversed(Path(os.readlink(way)).parts)
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


def stay(real: str, fd: int) -> None:
    """See that what was opened is what `refuse` has looked at, if a sandbox could exchange it meanwhile.

    Raises:
        InvalidError: it is not, and is closed.
    """
    if real and os.readlink(f"/proc/self/fd/{fd}") != real:
        os.close(fd)
        raise InvalidError(f"{real!r} was exchanged while it was opened; copy when no sandbox changes it")


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
