"""Control groups: where they are mounted, and which limits the kernel holds for a process in them. Looks only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from openmodal._files import text
from openmodal._spec import Usage

PERIOD_US = 100_000
LIMITED = ("memory", "cpu", "pids")
LEAF = "init"  # where a container's processes are when its own group has children with limits; Docker's own images call it so, too
V1_FILES = {"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "pids.max"}
NO_LIMIT = 1 << 62  # v1 says "none" with the largest number of pages
_OURS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "freezer", "devices")


class Hierarchies(msgspec.Struct, frozen=True):
    """Where controllers are mounted: v1 by controller name, and v2 with the controllers that it has."""

    v1: tuple[tuple[str, str], ...] = ()
    v2: str = ""
    v2_controllers: tuple[str, ...] = ()


def hierarchies(mountinfo: str, first: str = "") -> Hierarchies:
    """Read /proc/self/mountinfo (proc(5)): which cgroup hierarchies are mounted, and where.

    With `first`, /proc/1/cgroup, v2 begins at the group of process 1, which is a container's own
    and on a real machine the whole.
    """
    v1: dict[str, str] = {}
    v2 = ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (word.replace("\\040", " ") for word in before.split()[3:5])
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            v2 = v2 or _own(point, root, first)
        elif kind == "cgroup":
            v1.update({name: point for name in options.split(",") if name in _OURS})
    return Hierarchies(tuple(sorted(v1.items())), v2, _controllers(v2))


def _own(point: str, root: str, first: str) -> str:
    """The folder of process 1's group, where `root` is mounted on `point`; `point` if that is elsewhere, or not a container's own."""
    path = next((line[3:] for line in first.splitlines() if line.startswith("0::/")), "")
    head, name = os.path.split(path)
    below = os.path.relpath(head if name in (LEAF, "init.scope") else path, root) if path else "."
    if ".." in f"{path}/{root}/{below}".split("/"):
        return point
    own = os.path.normpath(os.path.join(point, below))
    return point if 0 in members(Path(own)) else own


def _controllers(folder: str) -> tuple[str, ...]:
    try:
        return tuple((Path(folder) / "cgroup.controllers").read_text().split()) if folder else ()
    except OSError:
        return ()


def of(proc_cgroup: str) -> dict[str, str]:
    """A process's group for each limited controller, from its /proc/PID/cgroup (cgroups(7)): below the mount, without the first slash."""
    lines = [line.split(":", 2) for line in proc_cgroup.splitlines()]
    v1 = {name: path.lstrip("/") for _, names, path in lines for name in names.split(",")}
    return {name: v1.get(name, v1.get("", "")) for name in LIMITED}


def held(found: Hierarchies, groups: Mapping[str, str], pid: int) -> dict[str, float]:
    """The limits that the kernel holds for a process in these groups, by controller: memory in bytes, cpu in cores, pids."""
    v1 = dict(found.v1)
    result: dict[str, float] = {}
    for name, path in groups.items():
        group = Path(v1.get(name) or (found.v2 if name in found.v2_controllers else "/nothing")) / path
        amount = _amount(name, group, version=1 if name in v1 else 2)
        if amount is not None and pid in members(group):
            result[name] = amount
    return result


def members(group: Path) -> list[int]:
    """The processes in a group, 0 for each that is outside of our PID namespace; none if it is not there."""
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _amount(name: str, group: Path, *, version: int) -> float | None:
    """What a group's file says; None if that is no limit."""
    file = V1_FILES[name] if version == 1 else f"{name}.max"
    try:
        return amount(name, (group / file).read_text())
    except OSError:
        return None


def amount(name: str, said: str) -> float | None:
    """What such a file says; None if that is no limit. After a quota of the CPU there may be its period."""
    words = said.split()
    if not words or words[0] in ("max", "-1") or int(words[0]) >= NO_LIMIT:
        return None
    period = int(words[1]) if len(words) > 1 else PERIOD_US
    return int(words[0]) / period if name == "cpu" else int(words[0])


def used(found: Hierarchies, path: str, read: Callable[[str], str] = text) -> Usage:
    """What the kernel counts for a group: CPU time, memory without what it may drop at once, and
    processes. `read`: how its files are read, on whatever machine they are."""
    v1, unified = dict(found.v1), f"{found.v2 or '/nothing'}/{path}"
    memory = f"{v1['memory']}/{path}/memory" if "memory" in v1 else ""
    now = _number(read(f"{memory}.usage_in_bytes" if memory else f"{unified}/memory.current"))
    peak = _number(read(f"{memory}.max_usage_in_bytes" if memory else f"{unified}/memory.peak"))
    droppable = _words(read(f"{memory}.stat" if memory else f"{unified}/memory.stat"))
    idle = droppable.get("total_inactive_file" if memory else "inactive_file", 0)
    processes = _number(read(f"{v1['pids']}/{path}/pids.current" if "pids" in v1 else f"{unified}/pids.current"))
    return Usage(
        cpu=_cpu_seconds(v1, path, unified, read),
        memory=None if now is None else max(0, now - idle) / 2**20,
        memory_peak=None if peak is None else peak / 2**20,
        processes=processes,
    )


def _cpu_seconds(v1: Mapping[str, str], path: str, unified: str, read: Callable[[str], str]) -> float | None:
    if "cpuacct" in v1:
        spent = _number(read(f"{v1['cpuacct']}/{path}/cpuacct.usage"))
        return None if spent is None else spent / 1e9
    spent = _words(read(f"{unified}/cpu.stat")).get("usage_usec")
    return None if spent is None else spent / 1e6


def _number(said: str) -> int | None:
    return int(said) if said.strip().isdigit() else None


def _words(said: str) -> dict[str, int]:
    """What a file of lines `name number` says."""
    pairs = (line.split() for line in said.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
