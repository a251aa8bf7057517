"""What a container is told of volumes and of this machine's folders, as values."""

from __future__ import annotations

import hashlib
from typing import Any

from openmodal._spec import Mount

LABEL = "openmodal.volume"
HOME = "openmodal.home"


def body(home: str, mount: Mount) -> dict[str, Any]:
    """What `Mounts` of a container says of one."""
    place = {"Target": mount.target, "ReadOnly": mount.read_only}
    if mount.host:
        return {**place, "Type": "bind", "Source": mount.host, "BindOptions": {"NonRecursive": True}}
    # NoCopy: the image's files at that path are not the volume's. Labels: if it was deleted a
    # moment ago, the daemon makes it again.
    options = {"NoCopy": True, "Labels": labels(home, mount.volume)}
    return {**place, "Type": "volume", "Source": named(home, mount.volume), "VolumeOptions": options}


def named(home: str, name: str) -> str:
    """Its name at the daemon, where there may be those of other state folders."""
    return f"openmodal-{hashlib.sha256(home.encode()).hexdigest()[:8]}-{name}"


def labels(home: str, name: str) -> dict[str, str]:
    """What it is known by."""
    return {LABEL: name, HOME: home}
