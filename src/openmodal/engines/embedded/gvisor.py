"""gVisor: a box whose processes run on a kernel of their own, `runsc`. What runsc is told is a
value, made from the box's.

The box stays what it is: its supervisor, id range, groups, network and root. Its first process
becomes runsc, which sees a small root of its own: the sandbox's root at /root, itself, /proc, and a
place for its state (native/runtime.c).
"""

from __future__ import annotations

import os
import re
import resource
from datetime import date
from typing import Any

from msgspec.structs import replace

from openmodal._spec import SandboxSpec
from openmodal._wire import Flag, milliseconds
from openmodal.engines import asked, posture
from openmodal.engines.embedded import network, plan
from openmodal.errors import EngineError, InvalidError, UnsupportedError

REMEDY = (
    "apt-get install runsc (Debian 12: from bookworm-backports), or see https://gvisor.dev/docs/user_guide/install/"
)

LACKS = frozenset(
    {
        "cgroup",
        "cpu_time",
        "holes",
        "idle_pause",
        "init",
        "memory_offender",
        "mount_image",
        "network_allowlists",
        "network_change",
        "network_lists",
        "network_shared",
        "pids",
        "proc",
        "snapshot_on_end",
    }
)
"""Promises of the contract that a sandbox in gVisor does not keep; docs/sandboxes.md tells why."""

# Descriptors that the box starts runsc with (RUNTIME_LINK … in native/runtime.h), and the link's
# number in the sandbox.
_LINK, _AGENT, _LOG = 4, 5, 6
_LINK_INSIDE = 3

# The one that runsc is started in; without a path it would make an empty one.
_NETWORK = {"type": "network", "path": "/proc/self/ns/net"}

_RLIMITS = "CORE NOFILE NPROC MEMLOCK SIGPENDING MSGQUEUE NICE RTPRIO STACK CPU FSIZE DATA AS RSS"

# How the sandbox is closed (docs/sandboxes.md).
_OPTIONS = (
    "--platform=systrap",  # works where there is no /dev/kvm
    "--network=sandbox",  # gVisor's own network stack; it takes the interface over that the box has made
    "--net-raw=false",
    "--overlay2=none",  # the box's overlay is the root, and its upper folder what is kept
    "--directfs=false",  # the kernel for the sandbox has no access to files but through another process
    "--file-access=exclusive",  # nobody else changes the root
    "--host-uds=none",
    "--host-fifo=none",
    "--oci-seccomp=true",
    "--ignore-cgroups=true",  # the box has made them, and runsc is in them
    "--watchdog-action=panic",
)


def find() -> str:
    """The path of runsc.

    Raises:
        EngineError: there is none, or this user's boxes cannot run it.
    """
    if os.geteuid() != 0:
        raise EngineError("runtime='gvisor' needs root on this machine: run as root, or leave runtime= out")
    if path := network.tool("runsc"):
        return path
    raise EngineError(f"runtime='gvisor' needs runsc, which is not on PATH; {REMEDY}")


def require(spec: SandboxSpec) -> None:
    """Refuse a sandbox that cannot run in gVisor here.

    Raises:
        EngineError: as `find`.
        UnsupportedError: it has an allow list, or is to be paused or kept.
    """
    if spec.network.listed:
        raise UnsupportedError(
            "allow lists cannot be kept with runtime='gvisor' yet, whose network stack does not see the gate; leave out one of them"
        )
    for argument, wanted in (
        ("network=", bool(spec.network.shared)),
        ("on_idle='pause'", spec.on_idle == "pause"),
        ("snapshot_on_end=", spec.snapshot_on_end),
    ):
        if wanted:
            raise UnsupportedError(f"{argument} cannot be kept with runtime='gvisor' yet; leave out one of them")
    find()


def released(said: str) -> date | None:
    """The date of a release, from what `runsc --version` says: "release-20260817.0", or Debian's "0.0~20240729.0"."""
    found = re.search(r"\b(20\d{6})\.", said)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:  # eight digits, but no date
        return None


def inside(box: plan.Box, runsc: str) -> plan.Box:
    """The box with gVisor in it.

    Raises:
        InvalidError: a variable or argument that JSON, and so runsc, cannot hold.
    """
    words = ("runsc", "--root=/state", f"--log-fd={_LOG}", *_OPTIONS)
    run = ("run", "--bundle=/", f"--pass-fd={_LINK}:{_LINK_INSIDE}", f"--exec-fd={_AGENT}", "sandbox")
    lines = [
        ("runtime", runsc),
        *(("runtime_arg", word) for word in (*words, *run)),
        ("runtime_config", _json(config(box))),
    ]
    tasks = replace(box.limits, pids=asked.around_gvisor(box.limits).pids)
    return replace(box, limits=tasks, extra=[*box.extra, *lines])


def config(box: plan.Box) -> dict[str, Any]:
    """The bundle's config.json (https://github.com/opencontainers/runtime-spec)."""
    capabilities = [f"CAP_{name}" for name in posture.KEPT]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "/root", "readonly": False},
        "hostname": asked.hostname(box.id),
        "process": {
            "args": _agent(box),
            "cwd": "/",
            "env": [f"{name}={value}" for name, value in {"HOME": "", **dict(box.env)}.items()],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": _rlimits(box),
        },
        "mounts": [*_mounts(), *_volumes(box)],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")] + [_NETWORK]},
    }


def _agent(box: plan.Box) -> list[str]:
    """The agent's command line (docs/protocol.md, section 4)."""
    options = {
        "--control-fd": str(_LINK_INSIDE),
        "--idle-ms": str(milliseconds(box.idle)),
        "--lease-ms": str(milliseconds(box.lease)) if box.lease else "",
        "--user": box.user,
        "--workdir": box.workdir,
        "--pids": str(box.limits.pids),
        "--main-flags": str(int(Flag.STDIN)) if box.argv else "",
    }
    words = [word for option, value in options.items() if value for word in (option, value)]
    return ["openmodal-agent", "init", *words, *(["--", *box.argv] if box.argv else [])]


def _mounts() -> list[dict[str, Any]]:
    inert = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": inert},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*inert, "ro"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]},
        # gVisor's own, virtual groups: the agent sets a limit of processes there.
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": inert},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*inert, "mode=1777", "size=64m"]},
    ]


def _volumes(box: plan.Box) -> list[dict[str, Any]]:
    """The box shows them to runsc as /volumes/0, /volumes/1 …; others may change them meanwhile."""
    lines = [value.split("\t") for key, value in box.volumes if key == "volume"]
    return [
        {
            "destination": target,
            "type": "bind",
            "source": f"/volumes/{number}",
            "options": ["bind", "nosuid", "nodev", mode],
        }
        for number, (_, _, target, mode, _) in enumerate(lines)
    ]


def _rlimits(box: plan.Box) -> list[dict[str, Any]]:
    names = {getattr(resource, f"RLIMIT_{name}"): f"RLIMIT_{name}" for name in _RLIMITS.split()}
    return [{"type": names[number], "soft": soft, "hard": hard} for number, soft, hard in plan.rlimits(box.limits)]


def _json(value: object) -> str:
    import json

    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8").decode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidError(
            "the main command and the variables of a gVisor sandbox must be valid UTF-8; give other bytes to it by a file"
        ) from error
