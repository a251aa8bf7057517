"""What every engine makes of a sandbox that is asked for: its limits, with the defaults, and its status as it begins. Pure."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from openmodal._spec import Made, Resources, Root, SandboxSpec, Status
from openmodal.errors import InvalidError

R = TypeVar("R", bound=Root)

DEFAULT_CPU = 1.0
DEFAULT_MEMORY = 2048
DEFAULT_PIDS = 512

_HOSTNAME_MAX = 63  # Linux takes 64; a DNS label has 63

# What gVisor itself needs: memory in bytes, and tasks, of which it has about two for each in the
# sandbox.
_GVISOR_MEMORY, _GVISOR_TASKS = 48 << 20, 128

# What the gate of an allow list needs, which counts as the sandbox's (src/openmodal/_gate).
_GATE_MEMORY, _GATE_TASKS = 32 << 20, 1


class Limits(msgspec.Struct, frozen=True):
    """`memory` in bytes, `cpu` in cores (0: none), `pids` in tasks."""

    memory: int
    cpu: float
    pids: int


def limits(resources: Resources) -> Limits:
    """The limits of a sandbox with these resources."""
    return Limits(
        memory=(resources.memory or DEFAULT_MEMORY) << 20,
        cpu=resources.cpu or DEFAULT_CPU,
        pids=resources.pids or DEFAULT_PIDS,
    )


def shares(cpu: float) -> int:
    """The weight of a sandbox beside other work: an ordinary process's (`cpu.shares` of version 1) for each of its CPUs."""
    return max(2, min(262_144, round(1024 * cpu)))


def around_gvisor(inside: Limits) -> Limits:
    """The limits of the groups that gVisor is in, so that the sandbox can have those `inside`."""
    return replace(inside, memory=inside.memory + _GVISOR_MEMORY, pids=2 * inside.pids + _GVISOR_TASKS)


def around_gate(inside: Limits) -> Limits:
    """The limits of the groups that the gate is in, too, so that the sandbox can have those `inside`."""
    return replace(inside, memory=inside.memory + _GATE_MEMORY, pids=inside.pids + _GATE_TASKS)


def around(spec: SandboxSpec, inside: Limits) -> Limits:
    """The limits of the groups in which the sandbox is, with what serves it there."""
    if spec.runtime == "gvisor":
        return around_gvisor(inside)
    return around_gate(inside) if spec.network.listed else inside


def beside_gate(limits: Mapping[str, float]) -> dict[str, float]:
    """What the sandbox has of its groups' limits, in bytes and tasks: the reverse of `around_gate`."""
    taken = {"memory": _GATE_MEMORY, "pids": _GATE_TASKS}
    return {name: amount - taken.get(name, 0) for name, amount in limits.items()}


def within_gvisor(memory: float | None, pids: float | None) -> tuple[float | None, float | None]:
    """What the sandbox has of its groups' limits, in bytes and tasks: the reverse of `around_gvisor`."""
    return memory and memory - _GVISOR_MEMORY, pids and (pids - _GVISOR_TASKS) // 2


def hostname(id: str) -> str:
    """The host name of a sandbox."""
    return id[-_HOSTNAME_MAX:].lstrip("-._") or "sandbox"


def prepared(root: Root, kind: type[R]) -> R:
    """The image, as the kind that an engine runs.

    Raises:
        InvalidError: another engine prepared it.
    """
    if not isinstance(root, kind):
        raise InvalidError("another engine prepared this image; prepare it with the one that is to run it")
    return root


def made(spec: SandboxSpec, root: R) -> Made[R]:
    """What is remembered of a sandbox for its forks and resets: no secret."""
    return Made(replace(spec, env=without_secrets(spec, spec.env), id=""), root)


def without_secrets(spec: SandboxSpec, env: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those of these variables whose values are no secrets of a sandbox."""
    return tuple((name, value) for name, value in env if name not in spec.secrets)


def digests(spec: SandboxSpec, root: Root) -> tuple[tuple[str, str], ...]:
    """What is the same in two calls that ask for the same sandbox.

    Variables count by their names, for their values may be secrets. Who owns it does not count.
    """
    import hashlib  # its library takes 5 ms, and few choose an id

    values: dict[str, Any] = {**asdict(spec), "env": sorted(dict(spec.env)), "image": root.key}
    for name in ("id", "owner", "run"):
        del values[name]
    for name in ("network", "resources"):
        values |= asdict(values.pop(name))
    return tuple((name, hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]) for name, value in values.items())


def differences(status: Status, spec: SandboxSpec, root: Root) -> list[str]:
    """What a sandbox was asked for in another way, by the names in `SandboxSpec`."""
    had = dict(status.asked)
    return [name for name, digest in digests(spec, root) if had.get(name) != digest]


def status(id: str, spec: SandboxSpec, root: Root, engine: str, created: float | None = None) -> Status:
    """A sandbox as it begins, now or at another time."""
    created = time.time() if created is None else created
    return Status(
        id=id,
        app=spec.app,
        name=spec.name,
        tags=spec.tags,
        created=created,
        expires=created + spec.timeout,
        image=root.key,
        engine=engine,
        run=spec.run,
        runtime=spec.runtime,
        build=spec.hidden,
        lease=spec.lease,
        asked=digests(spec, root) if spec.id else (),
        readiness=spec.readiness,
        snapshot_on_end=spec.snapshot_on_end,
    )


def forwarded(status: Status, listeners: Mapping[int, socket.socket]) -> Status:
    """The status of a sandbox that these listeners of this machine lead to."""
    tunnels = tuple((port, each.getsockname()[1]) for port, each in listeners.items())
    return replace(status, tunnels=tunnels)
