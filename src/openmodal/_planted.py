"""Links that were copied from a sandbox, which chose where they lead: marked when they are made,
refused on the way to a local file.

A user's own links are followed, as cp follows them; so the two must be told apart, also by another
process, days later. A link has no attributes of the user's (xattr(7)), but a time of its own, which
stays when the tree is moved or archived.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from openmodal.errors import InvalidError

PLANTED = 31_536_001
"""The time of change, in seconds, of each link that was copied from a sandbox: a second of the year 1971."""

_MOST_LINKS = 40  # the kernel follows no more (path_resolution(7))


def plant(target: bytes, name: bytes, folder: int) -> None:
    """Make a link whose target a sandbox chose."""
    os.symlink(target, name, dir_fd=folder)
    os.utime(name, (PLANTED, PLANTED), dir_fd=folder, follow_symlinks=False)


def refuse(path: Path) -> None:
    """Look at every link that leads to `path`.

    Raises:
        InvalidError: one of them was copied from a sandbox.
    """
    way, left, links = "", [*reversed(path.absolute().parts)], 0
    while left and links <= _MOST_LINKS:
        way = os.path.join(way, left.pop())  # where a target is absolute, the way begins anew
        try:
            info = os.lstat(way)
        except OSError:  # whoever opens it, or makes it, is told
            return
        if not stat.S_ISLNK(info.st_mode):
            continue
        if int(info.st_mtime) == PLANTED:
            raise InvalidError(
                f"{way!r} is a link that was copied from a sandbox, which no copy follows; give the path that it leads to "
                "(os.path.realpath), or remove it"
            )
        links += 1
        left += reversed(Path(os.readlink(way)).parts)
        way = os.path.dirname(way)
