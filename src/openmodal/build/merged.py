"""The files of an image as its sandboxes will see them, read from the layers without mounting
anything.

Paths are resolved here, component by component and inside the image, links included: a link to
/etc/passwd means the image's.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import NamedTuple

from openmodal.errors import ImageBuildError

_LINKS = 40  # as the kernel's MAXSYMLINKS
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


class Found(NamedTuple):
    """A path in the image: `name` after all links, and the layer's file that it is."""

    name: str
    file: str
    info: os.stat_result

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.info.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.info.st_mode)


class Merged:
    """Layers, topmost first, as one tree."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self._layers = layers

    def find(self, path: str, *, follow: bool = True) -> Found | None:
        """What is at an absolute path, or None. A final link is followed unless told otherwise."""
        name, rest = self.resolve(path, follow=follow)
        return None if rest else self._at(name)

    def resolve(self, path: str, *, follow: bool = True) -> tuple[str, tuple[str, ...]]:
        """Follow a path as far as it exists: the real name of that part, and the missing
        components.

        Raises:
            ImageBuildError: the links loop, or something in the middle of the path is no folder.
        """
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        name = ""
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                name = name.rpartition("/")[0]
                continue
            found = self._at(f"{name}/{part}")
            if found is None:
                return name or "/", (part, *(p for p in reversed(pending) if p != ".."))
            if found.is_link and (pending or follow):
                links += 1
                target = os.readlink(found.file)
                if links > _LINKS:
                    raise ImageBuildError(f"{path!r} in the image is a loop of symbolic links")
                name = "" if target.startswith("/") else name
                pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
                continue
            if pending and not found.is_folder:
                raise ImageBuildError(f"{found.name!r} in the image is not a folder, so there is no {path!r}")
            name = found.name
        return name or "/", ()

    def children(self, found: Found) -> list[Found]:
        """What is in a folder, sorted."""
        names: set[str] = set()
        for layer in self._visible(found.name):
            with suppress(NotADirectoryError, FileNotFoundError):
                names.update(os.listdir(layer + found.name))
        below = (self._at(f"{found.name.rstrip('/')}/{name}") for name in sorted(names))
        return [child for child in below if child is not None]

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first bytes of a regular file, b"" if there is none."""
        found = self.find(path)
        if found is None or not stat.S_ISREG(found.info.st_mode):
            return b""
        with open(found.file, "rb") as file:
            return file.read(limit)

    def _at(self, name: str) -> Found | None:
        """`name` has no links in its folders."""
        for layer in self._visible(name):
            try:
                info = os.lstat(layer + name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            return None if is_whiteout(info) else Found(name, layer + name, info)
        return None

    def _visible(self, name: str) -> list[str]:
        """The layers that can have a name: down to the first that hides those below."""
        visible: list[str] = []
        parents = _prefixes(name)
        for layer in self._layers:
            visible.append(layer)
            if any(_hides(layer + parent) for parent in parents):
                break
        return visible


def _prefixes(name: str) -> list[str]:
    parts = name.strip("/").split("/")
    return ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))] if parts != [""] else []


def is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _hides(file: str) -> bool:
    """Whether lower layers are hidden below a name: it is no folder here, or an opaque one."""
    try:
        info = os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISDIR(info.st_mode) or is_opaque(file)


def is_opaque(folder: str) -> bool:
    """Whether a folder of a layer replaces those of the layers below."""
    for name in _OPAQUE:
        with suppress(OSError):
            if os.getxattr(folder, name, follow_symlinks=False) == b"y":
                return True
    return False
