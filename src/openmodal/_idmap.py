"""The ids of a plain user's sandboxes: its own as root, and a range from /etc/subuid and
/etc/subgid for the others. Looks only.

So what is root's in a sandbox belongs, on disk, to the user, and what is others' to the ids of the
range (user_namespaces(7)).
"""

from __future__ import annotations

import functools
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openmodal import _binary

Lines = list[tuple[str, str]]

HELPERS = ("newuidmap", "newgidmap")

_NOBODY = 65534


class Maps(NamedTuple):
    """Lines of uid_map and gid_map (user_namespaces(7))."""

    uids: tuple[str, ...]
    gids: tuple[str, ...]


def maps(root: Path = Path("/")) -> Maps | None:
    """The ids of a plain user; None: the own one alone. `root` is where /etc is looked for."""
    import shutil

    uid, gid = os.getuid(), os.getgid()
    ranges = [subordinate(_text(root / "etc" / name), uid) for name in ("subuid", "subgid")]
    if not all(ranges) or not all(shutil.which(helper, path=_binary.PATH) for helper in HELPERS):
        return None
    uids, gids = (
        (f"0 {own} 1", f"1 {found[0]} {found[1]}") for own, found in zip((uid, gid), ranges, strict=True) if found
    )
    return Maps(uids, gids)


@functools.lru_cache(maxsize=1024)  # every file of a layer asks, and there are few owners
def inside(uid: int, gid: int) -> tuple[int, int]:
    """The owner of a file on disk as sandboxes see it, and so do others whom the file is given to."""
    if os.geteuid() == 0:
        return uid, gid
    found = maps() or Maps((f"0 {os.getuid()} 1",), (f"0 {os.getgid()} 1",))
    return _mapped(uid, found.uids), _mapped(gid, found.gids)


def _mapped(id: int, lines: Sequence[str]) -> int:
    for first, outside, count in (map(int, line.split()) for line in lines):
        if outside <= id < outside + count:
            return first + id - outside
    return _NOBODY


def subordinate(text: str, uid: int) -> tuple[int, int] | None:
    """First id and count of the user's first range in /etc/subuid or /etc/subgid (subuid(5))."""
    names = {str(uid), user_name(uid)}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            return int(first), int(count)
    return None


def user_name(uid: int) -> str:
    """The user's name; the number, if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def lines() -> Lines:
    """The map as a plan says it: with a range if `newuidmap` is there to write it, else the user's own id alone."""
    found = maps()
    if found is None:
        return [("ids", "single")]
    return [("ids", "sub"), *(("uid_map", line) for line in found.uids), *(("gid_map", line) for line in found.gids)]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
