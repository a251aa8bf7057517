"""The ids of a plain user's sandboxes: its own as root, and a range from /etc/subuid and /etc/subgid for the others. Looks only."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from openmodal import _binary

Lines = list[tuple[str, str]]


def lines() -> Lines:
    """The map as a plan says it: with a range if `newuidmap` is there to write it, else the user's own id alone."""
    uid, gid = os.getuid(), os.getgid()
    ranges = [
        subordinate(Path(name).read_text(), uid) for name in ("/etc/subuid", "/etc/subgid") if os.path.exists(name)
    ]
    if len(ranges) < 2 or not all(ranges) or not shutil.which("newuidmap", path=_binary.PATH):
        return [("ids", "single")]
    (first_uid, uids), (first_gid, gids) = (found for found in ranges if found)
    return [
        ("ids", "sub"),
        ("uid_map", f"0 {uid} 1"),
        ("uid_map", f"1 {first_uid} {uids}"),
        ("gid_map", f"0 {gid} 1"),
        ("gid_map", f"1 {first_gid} {gids}"),
    ]


def subordinate(text: str, uid: int) -> tuple[int, int] | None:
    """First id and count of the user's first range in /etc/subuid or /etc/subgid (subuid(5))."""
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            return int(first), int(count)
    return None
