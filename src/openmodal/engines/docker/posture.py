"""What holds a container: read from this machine's kernel where it runs here; else from its daemon, and from its kernel by the agent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from openmodal._link import Link
from openmodal._spec import Info, Usage
from openmodal.engines import groups, posture
from openmodal.errors import UnsupportedError

Description = Mapping[str, Any]


def here(found: Description, runtime: str) -> Info | None:
    """Tell of a container that is described; None if its process is not one that can be seen here.

    Raises:
        OSError, KeyError, IndexError: it has ended meanwhile.
    """
    pid, ours = int(found["State"]["Pid"]), _groups(found)
    if not ours:
        return None
    outside = Path("/proc/self/status").read_text()
    return posture.info(posture.seen(pid), outside, groups.held(_hierarchies(), ours, pid), runtime, _disk(found))


def used(found: Description) -> Usage | None:
    """What one that is described has used, without its files; None if its process is not one that
    can be seen here, or it has ended."""
    try:
        if path := _groups(found).get("memory"):
            received, sent = posture.moved(int(found["State"]["Pid"]))
            return replace(groups.used(_hierarchies(), path), received=received, sent=sent)
    except OSError:
        pass
    return None


def _groups(found: Description) -> dict[str, str]:
    """Its control groups, if its process is one of this machine."""
    try:
        paths = groups.of(Path(f"/proc/{found['State']['Pid']}/cgroup").read_text())
    except FileNotFoundError:
        return {}
    return {name: path for name, path in paths.items() if found["Id"] in path}  # whatever else has that number here


async def far(found: Description, link: Link, runtime: str) -> Info:
    """Tell of one that runs elsewhere: its limits are what its daemon holds, the rest what its kernel says inside."""
    if runtime == "gvisor":
        raise UnsupportedError(
            "the limits of gVisor itself can be read only on the machine of its Docker daemon; ask there"
        )
    paths = [f"/proc/1/{name}" for name in posture.FILES]
    told = await posture.inside(link, paths)
    seen = posture.Seen(*[told[path] for path in paths])
    host = found["HostConfig"]
    wanted = {"memory": host["Memory"], "cpu": host["NanoCpus"] / 1e9, "pids": host["PidsLimit"]}
    limits = {name: amount for name, amount in wanted.items() if amount and amount > 0}
    return posture.info(seen, "", limits, runtime, _disk(found))


@functools.cache
def _hierarchies() -> groups.Hierarchies:
    return groups.hierarchies(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))


def _disk(found: Description) -> int | None:
    size = (found["HostConfig"].get("StorageOpt") or {}).get("size", "")
    return int(size.removesuffix("M")) if size else None
