"""What holds a running sandbox: what the kernel that it runs on tells inside, and of the rest what
its pod's object says.

The files are read by the agent. Root in the sandbox cannot put others in their place: it may not
mount.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from openmodal import _wire
from openmodal._command import contents, refusal
from openmodal._link import Link
from openmodal._spec import Info
from openmodal._wire import FileOp
from openmodal.engines.kubernetes.pods import DOMAIN, Json
from openmodal.engines.posture import capabilities, fields
from openmodal.errors import EngineError, ProtocolError, UnsupportedError

_GROUPS = "/sys/fs/cgroup"
_STATUS, _IDS = "/proc/1/status", "/proc/1/uid_map"
_V1 = {
    "memory": f"{_GROUPS}/memory/memory.limit_in_bytes",
    "quota": f"{_GROUPS}/cpu/cpu.cfs_quota_us",
    "period": f"{_GROUPS}/cpu/cpu.cfs_period_us",
    "pids": f"{_GROUPS}/pids/pids.max",
}
_V2 = {name: f"{_GROUPS}/{name}.max" for name in ("memory", "cpu", "pids")}
_GVISOR = (
    "what holds gVisor itself cannot be told from inside, which is all that is seen of a pod; its limits are those of the pod: "
    "look at it with kubectl"
)
_MOST_READ = 1 << 20  # bytes of one file
_NO_LIMIT = 1 << 60  # cgroup v1 says a number of this size where it means none


async def look(link: Link) -> dict[str, str]:
    """Read in the sandbox what its limits and ids are; files that are not there are left out."""
    seen: dict[str, str] = {}
    for path in (_STATUS, _IDS, *_V1.values(), *_V2.values()):
        await link.send(_wire.file(FileOp.READ, path.encode(), user=b"0"))
        try:
            seen[path] = (await contents(link, refusal, _MOST_READ)).decode()
        except EngineError:  # not of this version of control groups, or (gVisor) of none
            continue
    return seen


def info(seen: Mapping[str, str], pod: Json, *, enforced: bool) -> Info:
    """Tell of a sandbox by what was seen in it. `enforced`: NetworkPolicies are.

    Raises:
        UnsupportedError: it runs in gVisor, whose kernel knows nothing of what holds gVisor itself.
    """
    try:
        status = fields(seen[_STATUS])
        if "NoNewPrivs" not in status:  # Linux has told it since 4.10 (proc(5)), gVisor does not
            raise UnsupportedError(_GVISOR)
        root, ids = _ids(seen[_IDS])
        held, unprivileged, filtered = capabilities(status), status["NoNewPrivs"] == "1", status["Seccomp"] == "2"
    except (KeyError, ValueError, IndexError) as error:
        raise ProtocolError(f"the sandbox's /proc cannot be read: {error}") from error
    memory, cpu, pids = _limits(seen)
    lacking = {"limits": memory is None or cpu is None, "seccomp": not filtered}
    return Info(
        runtime=pod["spec"].get("runtimeClassName", "native"),
        root=root,
        ids=ids,
        capabilities=held,
        no_new_privileges=unprivileged,
        seccomp=filtered,
        memory=None if memory is None else memory >> 20,
        cpu=cpu,
        pids=pids,
        disk=_disk(pod),
        network=_network(pod, enforced=enforced),
        degraded=tuple(name for name, lacks in lacking.items() if lacks),
    )


def _ids(uid_map: str) -> tuple[int, int]:
    """Who root is on the node, and how many ids there are."""
    lines = [line.split() for line in uid_map.splitlines()]
    return int(lines[0][1]), sum(int(count) for _, _, count in lines)


def _limits(seen: Mapping[str, str]) -> tuple[int | None, float | None, int | None]:
    """Memory in bytes, CPU in cores, processes and threads."""
    old = f"{seen.get(_V1['quota'], '')} {seen.get(_V1['period'], '')}"
    quota, _, period = seen.get(_V2["cpu"], old).partition(" ")
    share = _number(quota)
    memory = _number(seen.get(_V2["memory"], seen.get(_V1["memory"], "")))
    pids = _number(seen.get(_V2["pids"], seen.get(_V1["pids"], "")))
    return memory, None if share is None else share / int(period), pids


def _number(text: str) -> int | None:
    """A limit; None if that says that there is none."""
    word = text.strip()
    return int(word) if word.isdecimal() and int(word) < _NO_LIMIT else None


def _disk(pod: Json) -> int | None:
    """In MiB; the kubelet keeps it, by evicting the pod."""
    limit = str(pod["spec"]["containers"][0]["resources"]["limits"].get("ephemeral-storage", ""))
    size = limit.removesuffix("Gi").removesuffix("Mi")
    return int(size) << (10 if limit.endswith("Gi") else 0) if size.isdecimal() else None


def _network(pod: Json, *, enforced: bool) -> Literal["none", "outbound"]:
    return "none" if enforced and pod["metadata"]["labels"].get(f"{DOMAIN}/network") == "none" else "outbound"
