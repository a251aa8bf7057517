"""Making room: images that nobody has used for a while are forgotten, then the layers that no image
has, from the top down.

A layer is removed only under its exclusive lock, so never while a build or a sandbox holds it, and
never before the layers that stand on it, so that one look at the topmost layer tells that an image
is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from openmodal._spec import Built, BuiltStep, Layer, Layered
from openmodal._trash import going_on, tell
from openmodal._trash import remove as remove_tree
from openmodal.build import published, put
from openmodal.build.base import TRUST
from openmodal.build.layers import Layers, Meta, size_of
from openmodal.build.locks import try_lock
from openmodal.build.names import of_snapshot
from openmodal.errors import NotFoundError


class Pruned(msgspec.Struct, frozen=True):
    """What went: layers, their bytes, and leftovers of killed builds."""

    layers: int
    bytes: int
    leftovers: int


class Prunable(msgspec.Struct, frozen=True):
    """What a prune would remove: images, and the bytes of their layers that no other image has;
    None where the engine does not tell layers."""

    images: tuple[Built, ...]
    bytes: int | None


def prunable(images: Sequence[Built], in_use: Container[str], unused_for: float) -> Prunable:
    """What of these images would go, of which some are in use, by key."""
    now = time.time()
    due = tuple(i for i in images if i.key not in in_use and not i.names and is_due(i.used, i.expires, unused_for, now))
    kept = {layer.key for image in images if image not in due for layer in image.stack}
    freed = {layer.key: layer.size for image in due for layer in image.stack if layer.key not in kept}
    return Prunable(due, sum(freed.values()) if all(image.stack for image in due) else None)


def is_due(used: float, expires: float, unused_for: float, now: float) -> bool:
    """Whether an image without a name goes: one that nobody has used for so long, or a snapshot
    that has expired, used or not; a snapshot that has not stays."""
    return expires <= now if expires else used <= now - unused_for


class _Image(msgspec.Struct, frozen=True):
    """`top` is the topmost layer; "": the file cannot be read."""

    file: Path
    used: float
    layers: frozenset[str]
    top: str = ""


def prune(store: Layers, *, budget: int | None = None, unused_for: float = 0.0, caches: bool = False) -> Pruned:
    """Remove images that have not been used for `unused_for` seconds, and what belonged to them
    only.

    Args:
        budget: keep layers of at most so many bytes: go on with the images that were used least
            recently, until they fit. With a budget, nothing is removed while everything fits.
        caches: the folders of package downloads, too.

    A snapshot cannot be made again, so it stays until it expires, whatever was used; a published
    image stays until its name is deleted. Safe at any time, from many processes. What is in use
    stays, and is tried again by the next call.

    Raises:
        EngineError: something could not be removed; all else is.
    """
    failed: list[str] = []
    leftovers = store.collect(failed)
    with store.guard("prune"):
        layers = _layers(store)
        images = sorted(_images(store), key=lambda image: image.used)
        free = [image for image in images if not _stays(store, image, layers)]
        kept = [image for image in images if image not in free]
        for image in _to_forget(free, kept, layers, budget, unused_for):
            image.file.unlink(missing_ok=True)
        count, freed = _sweep(store, layers, failed)
        put.forget(store)
        if caches:
            freed += _drop_caches(store, failed)
    tell(failed)
    return Pruned(count, freed, leftovers)


def expire(store: Layers, *, check: bool = False, failed: list[str] | None = None) -> list[str]:
    """Remove the snapshots whose time is over, and those that no image has because their makers
    were killed; return their keys.

    `check`: only tell. What could not be removed is noted in `failed`.
    """
    with store.guard("prune"):
        layers = _layers(store)
        snapshots = {key: meta for key, meta in layers.items() if meta.expires}
        images = _images(store) if snapshots else []
        over = [image for image in images if image.top in snapshots and not _stays(store, image, layers)]
        if check:
            wanted = {key for image in images if image not in over for key in image.layers}
            return sorted(set(snapshots) - wanted - _below_held(store, layers))
        for image in over:
            image.file.unlink(missing_ok=True)
        _sweep(store, snapshots, [] if failed is None else failed)
        _drop_locks(store)
        # By its place: a layer that is just being frozen has no files yet.
        return [key for key in snapshots if not store.place(key).exists()]


def _drop_locks(store: Layers) -> None:
    """Remove the locks of layers that were never made, or are gone, if nobody holds them."""
    for file in (store.path / "locks").glob("?*"):
        # What failed is noted in the lock, for those that wait for the same.
        if not store.place(file.name).exists() and (held := try_lock(file)):
            with held:
                if not os.fstat(held.fd).st_size:
                    file.unlink(missing_ok=True)


def drop(store: Layers, keys: Iterable[str]) -> None:
    """Remove snapshots, given from the newest on, before they expire. What something stands on, or
    uses, stays until then."""
    with store.guard("prune"):
        for key in keys:
            held = try_lock(store.path / "locks" / key)
            if not held:
                continue
            with held:
                if store.has(key) and not any(meta.parent == key for meta in _layers(store).values()):
                    store.forget(of_snapshot(key, store))
                    _remove_held(store, key)


def _below_held(store: Layers, layers: dict[str, Meta]) -> set[str]:
    """The layers that somebody holds, or that one stands on which somebody holds."""
    found: set[str] = set()
    for top in layers:
        if held := try_lock(store.path / "locks" / top):
            held.close()
            continue
        key = top
        while (meta := layers.get(key)) and key not in found:
            found.add(key)
            key = meta.parent
    return found


def _stays(store: Layers, image: _Image, layers: dict[str, Meta]) -> bool:
    """Whether an image is kept, however long nobody has used it."""
    return _expires(image, layers) > time.time() or image.file.stem in published.images(store)


def _expires(image: _Image, layers: dict[str, Meta]) -> float:
    return layers[image.top].expires if image.top in layers else 0.0


def images(store: Layers) -> list[Built]:
    """The images whose layers are there. Several names may stand for one image."""
    names, found = published.names(store), dict[str, Built]()
    for file in _notes(store):
        try:
            used, root = file.stat().st_mtime, msgspec.json.decode(file.read_bytes(), type=Layered)
        except (OSError, msgspec.DecodeError):  # pruned meanwhile, or of another version
            continue
        if root.layers and store.has(root.layers[0]) and (root.key not in found or found[root.key].used < used):
            metas = [store.meta(key) for key in root.layers]
            stack = tuple(Layer(m.step, m.size, m.made, key) for key, m in zip(root.layers, metas, strict=True))
            size, mine = sum(meta.size for meta in metas), tuple(sorted(n for n in names if names[n] == root.key))
            found[root.key] = Built(root.key, size, len(metas), used, metas[0].step, metas[0].expires, mine, stack)
    return list(found.values())


def history(store: Layers, key: str) -> list[BuiltStep]:
    """The layers of an image, the last one first.

    Raises:
        NotFoundError: there is no image of that key.
    """
    for file in _notes(store):
        with suppress(OSError, msgspec.DecodeError):  # pruned meanwhile, or of another version
            root = msgspec.json.decode(file.read_bytes(), type=Layered)
            if root.key == key:
                metas = [store.meta(layer) for layer in root.layers]
                return [BuiltStep(meta.step, meta.size, meta.made) for meta in metas]
    raise NotFoundError(f"there is no image {key!r}; `openmodal image list` shows those that are built")


def _notes(store: Layers) -> list[Path]:
    folder = store.path / "images"
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _layers(store: Layers) -> dict[str, Meta]:
    folder = store.path / "layers"
    found: dict[str, Meta] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        # A snapshot that cannot be taken in place takes its layer back, without the guard.
        with suppress(FileNotFoundError):
            found[name] = store.meta(name)
    return found


def _images(store: Layers) -> list[_Image]:
    found: list[_Image] = []
    for file in _notes(store):
        try:
            root = msgspec.json.decode(file.read_bytes(), type=Layered)
            top = root.layers[0] if root.layers else ""
            found.append(_Image(file, file.stat().st_mtime, frozenset(root.layers), top))
        except FileNotFoundError:
            continue
        except msgspec.DecodeError:
            found.append(_Image(file, 0.0, frozenset()))
    return found


def _to_forget(
    images: list[_Image], staying: list[_Image], layers: dict[str, Meta], budget: int | None, unused_for: float
) -> list[_Image]:
    """`images` are sorted, the longest unused first."""
    now = time.time()
    old = [image for image in images if is_due(image.used, _expires(image, layers), unused_for, now)]
    if budget is None:
        return old
    staying = [*staying, *(image for image in images if image not in old)]
    for count in range(len(old) + 1):
        kept = {key for image in (*old[count:], *staying) for key in image.layers}
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
