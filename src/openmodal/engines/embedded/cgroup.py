"""Limits through cgroups: a plan of folders and values for the box to carry out, for v1, v2, or v1 with an empty v2 beside it.

Plans are pure but for looking at what is mounted; a test gives them any folder. Kernel: Documentation/admin-guide/cgroup-v1, -v2.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openmodal.engines.asked import Limits
from openmodal.engines.groups import PERIOD_US, Hierarchies, members
from openmodal.errors import EngineError

PARENT = "openmodal"
_NEW_SECONDS = 60.0  # a group that is empty for so long is nobody's

# What a sandbox may open, besides nothing: null zero full random urandom tty ptmx, and its terminals.
_DEVICES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*")


@dataclass(frozen=True)
class Plan:
    """What the box does: make `folders`, write `values`, let init join, and at the end `kill`, `thaw`, remove.

    `devices` are those that the group of v2 may open: it has no file for that, so the box loads a program into the kernel.
    """

    folders: tuple[str, ...]
    values: tuple[tuple[str, str], ...]
    kill: str = ""
    thaw: str = ""
    oom: tuple[str, str] | None = None
    devices: tuple[str, ...] = ()


def missing(found: Hierarchies) -> list[str]:
    """The limits that cannot be applied here, by controller."""
    present = {name for name, _ in found.v1} | set(found.v2_controllers)
    return [name for name in ("memory", "pids", "cpu") if name not in present]


def plan(found: Hierarchies, id: str, limits: Limits) -> Plan:
    """The plan for one sandbox. v1 controllers are used where they are mounted, v2's otherwise."""
    v1 = dict(found.v1)
    folders = {name: f"{point}/{PARENT}/{id}" for name, point in v1.items()}
    unified = f"{found.v2}/{PARENT}/{id}" if found.v2 else ""
    values: list[tuple[str, str]] = []
    for name, folder in folders.items():
        values += [(f"{folder}/{file}", text) for file, text in _v1_values(name, folder, limits)]
    values += [
        (f"{unified}/{file}", text)
        for name in found.v2_controllers
        if name not in v1
        for file, text in _v2_values(name, limits)
    ]
    in_v2 = "memory" not in v1
    oom = (f"{unified}/memory.events", "oom_kill") if in_v2 else (f"{folders['memory']}/memory.oom_control", "oom_kill")
    return Plan(
        folders=tuple(dict.fromkeys((*folders.values(), *([unified] if unified else [])))),
        values=tuple(values),
        kill=f"{unified}/cgroup.kill" if unified else "",
        thaw=f"{folders['freezer']}/freezer.state" if "freezer" in folders else "",
        oom=oom if "memory" in v1 or "memory" in found.v2_controllers else None,
        devices=_DEVICES if found.v2 and "devices" not in v1 and os.geteuid() == 0 else (),
    )


def _v1_values(name: str, folder: str, limits: Limits) -> list[tuple[str, str]]:
    if name == "memory":
        swap = [("memory.memsw.limit_in_bytes", str(limits.memory))]
        accounted = os.path.exists(f"{Path(folder).parents[1]}/memory.memsw.limit_in_bytes")
        return [("memory.limit_in_bytes", str(limits.memory)), *(swap if accounted else [])]
    if name == "pids":
        return [("pids.max", str(limits.pids))]
    if name == "cpu" and limits.cpu:
        return [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(_quota(limits.cpu)))]
    if name == "devices":
        return [("devices.deny", "a"), *(("devices.allow", f"c {device} rwm") for device in _DEVICES)]
    return []


def _v2_values(name: str, limits: Limits) -> list[tuple[str, str]]:
    if name == "memory":
        return [("memory.max", str(limits.memory)), ("memory.swap.max", "0")]
    if name == "pids":
        return [("pids.max", str(limits.pids))]
    if name == "cpu" and limits.cpu:
        return [("cpu.max", f"{_quota(limits.cpu)} {PERIOD_US}")]
    return []


def _quota(cpu: float) -> int:
    return max(1000, math.ceil(cpu * PERIOD_US))


def prepare(found: Hierarchies, pid_max: int) -> None:
    """Make the parent groups, which all sandboxes share. They cannot take more than three quarters of the machine's process ids.

    Raises:
        EngineError: this user may not.
    """
    try:
        new = {point for point in {point for _, point in found.v1} if _make(Path(point) / PARENT)}
        if found.v2 and _make(Path(found.v2) / PARENT):
            new.add(found.v2)
            _delegate(Path(found.v2), [name for name in found.v2_controllers if name not in dict(found.v1)])
        for name, point in (*found.v1, *((name, found.v2) for name in found.v2_controllers)):
            if name == "pids" and point in new:
                _write(Path(point) / PARENT / "pids.max", str(max(512, pid_max * 3 // 4)))
    except OSError as error:
        raise EngineError(
            f"the limits of a sandbox cannot be applied because the control group {error.filename} cannot be set up: "
            f'{error.strerror}; run as root, or create it without limits: allow_degraded=["limits"]'
        ) from error


def _delegate(mount: Path, controllers: list[str]) -> None:
    """v2: a group's children have the controllers that its subtree_control names."""
    wanted = " ".join(f"+{name}" for name in controllers if name in ("memory", "pids", "cpu"))
    if wanted:
        _write(mount / "cgroup.subtree_control", wanted)
        _write(mount / PARENT / "cgroup.subtree_control", wanted)


def _make(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def leftovers(found: Hierarchies) -> dict[str, list[Path]]:
    """The groups of sandboxes that exist, by sandbox id."""
    result: dict[str, list[Path]] = {}
    for point in {*(point for _, point in found.v1), *([found.v2] if found.v2 else [])}:
        parent = Path(point) / PARENT
        for child in parent.iterdir() if parent.is_dir() else ():
            if child.is_dir():
                result.setdefault(child.name, []).append(child)
    return result


# ------------------------------------------------------------------------------------------------- what is left of them


def kill(groups: Iterable[Path]) -> None:
    """Kill every process in these groups."""
    for group in groups:
        for pid in members(group):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def abandoned(group: Path) -> bool:
    """Whether nothing has been in a group for a while."""
    with contextlib.suppress(FileNotFoundError):
        return not members(group) and time.time() - group.stat().st_mtime > _NEW_SECONDS
    return False


def remove(groups: Sequence[Path]) -> bool:
    """Kill what is in these groups and remove them; whether all are gone."""
    kill(groups)
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if not any(group.exists() for group in groups):
            return True
        time.sleep(0.005)
    return False
