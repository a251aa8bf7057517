"""A sandbox as a container: what the daemon is asked for, and what it and the agent say about its end. Pure.

Everything that locks the sandbox in is here: the settings that the daemon carries out, and those that the agent does itself before it
serves anybody (native/setup.c) because then they hold with every daemon: system calls, capabilities, the firewall.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from openmodal import _ends
from openmodal._spec import EndRecord, Referenced, SandboxSpec, Status
from openmodal._wire import Flag, milliseconds
from openmodal.engines import asked, posture, reported
from openmodal.engines.docker import links, mounts

GVISOR = ("runsc", "gvisor")
"""What `runsc install` calls gVisor's runtime, and what clusters do."""

ID = "openmodal.id"
HOME = "openmodal.home"
STATUS = "openmodal.status"

# The agent needs them to reduce the others, and to load its firewall. Then it gives them up.
_GIVEN_UP = ("SETPCAP", "NET_ADMIN")

# What is kept of the main command's output, twice 8 MiB, in base64, and room for the driver's own
# bytes per line.
_LOG = {"Type": "local", "Config": {"max-size": "80m", "max-file": "1", "compress": "false"}}

_END = re.compile(
    rb"\nopenmodal: (exited|timeout|idle|lease|terminated|oom) ([0-9]{1,3}) ([0-9]{1,20}) ([0-9]{1,20})\n\Z"
)

# As the box shows it (native/mounts.c): programs size themselves by it.
_MEMINFO = ("MemTotal", "MemFree", "MemAvailable")
_NOTHING = (
    "Buffers Cached SwapCached Active Inactive SwapTotal SwapFree Dirty Writeback AnonPages Mapped Shmem Slab "
    "SReclaimable SUnreclaim"
).split()


@dataclass(frozen=True)
class Place:
    """What a container gets of this machine: (source, target) of files that it can read. `run`: the folder of the agent's socket, if
    both sides can see it, and it may have any size. `gvisor`: the daemon's name for that runtime, if the sandbox is to run in it."""

    files: tuple[tuple[str, str], ...] = ()
    run: str = ""
    cpus: tuple[int, ...] = ()
    gvisor: str = ""
    keeps_local_logs: bool = True  # Docker does; Podman has a format of its own


def body(spec: SandboxSpec, root: Referenced, status: Status, home: str, place: Place) -> dict[str, Any]:
    """What `POST /containers/create` is given."""
    return {
        "Image": root.reference,
        "Hostname": asked.hostname(status.id),
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": [links.AGENT],
        "Cmd": _agent(spec, root, place),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Labels": {ID: status.id, HOME: home, STATUS: msgspec.json.encode(status).decode()},
        "HostConfig": _host(spec, home, place),
    }


def _agent(spec: SandboxSpec, root: Referenced, place: Place) -> list[str]:
    options = {
        "--listen": links.SOCKET,
        "--setup-fd": "0",
        "--timeout-ms": str(milliseconds(spec.timeout)),
        "--idle-ms": str(milliseconds(spec.idle_timeout)),
        "--rests": "1" if spec.on_idle == "pause" else "",
        "--lease-ms": str(milliseconds(spec.lease)) if spec.lease else "",
        "--user": root.user,
        "--workdir": spec.workdir or root.workdir,
        "--pids": str(asked.limits(spec.resources).pids) if place.gvisor else "",
        "--main-flags": str(int(Flag.STDIN)) if spec.argv else "0",
    }
    words = [word for option, value in options.items() if value for word in (option, value)]
    return ["init", *words, *(("--", *spec.argv) if spec.argv else ())]


def _host(spec: SandboxSpec, home: str, place: Place) -> dict[str, Any]:
    limits = asked.limits(spec.resources)
    disk = spec.resources.disk
    if place.gvisor:
        limits = asked.around_gvisor(limits)
    return {
        "NetworkMode": "none" if spec.network.block else "bridge",
        "Mounts": [*map(_file, place.files), _run(place.run), *(mounts.body(home, mount) for mount in spec.mounts)],
        "CapDrop": ["ALL"],
        "CapAdd": [*posture.KEPT, *(() if place.gvisor else _GIVEN_UP)],
        "SecurityOpt": ["no-new-privileges:true"],
        "Memory": limits.memory,
        "MemorySwap": limits.memory,
        "NanoCpus": int(limits.cpu * 1e9),
        "CpuShares": asked.shares(limits.cpu),
        "CpusetCpus": ",".join(map(str, place.cpus)),
        "PidsLimit": limits.pids,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "RestartPolicy": {"Name": "no"},
        "LogConfig": _LOG if place.keeps_local_logs else {"Type": "k8s-file"},
        **({"StorageOpt": {"size": f"{disk}M"}} if disk else {}),
        **({"Runtime": place.gvisor} if place.gvisor else {}),
    }


def _file(file: tuple[str, str]) -> dict[str, Any]:
    return {"Type": "bind", "Source": file[0], "Target": file[1], "ReadOnly": True}


def _run(folder: str) -> dict[str, Any]:
    if folder:
        return {"Type": "bind", "Source": folder, "Target": links.RUN}
    return {"Type": "tmpfs", "Target": links.RUN, "TmpfsOptions": {"SizeBytes": 1 << 16, "Mode": 0o700}}


def setup(env: Mapping[str, str], denied: Sequence[str], servers: Sequence[str] = (), *, caged: bool) -> bytes:
    """What the agent is told over its standard input: see docs/protocol.md, section 4. `servers`:
    name servers that are reached also where they are `denied`."""
    entries = [
        *(f"env={name}={value}" for name, value in env.items()),
        *(f"deny={prefix}" for prefix in denied),
        *(["resolv=" + "".join(f"nameserver {server}\n" for server in servers)] if servers else []),
        *(["cage=1"] if caged else []),
    ]
    return b"".join(f"{entry}\0".encode("utf-8", "surrogateescape") for entry in entries) + b"\0"


def joined(prefixes: Iterable[str]) -> list[str]:
    """The same addresses in as few prefixes as possible."""
    return [str(network) for network in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, prefixes))]


def meminfo(memory: int) -> str:
    """A /proc/meminfo that tells the limit, in bytes."""
    sizes = {**dict.fromkeys(_MEMINFO, memory >> 10), **dict.fromkeys(_NOTHING, 0)}
    return "".join(f"{name + ':':<15} {size:8} kB\n" for name, size in sizes.items())


def status_of(labels: Mapping[str, str]) -> Status | None:
    """What a container's labels tell of the sandbox that it is; None if it is none of ours."""
    try:
        return msgspec.json.decode(labels[STATUS], type=Status)
    except (KeyError, msgspec.DecodeError):
        return None


def runs(item: Mapping[str, Any]) -> bool:
    """Whether a container of a list runs, or is paused."""
    return item["State"] in ("running", "paused")


def has_main(found: Mapping[str, Any]) -> bool:
    """Whether a described container has a main command, and its agent hears the daemon's stop."""
    native = found["HostConfig"].get("Runtime") not in GVISOR
    return native and "--" in (found["Config"].get("Cmd") or ())


def end_of(state: Mapping[str, Any], log: Mapping[int, bytes], ended: float) -> tuple[EndRecord, Mapping[int, bytes]]:
    """How a container ended, and what its main command's stdout (1) and stderr (2) had."""
    if said := _END.search(log[2]):
        reason, code = said[1].decode(), int(said[2])
        written = (int(said[3]), int(said[4]))
        outputs = reported.outputs(log[1] + log[2][: said.start()])
        return _ends.ended(reason, code, ended, written=written), outputs
    outputs = reported.outputs(log[1] + log[2])
    if state.get("OOMKilled"):
        return _ends.ended("oom", 137, ended), outputs
    return _ends.ended("lost", 137, ended, "its container was killed, or the daemon was restarted"), outputs


def why_not(stderr: bytes) -> str:
    """What the agent said that could not begin: `openmodal-agent init: KIND sentence`."""
    text = stderr.decode("utf-8", "replace").strip().rpartition("openmodal-agent init: ")[2]
    return text.partition(" ")[2] or text or "its first process ended without a word"


def labels(*pairs: str) -> dict[str, Any]:
    """A filter of containers by labels."""
    return {"label": list(pairs)}


def names(found: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Containers of a list by the sandboxes' ids."""
    labelled = ((str((item.get("Labels") or {}).get(ID, "")), item) for item in found)
    # A snapshot has the label without an id, and so has what runs while an image is built on it.
    return {id: item for id, item in labelled if id}
