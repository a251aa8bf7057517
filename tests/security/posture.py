"""What every task of a sandbox is, as this machine sees it: the same facts for all, compared with a golden file."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from openmodal.engines.embedded import Embedded, cgroup, host
from openmodal.sandbox import Sandbox
from tests.security import attack

_KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
NAMESPACES = tuple(kind for kind in _KINDS if os.path.exists(f"/proc/self/ns/{kind}"))
"""Those that this kernel has: some have no namespaces of time."""

_CPUS = "/sys/devices/system/cpu/"
_GOLDEN = Path(__file__).with_name("posture.json")
SHOWN = ("/cpuinfo", "/meminfo", "/online")
_ROLES = {
    "its count of kills for memory": ("/memory.oom_control", "/memory.events"),
    "what it shows as /proc/meminfo": ("/meminfo",),
}
LIMITS = {
    "Max core file size": "core",
    "Max locked memory": "memlock",
    "Max msgqueue size": "msgqueue",
    "Max nice priority": "nice",
    "Max pending signals": "sigpending",
    "Max processes": "nproc",
    "Max realtime priority": "rtprio",
}


def golden() -> dict[str, Any]:
    """What the golden file says of this machine. If it has one CPU, none is hidden."""
    found: dict[str, Any] = json.loads(_GOLDEN.read_text())
    if len(os.sched_getaffinity(0)) == 1:
        found["mounts"] = [line for line in found["mounts"] if not line.startswith(_CPUS)]
    return found


def of(engine: Embedded, sandbox: Sandbox) -> dict[str, object]:
    """The posture: what is the same for every task, what its roles hold open, and its mounts."""
    pids = attack.members(engine, sandbox)
    tasks = [task for pid in pids for task in _tasks(pid)]
    facts = [fact for task in tasks if (fact := _facts(task, sandbox.id))]
    return {
        "every task": {key: _only([fact[key] for fact in facts]) for key in facts[0]},
        "process 1 holds": _descriptors(pids[0]),
        "commands hold": sorted({kind for pid in pids if _comm(pid) == "sleep" for kind in _descriptors(pid)}),
        "commands' oom_score_adj": _only([_read(pid, "oom_score_adj") for pid in pids if _comm(pid) == "sleep"]),
        "mounts": mounts(Path(f"/proc/{pids[0]}/mountinfo").read_text()),
    }


def _tasks(pid: int) -> list[Path]:
    """None of one that has just ended."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _facts(task: Path, id: str) -> dict[str, object] | None:
    """None for one that has just ended."""
    try:
        return _facts_of_living(task, id)
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None


def _facts_of_living(task: Path, id: str) -> dict[str, object]:
    status = attack.status(f"{task.parent.parent.name}/task/{task.name}")
    limits = dict(re.findall(r"^(.*?)  +\S+ +(\S+)", (task / "limits").read_text(), re.MULTILINE))
    return {
        "shares namespaces with the machine": [
            name for name in NAMESPACES if _inode(task, name) == _inode("self", name)
        ],
        "ids of the machine": [word for key in ("Uid", "Gid") for word in status[key].split() if int(word) < 1 << 28],
        "groups": status["Groups"],
        "capabilities": {key: status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "root is its own": os.stat(task / "root/").st_dev != os.stat("/").st_dev,
        "hard limits": {short: limits[long] for long, short in LIMITS.items()},
        "outside of its control groups": _outside(task, id),
    }


def _outside(task: Path, id: str) -> list[str]:
    """The hierarchies that have a group for sandboxes and in which this task is not in its sandbox's. A dead one is in none."""
    found = host.hierarchies()
    folders = {*(point for _, point in found.v1), *([found.v2] if found.v2 else [])}
    inside = [f"{point}/{cgroup.PARENT}/{id}/cgroup.procs" for point in folders]
    pid = task.parent.parent.name
    outside = sorted(path for path in inside if pid not in Path(path).read_text().split())
    os.readlink(task / "ns" / "pid")  # fails if it has ended meanwhile
    return outside


def _inode(task: Path | str, name: str) -> str:
    return os.readlink(Path("/proc", task) / "ns" / name)


def _descriptors(pid: int) -> list[str]:
    """The kinds of what a process holds open."""
    kinds: set[str] = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kind = re.sub(r":\[\d+\]|/\d+$", "", os.readlink(fd))
            kinds.add(next((role for role, ends in _ROLES.items() if kind.endswith(ends)), kind))
    return sorted(kinds)


def mounts(mountinfo: str) -> list[str]:
    """Place, kind, options and propagation of each mount; without the covers of what is hidden,
    which differ between kernels.

    How many control groups are shown depends on the machine; that each is the sandbox's own does
    not: seen from inside it is a root.
    """
    result = set()
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, place, options, *propagation = before.split()
        kind, source, _ = after.split()[:3]
        cover = kind == "tmpfs" and root in ("/blank", "/empty", "/groups", *SHOWN)
        if kind.startswith("cgroup") and (root == "/" or re.fullmatch(rf"/{cgroup.PARENT}/[^/]+", root)):
            place, kind, source, root = "/sys/fs/cgroup", "cgroup", "cgroup", "its own"
        if not cover:
            result.add(" ".join((place, kind, source, root if kind != "tmpfs" else "", options, *propagation)))
    return sorted(result)


def _only(values: list[object]) -> object:
    """The one value of all; all of them if they differ, which is in no golden file."""
    different = {repr(value): value for value in values}
    return values[0] if len(different) == 1 else {"differ": sorted(different)}


def _comm(pid: int) -> str:
    return _read(pid, "comm")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""
