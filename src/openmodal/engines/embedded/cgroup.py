"""Limits through cgroups: a plan of folders and values for the box to carry out, for v1, v2, or v1
with an empty v2 beside it.

Plans are pure but for looking at what is mounted; a test gives them any folder. Kernel:
Documentation/admin-guide/cgroup-v1, -v2.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from openmodal._files import stat_of, text
from openmodal.engines import asked
from openmodal.engines.asked import Limits
from openmodal.engines.groups import LEAF, LIMITED, NO_LIMIT, PERIOD_US, Hierarchies, members
from openmodal.errors import EngineError

PARENT = "openmodal"
LEAST_FILE = 128
"""No open file takes fewer bytes of the kernel's memory."""
_ID = "\0"  # in a plan that is for any sandbox
_NEW_SECONDS = 60.0  # a group that is empty for so long is nobody's
_MOVE_SECONDS = 5.0

# The most that the kernel takes; and what one CPU weighs on v2, where that is the weight of a whole
# service or slice.
_MOST_SHARES, _MOST_WEIGHT = 262_144, 10_000
_WEIGHT = 100

_SOCKETS = "memory.kmem.tcp.limit_in_bytes"  # v1 counts here what all kinds of sockets hold, and nowhere else

# The JVM believes none of them unless all are there.
_SHOWN = ("memory", "pids", "cpu", "cpuacct", "cpuset")

# What a sandbox may open, besides nothing: null zero full random urandom tty ptmx, and its
# terminals.
_DEVICES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*")


class Plan(msgspec.Struct, frozen=True):
    """What the box does: make `folders`, write `values`, let init join, and at the end `kill`,
    `thaw`, remove.

    `devices` are those that the group of v2 may open: it has no file for that, so the box loads a
    program into the kernel. `weight` is the parent's file that is kept at the sum of its
    children's, and the most that it may be. `shown`: what the sandbox sees of them, and under which
    name in /sys/fs/cgroup ("." is that folder itself).
    """

    folders: tuple[str, ...]
    values: tuple[tuple[str, str], ...]
    kill: str = ""
    thaw: str = ""
    oom: tuple[str, str] | None = None
    devices: tuple[str, ...] = ()
    weight: tuple[str, str] | None = None
    shown: tuple[tuple[str, str], ...] = ()


def missing(found: Hierarchies) -> list[str]:
    """The limits that cannot be applied here, by controller."""
    present = {name for name, _ in found.v1} | set(found.v2_controllers)
    return [name for name in ("memory", "pids", "cpu") if name not in present]


def plan(found: Hierarchies, id: str, limits: Limits) -> Plan:
    """The plan for one sandbox. v1 controllers are used where they are mounted, v2's otherwise."""
    made = _plan(found, PARENT, limits)
    return replace(
        made,
        folders=tuple(folder.replace(_ID, id) for folder in made.folders),
        values=tuple((path.replace(_ID, id), value) for path, value in made.values),
        kill=made.kill.replace(_ID, id),
        thaw=made.thaw.replace(_ID, id),
        oom=(made.oom[0].replace(_ID, id), made.oom[1]) if made.oom else None,
        shown=tuple((folder.replace(_ID, id), name) for folder, name in made.shown),
    )


@functools.lru_cache(maxsize=32)  # most sandboxes of a program have the same limits
def _plan(found: Hierarchies, parent: str, limits: Limits) -> Plan:
    """The plan for a sandbox of the id `_ID`."""
    v1, id = dict(found.v1), _ID
    folders = {name: f"{point}/{parent}/{id}" for name, point in v1.items()}
    unified = f"{found.v2}/{parent}/{id}" if found.v2 else ""
    values: list[tuple[str, str]] = []
    for name, folder in folders.items():
        values += [(f"{folder}/{file}", text) for file, text in _v1_values(name, folder, limits)]
    values += [
        (f"{unified}/{file}", text)
        for name in found.v2_controllers
        if name not in v1
        for file, text in _v2_values(name, f"{found.v2}/{parent}", limits)
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
        weight=_parents_weight(found),
        shown=_shown(folders, unified if found.v2_controllers else ""),
    )


def _shown(folders: Mapping[str, str], unified: str) -> tuple[tuple[str, str], ...]:
    """As on any machine with these versions: programs find their limits there."""
    if not folders:
        return ((unified, "."),) if unified else ()
    return (
        *((folder, name) for name, folder in folders.items() if name in _SHOWN),
        *([(unified, "unified")] if unified else []),
    )


def _parents_weight(found: Hierarchies) -> tuple[str, str] | None:
    """Together, sandboxes weigh what each of them weighs. What they run beside on v2 are not
    processes but slices, each of one weight however much runs in it; so there they weigh at most
    one slice for each CPU, and the program that uses them gets its turn.
    """
    if point := dict(found.v1).get("cpu"):
        return f"{point}/{PARENT}/cpu.shares", str(_MOST_SHARES)
    if "cpu" in found.v2_controllers:
        return f"{found.v2}/{PARENT}/cpu.weight", str(min(_MOST_WEIGHT, _WEIGHT * (os.cpu_count() or 1)))
    return None


def _v1_values(name: str, folder: str, limits: Limits) -> list[tuple[str, str]]:
    if name == "memory":
        swap = [("memory.memsw.limit_in_bytes", str(limits.memory))]
        sockets = [(_SOCKETS, str(limits.memory // 4))]
        mount = Path(folder).parents[1]
        return [
            ("memory.limit_in_bytes", str(limits.memory)),
            *(pair for pair in (*swap, *sockets) if (mount / pair[0]).exists()),
        ]
    if name == "pids":
        return [("pids.max", str(limits.pids))]
    if name == "cpu":
        quota = [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(_quota(limits.cpu)))]
        return [("cpu.shares", str(asked.shares(_cpus(limits)))), *(quota if limits.cpu else [])]
    if name == "devices":
        return [("devices.deny", "a"), *(("devices.allow", f"c {device} rwm") for device in _DEVICES)]
    return []


def _v2_values(name: str, parent: str, limits: Limits) -> list[tuple[str, str]]:
    if name == "memory":
        # A kernel without swap, or one that does not account it (swapaccount=0), has no such file.
        swap = [("memory.swap.max", "0")] if os.path.exists(f"{parent}/memory.swap.max") else []
        return [("memory.max", str(limits.memory)), *swap]
    if name == "pids":
        return [("pids.max", str(limits.pids))]
    if name == "cpu":
        quota = [("cpu.max", f"{_quota(limits.cpu)} {PERIOD_US}")]
        return [
            ("cpu.weight", str(max(1, min(_MOST_WEIGHT, round(_WEIGHT * _cpus(limits)))))),
            *(quota if limits.cpu else []),
        ]
    return []


def _quota(cpu: float) -> int:
    return max(1000, math.ceil(cpu * PERIOD_US))


def _cpus(limits: Limits) -> float:
    """How many CPUs a sandbox may use: what has no limit of them may use all."""
    return limits.cpu or os.cpu_count() or 1


def prepare(found: Hierarchies) -> None:
    """Make the parent groups, which all sandboxes share, and what they lack: one that is half made
    does not stay so.

    Raises:
        EngineError: this user may not, or not in this container.
    """
    try:
        _complete(found, tuple([_group(path) for path in _parents(found, PARENT)]))
    except OSError as error:
        raise EngineError(
            f"the limits of a sandbox cannot be applied because the control group {error.filename} cannot be set up: "
            f'{error.strerror}; {_remedy(error)}, or create it without limits: allow_degraded=["limits"]'
        ) from error


@functools.lru_cache(maxsize=4)
def _parents(found: Hierarchies, name: str) -> tuple[str, ...]:
    """The groups of that name, which all sandboxes share."""
    points = (*dict(found.v1).values(), *([found.v2] if found.v2 else []))
    return tuple(f"{point}/{name}" for point in dict.fromkeys(points))


def _group(path: str) -> int:
    """The number of a group, which is made if it is not there. Another group of that name has another number."""
    if found := stat_of(path):
        return found.st_ino
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    return os.stat(path).st_ino


@functools.lru_cache(maxsize=16)  # what was completed stays so, as long as they are the same groups
def _complete(found: Hierarchies, numbers: tuple[int, ...]) -> None:
    v1 = dict(found.v1)
    _delegate(Path(found.v2), [name for name in LIMITED if name in found.v2_controllers and name not in v1])
    _bound_together(v1, found)
    if "cpuset" in v1:
        _fill_cpuset(Path(v1["cpuset"]))


def let_memory_bound_open_files(memory: int, file_max: Path = Path("/proc/sys/fs/file-max")) -> None:
    """Put the kernel's count of all open files of the machine out of reach, as systemd does at
    boot.

    They are charged to the group that opens them, and a sandbox can hold more in its share of the
    memory than the kernel lets a machine have. Not by fewer descriptors: a mapping holds its file
    without one.
    """
    if int(text(file_max)) < (most := memory // LEAST_FILE):
        with contextlib.suppress(OSError):  # /proc/sys may be read-only, in a container; `doctor` tells
            _write(file_max, str(most))


def _fill_cpuset(mount: Path) -> None:
    """v1: a new group has no CPU and no memory, and takes no process; its children begin with what it has by then."""
    # By what is written last: another thread or process may be in the middle of it.
    if _read(mount / PARENT / "cgroup.clone_children").strip() != "1":
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(mount / PARENT / file, (mount / file).read_text())
        _write(mount / PARENT / "cgroup.clone_children", "1")


def _delegate(mount: Path, controllers: Sequence[str]) -> None:
    """v2: a group's children have the controllers that its subtree_control names."""
    for group in (mount, mount / PARENT) if controllers else ():
        has = _read(group / "cgroup.subtree_control").split()
        if lacking := [f"+{name}" for name in controllers if name not in has]:
            _enable(group, " ".join(lacking))


def _enable(group: Path, controllers: str) -> None:
    """Give a group's children controllers. EBUSY: it has processes, and may have no such children, unless it is the whole machine's."""
    deadline = time.monotonic() + _MOVE_SECONDS
    while True:
        try:
            return _write(group / "cgroup.subtree_control", controllers)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline or not _step_aside(group):
                raise


def _step_aside(group: Path) -> bool:
    """Move the processes of a container's own group to a leaf; False if it is no such group, which
    is that of process 1.

    Who forks meanwhile leaves a child behind, so the caller tries again.
    """
    leaf = group / LEAF
    own = members(group)
    if 0 in own or 1 not in (*own, *members(leaf)):
        return False
    with contextlib.suppress(FileExistsError):
        leaf.mkdir()
    for pid in own:
        with contextlib.suppress(ProcessLookupError):
            _write(leaf / "cgroup.procs", str(pid))
    return True


def _bound_together(v1: Mapping[str, str], found: Hierarchies) -> None:
    """All sandboxes together leave the machine process ids, and their sockets stay below the mark
    from which on TCP saves memory for all.

    Where a bound is set already, it may be the administrator's.
    """
    pids = v1.get("pids") or (found.v2 if "pids" in found.v2_controllers else "")
    if pids and _read(most := Path(pids) / PARENT / "pids.max") == "max":
        _write(most, str(max(512, int(_read(Path("/proc/sys/kernel/pid_max"))) * 3 // 4)))
    sockets = Path(v1.get("memory", "/nothing")) / PARENT / _SOCKETS
    with contextlib.suppress(FileNotFoundError):  # no such file, or a container without the machine's marks
        if int(_read(sockets)) >= NO_LIMIT:
            _write(sockets, str(_tcp_mark() // 4 * 3))


def most_in_sockets(memory: int) -> int:
    """What the sockets of a sandbox may hold before it is ended: half of its memory, and of what TCP
    may have on this machine before it saves memory for all.

    The kernel keeps them below that, if it counts what they hold (docs/security.md).
    """
    try:
        return min(memory, _tcp_mark()) // 2
    except FileNotFoundError:  # a container may be without the machine's marks
        return memory // 2


@functools.cache
def _tcp_mark() -> int:
    """The bytes of TCP's queues from which on this machine saves memory for all."""
    return int(_read(Path("/proc/sys/net/ipv4/tcp_mem")).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _remedy(error: OSError) -> str:
    """What to do about it."""
    if error.errno == errno.EROFS:
        return (
            "a container's control groups are read-only: start it with --privileged (Kubernetes: securityContext.privileged), or with "
            "-v /sys/fs/cgroup:/sys/fs/cgroup --cgroupns=host"
        )
    if error.errno == errno.EBUSY:
        return (
            "processes from outside of this container are in its group: start it with process and control group namespaces of "
            "its own (without --pid=host, with --cgroupns=private)"
        )
    return "run as root"


def _read(path: Path) -> str:
    return path.read_text("ascii").strip()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "ascii")
    except OSError as error:  # of a write that is refused, Python does not tell the file
        error.filename = str(path)
        raise


def of(found: Hierarchies, id: str) -> list[Path]:
    """The groups of a sandbox that exist."""
    return [group for group in map(Path, _parents(found, f"{PARENT}/{id}")) if group.is_dir()]


def leftovers(found: Hierarchies) -> dict[str, list[Path]]:
    """The groups of sandboxes that exist, by sandbox id."""
    result: dict[str, list[Path]] = {}
    for parent in map(Path, _parents(found, PARENT)):
        for child in parent.iterdir() if parent.is_dir() else ():
            if child.is_dir():
                result.setdefault(child.name, []).append(child)
    return result


# ----------------------------------------------------------------------------- what is left of them


def kill(groups: Iterable[Path]) -> None:
    """Kill every process in these groups."""
    groups = tuple(groups)
    for group in groups:
        # What a killed supervisor has left stopped by a freezer of v1 would not die.
        with contextlib.suppress(OSError), open(group / "freezer.state", "r+") as freezer:
            freezer.write("THAWED")
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
