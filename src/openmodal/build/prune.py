"""Making room: images that nobody has used for a while are forgotten, then the layers that no image
has, from the top down.

A layer is removed only under its exclusive lock, so never while a build or a sandbox holds it, and
never before the layers that stand on it, so that one look at the topmost layer tells that an image
is whole.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from openmodal._spec import Built, Layered
from openmodal._trash import going_on, tell
from openmodal._trash import remove as remove_tree
from openmodal.build import put
from openmodal.build.base import TRUST
from openmodal.build.layers import Layers, Meta, size_of
from openmodal.build.locks import try_lock


class Pruned(msgspec.Struct, frozen=True):
    """What went: layers, their bytes, and leftovers of killed builds."""

    layers: int
    bytes: int
    leftovers: int


class _Image(msgspec.Struct, frozen=True):
    file: Path
    used: float
    layers: frozenset[str]


def prune(store: Layers, *, budget: int | None = None, unused_for: float = 0.0, caches: bool = False) -> Pruned:
    """Remove images that have not been used for `unused_for` seconds, and what belonged to them
    only.

    Args:
        budget: keep layers of at most so many bytes: go on with the images that were used least
            recently, until they fit. With a budget, nothing is removed while everything fits.
        caches: the folders of package downloads, too.

    Safe at any time, from many processes. What is in use stays, and is tried again by the next
    call.

    Raises:
        EngineError: something could not be removed; all else is.
    """
    failed: list[str] = []
    leftovers = store.collect(failed)
    with store.guard("prune"):
        layers = _layers(store)
        images = sorted(_images(store), key=lambda image: image.used)
        for image in _to_forget(images, layers, budget, time.time() - unused_for):
            image.file.unlink(missing_ok=True)
        count, freed = _sweep(store, layers, failed)
        put.forget(store)
        if caches:
            freed += _drop_caches(store, failed)
    tell(failed)
    return Pruned(count, freed, leftovers)


def images(store: Layers) -> list[Built]:
    """The images whose layers are there. Several names may stand for one image."""
    found: dict[str, Built] = {}
    for file in _notes(store):
        try:
            used, root = file.stat().st_mtime, msgspec.json.decode(file.read_bytes(), type=Layered)
        except (OSError, msgspec.DecodeError):  # pruned meanwhile, or of another version
            continue
        if root.layers and store.has(root.layers[0]) and (root.key not in found or found[root.key].used < used):
            metas = [store.meta(key) for key in root.layers]
            found[root.key] = Built(root.key, sum(meta.size for meta in metas), len(metas), used, metas[0].step)
    return list(found.values())


def _notes(store: Layers) -> list[Path]:
    folder = store.path / "images"
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _layers(store: Layers) -> dict[str, Meta]:
    folder = store.path / "layers"
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return {name: store.meta(name) for name in names}


def _images(store: Layers) -> list[_Image]:
    found: list[_Image] = []
    for file in _notes(store):
        try:
            root = msgspec.json.decode(file.read_bytes(), type=Layered)
            found.append(_Image(file, file.stat().st_mtime, frozenset(root.layers)))
        except FileNotFoundError:
            continue
        except msgspec.DecodeError:
            found.append(_Image(file, 0.0, frozenset()))
    return found


def _to_forget(images: list[_Image], layers: dict[str, Meta], budget: int | None, before: float) -> list[_Image]:
    """`images` are sorted, the longest unused first."""
    old = [image for image in images if image.used <= before]
    if budget is None:
        return old
    for count in range(len(old) + 1):
        kept = {key for image in (*old[count:], *(i for i in images if i.used > before)) for key in image.layers}
        if sum(layers[key].size for key in kept if key in layers) <= budget:
            return old[:count]
    return old


def _sweep(store: Layers, layers: dict[str, Meta], failed: list[str]) -> tuple[int, int]:
    """Remove layers that no image has and no layer stands on, until there is none."""
    wanted = {key for image in _images(store) for key in image.layers}
    # The layer of certificate authorities belongs to no image and lies on top of any; it is small
    # and stays.
    left = {key: meta for key, meta in layers.items() if meta.step != TRUST}
    count = freed = 0
    progress = True
    while progress:
        progress = False
        parents = {meta.parent for meta in left.values()}
        for key in [key for key in left if key not in wanted and key not in parents]:
            removed = False
            with going_on(failed):
                removed = _remove(store, key)
            count, freed = count + removed, freed + removed * left[key].size
            if removed:
                del left[key]
                progress = True
    return count, freed


def _remove(store: Layers, key: str) -> bool:
    held = try_lock(store.path / "locks" / key)
    if held is None:
        return False
    with held:
        if _is_wanted(store, key):
            return False
        return _remove_held(store, key)


def _is_wanted(store: Layers, key: str) -> bool:
    """Whether a build that ended a moment ago has given the layer to an image, or put another one on it."""
    if any(key in image.layers for image in _images(store)):
        return True
    return any(meta.parent == key for meta in _layers(store).values())


def _remove_held(store: Layers, key: str) -> bool:
    with store.scratch() as scratch:
        # At once: from here on nobody finds it, and a kill leaves it to `collect`.
        os.rename(store.path / "layers" / key, scratch / "layer")
    (store.path / "locks" / key).unlink(missing_ok=True)
    return True


def _drop_caches(store: Layers, failed: list[str]) -> int:
    freed = 0
    folder = store.path / "cache"
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if held := try_lock(store.path / "locks" / f"cache-{name}"):
            with held, going_on(failed):
                size = size_of(folder / name)
                remove_tree(folder / name)
                freed += size
    return freed
