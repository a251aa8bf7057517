"""The plan that the box carries out: keys and values, as docs/protocol.md (section 2) lists them. Pure."""

from __future__ import annotations

import functools
import resource
from collections.abc import Sequence
from pathlib import Path

import msgspec

from openmodal._wire import Flag, milliseconds
from openmodal.engines import machine
from openmodal.engines.asked import Limits, hostname
from openmodal.engines.embedded import cgroup

Lines = list[tuple[str, str]]


_UNLIMITED = (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_RSS)

_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"


class Box(msgspec.Struct, frozen=True):
    """A box, as values. `net` is "none", "router", "exec" or "gate"; `owner` a process to die with.

    Times in seconds; `memory`, `guard` (what it may have on the disk) and `sockets` (what their
    queues may hold) in bytes; 0 is none.
    `counted`: folders outside `upper` that the guard counts. `volumes`: lines of what is mounted,
    and of what is locked for it (volumes.py).
    """

    id: str
    folder: Path
    lowers: Sequence[str]
    upper: str
    work: str
    ids: Lines
    net: Lines
    servers: str
    timeout: float
    limits: Limits
    groups: cgroup.Plan
    record: str = ""
    keep: bool = False
    hold: bool = False
    idle: float | None = None
    lease: float | None = None
    cpus: Sequence[int] = ()
    env: Sequence[tuple[str, str]] = ()
    user: str = ""
    workdir: str = ""
    argv: Sequence[str] = ()
    binds: Sequence[tuple[str, str]] = ()
    volumes: Lines = []
    owner: int = 0
    disk: str = ""
    guard: int = 0
    sockets: int = 0
    reuse: bool = False
    counted: Sequence[str] = ()
    extra: Lines = []


def encode(box: Box) -> bytes:
    """The plan's bytes."""
    lines: Lines = [
        ("id", box.id),
        ("hostname", hostname(box.id)),
        ("dir", str(box.folder)),
        *(("lower", lower) for lower in box.lowers),
        ("upper", box.upper),
        ("work", box.work),
        *box.ids,
        *box.net,
        ("resolv", box.servers),
        ("hosts", _HOSTS.format(hostname=hostname(box.id))),
        ("timeout_ms", str(milliseconds(box.timeout))),
        ("idle_ms", str(milliseconds(box.idle))),
        *_groups(box.groups),
        *(("rlimit", f"{number} {soft} {hard}") for number, soft, hard in rlimits(box.limits)),
        ("memory", str(box.limits.memory)),
        *(("env", f"{name}={value}") for name, value in box.env),
        *(("arg", arg) for arg in box.argv),
        *([("main_flags", str(int(Flag.STDIN)))] if box.argv else []),
        *(("bind", f"{source}\t{target}\trw") for source, target in box.binds),
        *box.volumes,
        *(("counted", folder) for folder in box.counted),
        *box.extra,
    ]
    optional = {
        "record": box.record,
        "keep": "1" if box.keep else "",
        "hold": "1" if box.hold else "",
        "reuse": "1" if box.reuse else "",
        "cpus": ",".join(map(str, box.cpus)),
        "cpuinfo": machine.cpuinfo(len(box.cpus)) if box.cpus else "",
        "user": box.user,
        "workdir": box.workdir,
        "disk": box.disk,
        "guard": str(box.guard) if box.guard else "",
        "sockets": str(box.sockets) if box.sockets else "",
        "owner": str(box.owner) if box.owner else "",
        "lease_ms": str(milliseconds(box.lease)) if box.lease else "",
    }
    lines += [(key, value) for key, value in optional.items() if value]
    return "".join([f"{key}={value}\0" for key, value in lines]).encode("utf-8", "surrogateescape")


def _groups(groups: cgroup.Plan) -> Lines:
    return [
        *(("cgroup", folder) for folder in groups.folders),
        *(("set", f"{path} {value}") for path, value in groups.values),
        *([("kill", groups.kill)] if groups.kill else []),
        *([("thaw", groups.thaw)] if groups.thaw else []),
        *(("device", device) for device in groups.devices),
        *(("show_cgroup", f"{folder} {name}") for folder, name in groups.shown),
        *([("oom", " ".join(groups.oom))] if groups.oom else []),
        *([("weight", " ".join(groups.weight))] if groups.weight else []),
    ]


@functools.lru_cache(maxsize=32)
def rlimits(limits: Limits) -> list[tuple[int, int, int]]:
    """Limits per process, as (number, soft, hard).

    A core limit of 1 byte keeps the kernel from piping a dump to a program of the machine
    (core(5)).
    """
    wanted = {
        resource.RLIMIT_CORE: (1, 1),
        resource.RLIMIT_NOFILE: (4096, 65536),
        resource.RLIMIT_NPROC: (limits.pids, limits.pids),
        resource.RLIMIT_MEMLOCK: (64 * 1024, 64 * 1024),
        resource.RLIMIT_SIGPENDING: (4096, 4096),
        resource.RLIMIT_MSGQUEUE: (819200, 819200),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
        resource.RLIMIT_STACK: (8 << 20, resource.RLIM_INFINITY),
        # What the caller's `ulimit` says is about the caller.
        **dict.fromkeys(_UNLIMITED, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
    }
    return [(number, _plain(soft), _plain(hard)) for number, (soft, hard) in wanted.items()]


def _plain(limit: int) -> int:
    """The kernel's number for no limit, which Python tells as -1."""
    return (1 << 64) - 1 if limit == resource.RLIM_INFINITY else limit
