"""What holds a running sandbox: what the kernel that it runs on tells inside, and of the rest what
its pod's object says.

The files are read by the agent. Root in the sandbox cannot put others in their place: it may not
mount.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec.structs import replace

from openmodal._link import Link
from openmodal._spec import Info
from openmodal.engines import groups, posture
from openmodal.engines.kubernetes.pods import DOMAIN, Json
from openmodal.errors import ProtocolError, UnsupportedError

_GROUPS = "/sys/fs/cgroup"
_STATUS, _IDS = "/proc/1/status", "/proc/1/uid_map"
_V1 = {name: f"{_GROUPS}/{name}/{file}" for name, file in groups.V1_FILES.items()}
_V2 = {name: f"{_GROUPS}/{name}.max" for name in groups.LIMITED}
_PERIOD = f"{_GROUPS}/cpu/cpu.cfs_period_us"
_PROMISED = ("memory", "cpu")
_GVISOR = (
    "what holds gVisor itself cannot be told from inside, which is all that is seen of a pod; its limits are those of the pod: "
    "look at it with kubectl"
)


async def look(link: Link) -> dict[str, str]:
    """Read in the sandbox what its limits and ids are."""
    return await posture.inside(link, (_STATUS, _IDS, *_V1.values(), _PERIOD, *_V2.values()))


def info(seen: Mapping[str, str], pod: Json, *, enforced: bool) -> Info:
    """Tell of a sandbox by what was seen in it. `enforced`: NetworkPolicies are.

    Raises:
        UnsupportedError: it runs in gVisor, whose kernel knows nothing of what holds gVisor itself.
    """
    try:
        if "NoNewPrivs" not in posture.fields(seen[_STATUS]):  # Linux has told it since 4.10 (proc(5)), gVisor does not
            raise UnsupportedError(_GVISOR)
        found, runtime = posture.Seen(seen[_STATUS], seen[_IDS], ""), pod["spec"].get("runtimeClassName", "native")
        told = posture.info(found, "", _limits(seen), runtime, _disk(pod), _PROMISED)
    except (KeyError, ValueError, IndexError) as error:
        raise ProtocolError(f"the sandbox's /proc cannot be read: {error}") from error
    return replace(told, network=_network(pod, enforced=enforced))


def _limits(seen: Mapping[str, str]) -> dict[str, float]:
    """As `groups.held` tells them."""
    old = {name: seen.get(path, "") for name, path in _V1.items()}
    old["cpu"] += f" {seen.get(_PERIOD, '')}"
    found = {name: groups.amount(name, seen.get(_V2[name], old[name])) for name in groups.LIMITED}
    return {name: amount for name, amount in found.items() if amount is not None}


def _disk(pod: Json) -> int | None:
    """In MiB; the kubelet keeps it, by evicting the pod."""
    limit = str(pod["spec"]["containers"][0]["resources"]["limits"].get("ephemeral-storage", ""))
    size = limit.removesuffix("Gi").removesuffix("Mi")
    return int(size) << (10 if limit.endswith("Gi") else 0) if size.isdecimal() else None


def _network(pod: Json, *, enforced: bool) -> Literal["none", "outbound"]:
    return "none" if enforced and pod["metadata"]["labels"].get(f"{DOMAIN}/network") == "none" else "outbound"
