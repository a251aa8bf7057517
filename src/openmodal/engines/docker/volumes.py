"""Volumes of a daemon, with our label."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from openmodal import _trash
from openmodal._dual import Blocking
from openmodal._spec import Mount, VolumeInfo
from openmodal.engines import folders
from openmodal.engines.contract import Engine
from openmodal.engines.docker import container, mounts
from openmodal.engines.docker.daemon import Api, ConflictError, Daemon, MissingError
from openmodal.engines.docker.host import Host
from openmodal.errors import NotFoundError, UnsupportedError, VolumeInUseError


def make(api: Api, home: str, name: str) -> None:
    """Make a volume, if there is none of that name."""
    api.post("/volumes/create", {"Name": mounts.named(home, name), "Labels": mounts.labels(home, name)})


def listed(api: Api, home: str) -> Sequence[VolumeInfo]:
    """The volumes of one state folder, by name."""
    found = api.get("/volumes", filters={"label": [f"{mounts.HOME}={home}", mounts.LABEL]})["Volumes"] or ()
    infos = [
        VolumeInfo(item["Labels"][mounts.LABEL], datetime.fromisoformat(item["CreatedAt"]).timestamp())
        for item in found
    ]
    return sorted(infos, key=lambda info: info.name)


def require(api: Api, home: str, name: str) -> None:
    """Raise NotFoundError if there is no such volume."""
    try:
        api.get(f"/volumes/{mounts.named(home, name)}")
    except MissingError as error:
        raise NotFoundError(
            f"the Docker daemon has no volume {name!r} of yours; make it with Volume.from_name({name!r}, "
            f"create_if_missing=True), or `openmodal --engine docker volume create {name}`"
        ) from error


def delete(api: Api, home: str, name: str) -> None:
    """Delete a volume.

    Raises:
        NotFoundError, VolumeInUseError: there is none; a container has it.
    """
    require(api, home, name)
    try:
        api.delete(f"/volumes/{mounts.named(home, name)}")
    except MissingError:
        return
    except ConflictError as error:
        raise VolumeInUseError(
            f"the volume {name!r} is mounted in a running sandbox; terminate that first (`openmodal sandbox list`)"
        ) from error


def check(api: Api, home: str, wanted: Iterable[Mount], *, is_here: bool) -> None:
    """Refuse mounts that this daemon, which runs on this machine or not, cannot make.

    Raises:
        NotFoundError, InvalidError, UnsupportedError: a volume or folder is not there, or must not
            be written to.
    """
    for mount in wanted:
        if mount.host:
            if not is_here:
                raise UnsupportedError(
                    "the docker engine shows folders of this machine only where its daemon runs on it; copy them with "
                    "sandbox.filesystem.copy_from_local"
                )
            folders.look(mount)
            folders.refuse_writing(mount, "is written to as the daemon's root")
        elif not mount.create:
            require(api, home, mount.volume)


class Keeper(Engine):
    """The verbs of volumes, for the engine of a daemon."""

    _daemon: Daemon
    _home: str

    def _let_go(self, api: Api, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Clear away those of these containers that have ended: they have volumes until then."""
        raise NotImplementedError

    async def make_volume(self, name: str) -> None:
        await Blocking(self._with_volume, make, name)

    async def volumes(self) -> Sequence[VolumeInfo]:
        found: Sequence[VolumeInfo] = await Blocking(self._listed)
        return found

    async def delete_volume(self, name: str) -> None:
        await Blocking(self._with_volume, self._delete, name)

    async def commit_volume(self, name: str) -> None:
        await Blocking(self._with_volume, require, name)
        if self._daemon.path:
            await Blocking(os.sync)

    def _with_volume(self, call: Callable[[Api, str, str], None], name: str) -> None:
        with self._daemon.open() as api:
            call(api, self._home, name)

    def _listed(self) -> Sequence[VolumeInfo]:
        with self._daemon.open() as api:
            return listed(api, self._home)

    def _delete(self, api: Api, home: str, name: str) -> None:
        self._delete_volume(api, name)

    def _delete_volume(self, api: Api, name: str) -> None:
        filters = {"volume": [mounts.named(self._home, name)]}
        self._let_go(api, container.names(api.get("/containers/json", all=True, filters=filters)))
        delete(api, self._home, name)

    def _removed(self, api: Api, name: str, failed: list[str]) -> bool:
        """Delete an ephemeral one that no sandbox has."""
        with _trash.going_on(failed), contextlib.suppress(NotFoundError, VolumeInUseError):
            self._delete_volume(api, name)
            return True
        return False

    def _check_mounts(self, wanted: Iterable[Mount]) -> None:
        with self._daemon.open() as api:
            check(api, self._home, wanted, is_here=Host.lately(self._daemon).is_here)


__all__ = ["Keeper", "listed"]
