"""What can be changed, and looked at, while a sandbox runs: its agent keeps the lifetime, and reads
the files of its control groups."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

from msgspec.structs import replace

from openmodal._command import move_deadline
from openmodal._dual import Blocking
from openmodal._link import Link
from openmodal._spec import Usage
from openmodal.engines import groups, posture
from openmodal.engines.kubernetes import pods
from openmodal.engines.kubernetes.snapshots import Snapshots
from openmodal.errors import UnsupportedError

_GROUPS = "/sys/fs/cgroup"
_V1 = groups.Hierarchies(v1=tuple((name, f"{_GROUPS}/{name}") for name in ("cpuacct", "memory", "pids")))
_V2 = groups.Hierarchies(v2=_GROUPS)
_NETWORK = "/proc/1/net/dev"


class Live(Snapshots):
    """The verbs of the Kubernetes engine for it."""

    async def set_timeout(self, id: str, seconds: float) -> None:
        pod = await self._running(id)
        found = pods.found(pod)
        assert found is not None, "_running has looked"
        if seconds > (most := pods.most_left(pod)):
            raise UnsupportedError(
                f"the pod of sandbox {id} ends in {most:.0f} s at the latest, which a cluster can only bring forward; give "
                "Sandbox.create a longer timeout="
            )
        await move_deadline(await self.connect(id), seconds)
        status = replace(found.status, expires=time.time() + seconds)
        cluster, _, _ = self._access()
        await Blocking(cluster.patch, cluster.pods(found.pod), {"metadata": {"annotations": pods.described(status)}})

    async def usage(self, id: str) -> Usage:
        await self._running(id)
        with closing(await self.connect(id)) as stream:
            seen = await posture.inside(Link(stream), (*_files(_V1), *_files(_V2), _NETWORK))
        return used(seen)


def used(seen: Mapping[str, str]) -> Usage:
    """What the files of a pod say, whichever version of control groups it has."""
    version = _V1 if any(path in seen for path in _files(_V1)) else _V2
    found = groups.used(version, ".", lambda path: seen.get(path, ""))
    received, sent = posture.counted(seen[_NETWORK]) if _NETWORK in seen else (None, None)
    return replace(found, received=received, sent=sent)


def _files(version: groups.Hierarchies) -> list[str]:
    """Which files are read of that version."""
    asked: list[str] = []

    def note(path: str) -> str:
        asked.append(path)
        return ""

    groups.used(version, ".", note)
    return asked
