"""A disk of limited size for one sandbox: a sparse file with an ext4 file system, which the box mounts through a loop device.

It is the one hard limit of bytes and inodes that needs no quotas in the kernel. The file is in the sandbox's folder and goes with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from openmodal import _binary
from openmodal.engines.embedded import network
from openmodal.errors import EngineError, disk_full

_MOST_INODES = 1_000_000
_BYTES_PER_INODE = 8192


def make(folder: Path, mebibytes: int) -> str:
    """Make the disk and return its path. What it holds counts on this machine's disk only as it is written.

    Raises:
        EngineError: this user may not mount it, or mkfs.ext4 is missing.
        DiskFullError: there is no room even for its tables.
    """
    if os.geteuid() != 0:
        raise EngineError(
            "disk= needs root, because a limit of disk space needs a mount of its own; leave it out, or run as root"
        )
    mkfs = network.tool("mkfs.ext4")
    if not mkfs:
        raise EngineError("disk= needs mkfs.ext4; install it with `apt-get install e2fsprogs`")
    path = folder / "disk.img"
    size = mebibytes << 20
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
    # No journal: the disk does not outlive the sandbox. Nothing is kept back for root: root in the sandbox is the user.
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"]
    inodes = str(min(_MOST_INODES, size // _BYTES_PER_INODE))
    done = _binary.run([mkfs, *options, "-N", inodes, "--", str(path)])
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        if "No space left" in said:
            raise disk_full(folder)
        raise EngineError(f"the sandbox's disk of {mebibytes} MiB cannot be made: {said}")
    return str(path)
