"""Published images: names that people gave to images of the store. Such an image is kept until its
name is deleted.

    published/<name>.json    the image's key, and its file in `images/` (layers.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from openmodal._spec import Layered
from openmodal.build.layers import Layers
from openmodal.build.names import of_snapshot
from openmodal.errors import EngineError


class _Entry(msgspec.Struct, frozen=True):
    key: str
    image: str


def publish(store: Layers, name: str, root: Layered) -> None:
    """Give an image that name; the image that had it loses it. Durable when it returns.

    Raises:
        EngineError: the image is not there any more.
    """
    image = of_snapshot(root.key, store)
    entry = msgspec.json.encode(_Entry(root.key, image))
    with store.guard("prune"):  # which keeps the image only when it has the name
        if not store.has(root.layers[0]):
            raise EngineError("the image was pruned a moment ago; publish it again")
        store.remember(image, root)
        store.sync_names(image)
        store.write(store.path / "published" / f"{name}.json", entry, durable=True)


def find(store: Layers, name: str) -> str:
    """The key of the image of that name; "" if there is none."""
    return names(store).get(name, "")


def delete(store: Layers, name: str) -> bool:
    """Forget a name; whether it was there. The image goes with the next prune."""
    with suppress(FileNotFoundError):
        (store.path / "published" / f"{name}.json").unlink()
        return True
    return False


def names(store: Layers) -> dict[str, str]:
    """The keys of published images by their names."""
    return {file.stem: entry.key for file, entry in _entries(store)}


def images(store: Layers) -> set[str]:
    """The names of the files in `images/` that are to be kept."""
    return {entry.image for _, entry in _entries(store)}


def _entries(store: Layers) -> Iterator[tuple[Path, _Entry]]:
    folder = store.path / "published"
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        with suppress(FileNotFoundError, msgspec.DecodeError):  # deleted meanwhile
            yield file, msgspec.json.decode(file.read_bytes(), type=_Entry)
