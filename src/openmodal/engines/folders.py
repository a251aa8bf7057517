"""Folders of this machine that a sandbox is to see: what every engine that shows them refuses."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from openmodal import _planted
from openmodal._spec import Mount
from openmodal.errors import InvalidError


def look(mount: Mount) -> os.stat_result:
    """What the kernel says of the folder.

    Raises:
        InvalidError: there is none, or a link leads there: its path was the real one.
    """
    try:
        info = os.stat(mount.host)
    except OSError as error:
        raise InvalidError(f"the folder {mount.host!r} cannot be mounted: {error.strerror}") from error
    if os.path.realpath(mount.host) != mount.host:
        raise _exchanged(mount.host)
    if not stat.S_ISDIR(info.st_mode):
        raise InvalidError(f"{mount.host!r} is no folder; HostDirectory shows folders only")
    return info


def _exchanged(folder: str) -> InvalidError:
    """A sandbox that may write to a folder above has put something else in its place."""
    return InvalidError(
        f"{folder!r} is not the folder that was to be mounted: it was exchanged since HostDirectory was made; "
        "look at what is there, and mount it again"
    )


def refuse_writing(mount: Mount, why: str) -> None:
    """Refuse a folder that is written to as root of this machine, unless that is meant."""
    if not mount.read_only and mount.owner != "root":
        raise InvalidError(
            f"the folder {mount.host!r} {why}, and a sandbox that writes to it could leave a set-user-ID program of root's "
            "there; leave read_only=False out, or say owner='root' if that is meant"
        )


def confirm(wanted: Iterable[Mount], pid: int | None) -> None:
    """See that a container which has started, and runs nothing yet, has the folders of this machine
    that are meant: the daemon goes there by name, and a sandbox that may write to a folder above
    can put a link in the place of one.

    Args:
        wanted: its mounts.
        pid: its first process; None: that process is not the one that has them.

    Raises:
        InvalidError: it has another; or nobody can tell, and a sandbox was given a folder above.
    """
    hosts = [mount.host for mount in wanted if mount.host]
    shown = _shown(pid) if hosts and pid else None
    for host in hosts:
        if shown is None:
            if above := _planted.holder(host):
                raise InvalidError(
                    f"{host!r} lies in {above!r}, where a sandbox may write and so exchange it; mount {above!r} itself, or run "
                    "as root and without gVisor"
                )
        elif (found := _origin(host)) not in shown:
            raise _exchanged(host)
        else:
            shown.remove(found)


Origin = tuple[str, str]
"""What a mount shows, as the kernel tells it (mountinfo of proc(5)): a device, and a path in it.
Names are not compared: a sandbox can exchange what has one."""


def _origin(folder: str) -> Origin:
    """What a mount of a folder would show. No link may lead to the folder."""
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/self/fd/{at}") != folder:
            raise _exchanged(folder)
        number = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{at}").read_text(), re.MULTILINE)
    finally:
        os.close(at)
    assert number
    device, root, point = next(place for id, *place in _mounted("self") if id == number[1])
    return device, os.path.normpath(os.path.join(root, os.path.relpath(folder, point)))


def _shown(pid: int) -> list[Origin] | None:
    """What is mounted for a process; None if that is not told to this one."""
    try:
        return [(device, root) for _, device, root, _ in _mounted(pid)]
    except (PermissionError, FileNotFoundError):
        return None


def _mounted(pid: object) -> Iterator[tuple[str, str, str, str]]:
    """The mounts of a process: number, device, path in it, and where it is mounted."""
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines():
        id, _, device, root, point = line.split(b" ")[:5]
        yield id.decode(), device.decode(), _path(root), _path(point)


def _path(written: bytes) -> str:
    """A path; spaces and backslashes are written in octal."""
    return os.fsdecode(written.decode("unicode_escape").encode("latin-1"))


__all__ = ["confirm", "look", "refuse_writing"]
