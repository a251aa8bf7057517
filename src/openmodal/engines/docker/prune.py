"""The images that a daemon keeps for us: which there are, and making room. Images of others are
never touched.

Docker does not tell when an image was used last. So each use from this machine is noted, as the
time of an empty file of the image's name.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from openmodal._spec import Built, BuiltStep
from openmodal.build.layers import Layers
from openmodal.build.prune import Pruned
from openmodal.engines.docker import generations
from openmodal.engines.docker.daemon import Api, ConflictError, MissingError
from openmodal.engines.docker.images import REPOSITORY, tags
from openmodal.errors import NotFoundError

_Item = Mapping[str, Any]  # of the daemon's list


def note_use(layers: Layers, key: str) -> None:
    """An image is used now."""
    file = _note(layers, key)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(0o600)


def images(api: Api, layers: Layers) -> list[Built]:
    """What is built. An image may have several names; one is told."""
    found: list[Built] = []
    for item in _items(api):
        with contextlib.suppress(MissingError):  # pruned meanwhile
            steps = api.get(f"/images/{item['Id']}/history")
            # The daemon leaves the list out if it is empty.
            count = len(api.get(f"/images/{item['Id']}/json")["RootFS"].get("Layers") or ())
            # BuildKit leaves none to an image from scratch with nothing in it.
            step = _step(steps[0]) if steps else ""
            used, names = _used(layers, item), tuple(sorted(generations.names_of(item)))
            found.append(Built(tags(item)[0], int(item["Size"]), count, used, step, generations.expires(item), names))
    return found


def history(api: Api, key: str) -> list[BuiltStep]:
    """The steps of an image, the last one first.

    Raises:
        NotFoundError: there is no image of that key.
    """
    try:
        steps = api.get(f"/images/{REPOSITORY}:{key}/history")
    except MissingError as error:
        raise NotFoundError(f"there is no image {key!r}; `openmodal image list` shows those that are built") from error
    return [BuiltStep(_step(step), int(step["Size"]), float(step["Created"])) for step in steps]


def _step(item: _Item) -> str:
    made = str(item["CreatedBy"]).removeprefix("/bin/sh -c #(nop)")
    return " ".join(made.split())


def prune(api: Api, layers: Layers, kept: Set[str], *, unused_for: float, caches: bool) -> Pruned:
    """Remove images that were not used for so many seconds. What a container stands on stays.

    `kept`: names that are left alone. `caches`: what the builder keeps, too, for whomever.
    """
    before, count = _size(api), 0
    for item in _items(api):
        unused = _used(layers, item) <= time.time() - unused_for and kept.isdisjoint(tags(item))
        if unused and not _stays(item):
            count += sum(_remove(api, layers, key) for key in tags(item))
    generations.expire(api, kept)
    if caches:
        api.post("/build/prune", all=True)
    return Pruned(count, max(0, before - _size(api)), 0)


def _items(api: Api) -> list[_Item]:
    found: list[_Item] = api.get("/images/json", filters={"reference": [REPOSITORY]})
    return [item for item in found if tags(item)]


def _stays(item: _Item) -> bool:
    """Whether it is published, or a snapshot that has not expired."""
    return bool(generations.names_of(item)) or generations.expires(item) > time.time()


def _used(layers: Layers, item: _Item) -> float:
    """When it was used last, in seconds of the Unix clock; of what was never used from here, when it was made."""
    times: list[float] = []
    for key in tags(item):
        with contextlib.suppress(FileNotFoundError):
            times.append(_note(layers, key).stat().st_mtime)
    return max(times, default=float(item["Created"]))


def _remove(api: Api, layers: Layers, key: str) -> int:
    """Take a name from an image, and the image away with its last one; how many of its layers went."""
    try:
        answer = api.delete(f"/images/{REPOSITORY}:{key}")
    except (MissingError, ConflictError):  # gone meanwhile, or in use
        return 0
    _note(layers, key).unlink(missing_ok=True)
    return sum("Deleted" in line for line in answer or ())


def _size(api: Api) -> int:
    return int(api.get("/system/df")["LayersSize"] or 0)


def _note(layers: Layers, key: str) -> Path:
    return layers.path / "docker" / "used" / key
