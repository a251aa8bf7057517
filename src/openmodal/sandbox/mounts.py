"""What `Sandbox.create(volumes=…)` asks for, checked."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from openmodal import _args
from openmodal._spec import Mount
from openmodal.engines import Engine, choose
from openmodal.errors import InvalidError

if TYPE_CHECKING:
    from openmodal.volume import HostDirectory, Volume

_KERNELS = ("/proc", "/sys", "/dev")


def mounts(volumes: Mapping[str, Volume | HostDirectory] | None, engine: Engine) -> tuple[Mount, ...]:
    """What `Sandbox.create(volumes=…)` asks for.

    Raises:
        InvalidError: a path or volume is wrong; two paths are the same, or have the same volume.
    """
    if volumes is None:
        return ()
    if not isinstance(volumes, Mapping):
        raise InvalidError(f"volumes must be a dict of paths and volumes, not {type(volumes).__name__}")
    found = tuple(_mount(path, volume, engine) for path, volume in volumes.items())
    _refuse_repeated("the path {!r}", [mount.target for mount in found])
    _refuse_repeated("the volume {!r}", [mount.volume for mount in found if mount.volume])
    return found


async def make_missing(wanted: Iterable[Mount], engine: Engine) -> None:
    """Make those volumes that are to be made when they are used."""
    for mount in wanted:
        if mount.create:
            await engine.make_volume(mount.volume)


def _mount(path: object, volume: object, engine: Engine) -> Mount:
    from openmodal.volume import HostDirectory, Volume

    target = _target(path)
    if isinstance(volume, HostDirectory):
        return volume.mount(target)
    if not isinstance(volume, Volume):
        raise InvalidError(
            f"volumes[{path!r}] must be an openmodal.Volume or HostDirectory, not {type(volume).__name__}; "
            "write openmodal.Volume.from_name('my-data')"
        )
    if volume._engine is not None and (other := choose(volume._engine)).name != engine.name:
        raise InvalidError(
            f"the volume {volume.name!r} is of the {other.name} engine, and the sandbox of {engine.name}; use one for both"
        )
    return volume.mount(target)


def _target(path: object) -> str:
    """Where it is mounted, in its canonical form."""
    from openmodal.volume import no_tab

    text = no_tab("a path of volumes", _args.absolute("a path of volumes", path))
    if ".." in text.split("/"):
        raise InvalidError(f"volumes cannot be mounted on {text!r}; write the path without '..'")
    target = posixpath.normpath(f"/{text.lstrip('/')}")
    if target == "/" or any(f"{target}/".startswith(f"{place}/") for place in _KERNELS):
        raise InvalidError(
            f"volumes cannot be mounted on {text!r}: '/' and all below /proc, /sys and /dev is the sandbox's; use a path like '/data'"
        )
    return target


def _refuse_repeated(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidError(f"volumes has {what.format(value)} twice; leave one out")
        seen.add(value)
