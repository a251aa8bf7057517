"""What the commands need of the embedded engine beyond the Engine protocol: its image store, and its housekeeping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from openmodal._spec import Root
from openmodal.errors import UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers
    from openmodal.cli._session import Session
    from openmodal.engines.embedded import Embedded


@dataclass(frozen=True)
class Built:
    """An image in the store: `size` in bytes, of all its layers; `used` in seconds of the Unix clock."""

    key: str
    size: int
    layers: int
    used: float
    step: str


def of(session: Session) -> Embedded:
    """The engine, if it is the embedded one.

    Raises:
        UnsupportedError: it is another.
    """
    from openmodal.engines.embedded import Embedded

    if not isinstance(session.engine, Embedded):
        raise UnsupportedError(
            f"this command is for the embedded engine, not for {session.engine.name}; say --engine embedded"
        )
    return session.engine


class Keeper(Protocol):
    """An engine that can clear away what nobody looks after any more."""

    def gc(self, *, check: bool = False) -> Sequence[str]: ...


def keeper(session: Session) -> Keeper:
    """The engine, if it keeps house.

    Raises:
        UnsupportedError: it does not.
    """
    if hasattr(session.engine, "gc"):
        return cast("Keeper", session.engine)
    raise UnsupportedError(f"the {session.engine.name} engine leaves nothing behind that `gc` could remove")


def images(layers: Layers) -> list[Built]:
    """The images whose layers are there. Several names may stand for one image."""
    found: dict[str, Built] = {}
    for file in _notes(layers.path / "images"):
        try:
            used, root = file.stat().st_mtime, msgspec.json.decode(file.read_bytes(), type=Root)
        except (OSError, msgspec.DecodeError):  # pruned meanwhile, or of another version
            continue
        if root.layers and layers.has(root.layers[0]) and (root.key not in found or found[root.key].used < used):
            metas = [layers.meta(key) for key in root.layers]
            found[root.key] = Built(root.key, sum(meta.size for meta in metas), len(metas), used, metas[0].step)
    return list(found.values())


def _notes(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else ()
