"""Folders of this machine that a sandbox is to see: what every engine that shows them refuses."""

from __future__ import annotations

import os
import stat

from openmodal._spec import Mount
from openmodal.errors import InvalidError


def look(mount: Mount) -> os.stat_result:
    """What the kernel says of the folder.

    Raises:
        InvalidError: there is none.
    """
    try:
        info = os.stat(mount.host)
    except OSError as error:
        raise InvalidError(f"the folder {mount.host!r} cannot be mounted: {error.strerror}") from error
    if not stat.S_ISDIR(info.st_mode):
        raise InvalidError(f"{mount.host!r} is no folder; HostDirectory shows folders only")
    return info


def refuse_writing(mount: Mount, why: str) -> None:
    """Refuse a folder that is written to as root of this machine, unless that is meant."""
    if not mount.read_only and mount.owner != "root":
        raise InvalidError(
            f"the folder {mount.host!r} {why}, and a sandbox that writes to it could leave a set-user-ID program of root's "
            "there; leave read_only=False out, or say owner='root' if that is meant"
        )


__all__ = ["look", "refuse_writing"]
