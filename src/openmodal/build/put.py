"""Copying into a new layer: local files, and files of another image (COPY --from).

The layer's folders on the way to a target are made as they are in the image below, or they would hide its modes; links on the way
are followed in the image, or a folder would hide the link (/bin).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from openmodal._spec import Copy
from openmodal.build import local
from openmodal.build.local import Entry
from openmodal.build.merged import Found, Merged
from openmodal.build.names import digest
from openmodal.errors import ImageBuildError, InvalidError


class Upper:
    """A layer being written over an image."""

    def __init__(self, root: str, below: tuple[str, ...]) -> None:
        self._root = root
        self._image = Merged((root, *below))
        self._fresh: set[str] = set()  # folders that the image below does not have: nothing in them needs looking up

    def place(self, target: str, *, folder: bool, name: str) -> str:
        """Where a source called `name` really goes: into `target` if that is a folder, with its parents made."""
        into = not folder and (target.endswith("/") or self._is_folder(target))
        real, missing = self._image.resolve(f"{target}/{name}" if into else target)
        path = real
        for part in missing[:-1]:
            path = self.folder(f"{path.rstrip('/')}/{part}")
        return self._with_parents(f"{path.rstrip('/')}/{missing[-1]}" if missing else path)

    def _look(self, path: str) -> Found | None:
        """What is at a path whose folders have no links."""
        if os.path.dirname(path) in self._fresh and not os.path.lexists(self._root + path):
            return None
        return self._image.find(path, follow=False)

    def _is_folder(self, path: str) -> bool:
        found = self._image.find(path)
        return found is not None and found.is_folder

    def _with_parents(self, path: str) -> str:
        parent = os.path.dirname(path)
        if parent != path and not os.path.isdir(self._root + parent):
            self.folder(self._with_parents(parent))
        return path

    def folder(self, path: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> str:
        """Make a folder in the layer; one that the image has keeps its mode and owner."""
        file = self._root + path
        found = self._look(path)
        if found is not None and not found.is_folder:
            raise ImageBuildError(f"{path!r} in the image is not a folder, so nothing can be copied below it")
        if found is not None:
            mode, owner = stat.S_IMODE(found.info.st_mode), (found.info.st_uid, found.info.st_gid)
        else:
            self._fresh.add(path)
        if not os.path.isdir(file):
            self._with_parents(path)
            os.mkdir(file)
            own(file, owner, mode)
        return path

    def clear(self, path: str) -> str:
        """Make room for something that is no folder; returns the file's name here."""
        found = self._look(path)
        if found is not None and found.is_folder:
            raise ImageBuildError(f"{path!r} in the image is a folder; a file cannot take its place")
        with suppress(FileNotFoundError):
            os.unlink(self._root + path)
        return self._root + path

    def link(self, path: str, target: str, owner: tuple[int, int]) -> None:
        """Make a symbolic link."""
        file = self.clear(path)
        os.symlink(target, file)
        own(file, owner)


def own(file: str, owner: tuple[int, int], mode: int | None = None) -> None:
    """Set owner and mode. A plain user's files are all the user's, which its sandboxes see as root's."""
    if os.geteuid() == 0:
        os.chown(file, *owner, follow_symlinks=False)
    if mode is not None:
        os.chmod(file, mode)


def numbers(owner: str) -> tuple[int, int]:
    """ "uid:gid" as numbers."""
    user, _, group = owner.partition(":")
    values = [int(text) if text.isascii() and text.isdigit() else -1 for text in (user, group or user)]
    if any(not 0 <= value < 1 << 31 for value in values):
        raise InvalidError(f"the owner {owner!r} is not of the form uid:gid, with numbers below 2147483648")
    return values[0], values[1]


def copy_local(upper: Upper, step: Copy, expected: str) -> None:
    """Copy what a step names; `expected` is the digest that the layer's key is made of.

    Raises:
        ImageBuildError: what was read is not what was hashed.
    """
    scan = local.scan(step.source, step.ignore)
    owner = numbers(step.owner)
    name = local.base_name(step.source)
    base = upper.place(step.target, folder=scan.entries[0].is_folder, name=name)
    copied = [
        _copy_entry(upper, entry, f"{base.rstrip('/')}/{entry.name}".rstrip("/") or "/", step.mode, owner)
        for entry in scan.entries
    ]
    if digest(*copied) != expected:
        raise local.changed(step.source)


def _copy_entry(upper: Upper, entry: Entry, path: str, mode: int | None, owner: tuple[int, int]) -> list[str]:
    content = ""
    if entry.is_folder:
        upper.folder(path, owner=owner)
    elif entry.is_link:
        upper.link(path, entry.link, owner)
    else:
        file = upper.clear(path)
        try:
            content = local.copy_file(entry, file, entry.permissions if mode is None else mode)
        except FileNotFoundError as error:
            raise local.changed(entry.path) from error
        own(file, owner, entry.permissions if mode is None else mode)
    return entry.described(content)


def copy_image(upper: Upper, source: Merged, paths: Iterable[str], target: str, mode: int | None, owner: str) -> None:
    """Copy files of another image, keeping modes; owners, too, unless one is given."""
    for path in paths:
        found = source.find(path)
        if found is None:
            raise ImageBuildError(f"there is no {path!r} in the stage that it is copied from")
        base = upper.place(target, folder=found.is_folder, name=os.path.basename(path.rstrip("/")))
        _copy_found(upper, source, found, base, mode, numbers(owner) if owner else None)


def _copy_found(
    upper: Upper, source: Merged, found: Found, path: str, mode: int | None, owner: tuple[int, int] | None
) -> None:
    info = found.info
    own_as = owner or (info.st_uid, info.st_gid)
    if found.is_folder:
        upper.folder(path, stat.S_IMODE(info.st_mode), own_as)
        for child in source.children(found):
            name = os.path.basename(child.name)
            _copy_found(upper, source, child, f"{path.rstrip('/')}/{name}", mode, owner)
    elif found.is_link:
        upper.link(path, os.readlink(found.file), own_as)
    elif stat.S_ISREG(info.st_mode):
        file = upper.clear(path)
        permissions = stat.S_IMODE(info.st_mode) if mode is None else mode
        local.copy_file(Entry("", found.file, info.st_mode), file, permissions)
        own(file, own_as, permissions)
