"""Volumes of a cluster: PersistentVolumeClaims, listed by label, named by a hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from openmodal import _trash
from openmodal._dual import Blocking, Sleep
from openmodal._spec import Mount, VolumeInfo
from openmodal.engines import ephemeral
from openmodal.engines.contract import Engine
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.pods import DOMAIN
from openmodal.engines.kubernetes.settings import Settings, label
from openmodal.errors import EngineError, NotFoundError, VolumeInUseError

_NAME = f"{DOMAIN}/volume"
_CLIENT = f"{DOMAIN}/client"
_GONE_SECONDS = 60.0
_PAUSE = 0.2


def claim(settings: Settings, state: Path, name: str) -> Json:
    """The claim of a new volume. The class, or the cluster's default one, makes what it claims."""
    spec: Json = {
        "accessModes": [settings.volume_access],
        "resources": {"requests": {"storage": f"{settings.volume_size}Mi"}},
    }
    if settings.volume_class:
        spec["storageClassName"] = settings.volume_class
    labels = {
        "app.kubernetes.io/managed-by": "openmodal",
        f"{DOMAIN}/owner": settings.owner,
        f"{DOMAIN}/part": "volume",
        _CLIENT: _client(state),
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim_name(settings, name), "labels": labels, "annotations": {_NAME: name}},
        "spec": spec,
    }


def claim_name(settings: Settings, name: str) -> str:
    """What a volume's claim is called: that has no capitals and underscores."""
    digest = hashlib.sha256(f"{settings.owner}\0{name}".encode()).hexdigest()[:8]
    return f"om-{re.sub('[^a-z0-9]+', '-', name.lower())[:40].strip('-') or 'volume'}-{digest}"


def mounted(pod: Json, mounts: Sequence[Mount], settings: Settings) -> Json:
    """How a pod runs that has volumes."""
    if not mounts:
        return pod
    (container,) = pod["containers"]
    places = [
        {
            "name": f"volume-{number}",
            "mountPath": mount.target,
            "readOnly": mount.read_only,
            **({"subPath": mount.sub_path} if mount.sub_path else {}),
        }
        for number, mount in enumerate(mounts)
    ]
    volumes = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim_name(settings, mount.volume)}}
        for number, mount in enumerate(mounts)
    ]
    container = {**container, "volumeMounts": [*container["volumeMounts"], *places]}
    return {**pod, "containers": [container], "volumes": [*pod["volumes"], *volumes]}


class Keeper(Engine):
    """The verbs of volumes, for the engine of a cluster."""

    def _access(self) -> tuple[Api, Settings, Path]:
        """The cluster, the settings, and the state folder."""
        raise NotImplementedError

    async def _settled(self, cluster: Api, pod: Json) -> bool:
        """Whether a pod's sandbox has ended, and is cleared away now."""
        raise NotImplementedError

    async def make_volume(self, name: str) -> None:
        cluster, settings, state = self._access()
        wanted = claim(settings, state, name)
        deadline = time.monotonic() + _GONE_SECONDS
        while not await Blocking(_made, cluster, wanted):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"the volume {name!r} was deleted, and is not gone after {_GONE_SECONDS:.0f} s; try again later"
                )
            await Sleep(_PAUSE)

    async def volumes(self) -> Sequence[VolumeInfo]:
        found = [(_name(item), item["metadata"]["creationTimestamp"]) for item in await self._claims()]
        infos = [VolumeInfo(name, datetime.fromisoformat(created).timestamp()) for name, created in found]
        return sorted(infos, key=lambda info: info.name)

    async def delete_volume(self, name: str) -> None:
        cluster, settings, _ = self._access()
        await self._require(name)
        wanted = claim_name(settings, name)
        listed: Json = await Blocking(cluster.get, cluster.pods())
        for pod in listed["items"]:
            if wanted in _claimed(pod) and not await self._settled(cluster, pod):
                raise VolumeInUseError(
                    f"the volume {name!r} is mounted in a running sandbox; terminate that first (`openmodal sandbox list`)"
                )
        await Blocking(cluster.delete, _path(cluster, wanted))

    async def commit_volume(self, name: str) -> None:
        """The cluster's storage sees to the disk; that there is such a volume is looked at."""
        await self._require(name)

    async def _require(self, name: str) -> None:
        """Raise NotFoundError if there is no such volume."""
        if not any(_name(item) == name for item in await self._claims()):
            raise NotFoundError(
                f"the cluster has no volume {name!r} of yours; make it with Volume.from_name({name!r}, "
                f"create_if_missing=True), or `openmodal --engine kubernetes volume create {name}`"
            )

    async def _check_mounts(self, mounts: Iterable[Mount]) -> None:
        for mount in mounts:
            if mount.volume and not mount.create:
                await self._require(mount.volume)

    async def _claims(self) -> list[Json]:
        cluster, settings, _ = self._access()
        selector = f"{DOMAIN}/part=volume,{DOMAIN}/owner={settings.owner}"
        answer: Json = await Blocking(cluster.get, _path(cluster), labelSelector=selector)
        return [item for item in answer["items"] if "deletionTimestamp" not in item["metadata"]]

    async def _sweep(self, failed: list[str], *, check: bool) -> list[str]:
        """Delete the ephemeral volumes of programs of this machine that were killed; tell which."""
        _, _, state = self._access()
        own = [item for item in await self._claims() if item["metadata"]["labels"].get(_CLIENT) == _client(state)]
        left = [name for name in map(_name, own) if ephemeral.is_abandoned(state, name)]
        return left if check else [name for name in left if await self._removed(name, failed)]

    async def _removed(self, name: str, failed: list[str]) -> bool:
        """Delete an ephemeral one that no sandbox has."""
        with _trash.going_on(failed), contextlib.suppress(NotFoundError, VolumeInUseError):
            await self.delete_volume(name)
            return True
        return False


def _path(cluster: Api, rest: str = "") -> str:
    return cluster.path("persistentvolumeclaims", rest)


def _name(item: Json) -> str:
    return str(item["metadata"].get("annotations", {}).get(_NAME, ""))


def _claimed(pod: Json) -> list[str]:
    volumes: list[dict[str, Any]] = pod["spec"].get("volumes", [])
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]


def _client(state: Path) -> str:
    """This machine and state folder, as a label: it knows which of its ephemeral volumes live."""
    return label(hashlib.sha256(f"{os.uname().nodename}\0{state}".encode()).hexdigest()[:32])


def _made(cluster: Api, wanted: Json) -> bool:
    """Make a claim if there is none. False if one of its name is being deleted: the pods that had
    it are ending."""
    try:
        cluster.create(_path(cluster), wanted)
        return True
    except ApiError as error:
        if error.status != 409:
            raise
    try:
        return "deletionTimestamp" not in cluster.get(_path(cluster, wanted["metadata"]["name"]))["metadata"]
    except ApiError as error:
        if error.status != 404:
            raise
        return False


__all__ = ["Keeper", "claim", "claim_name", "mounted"]
