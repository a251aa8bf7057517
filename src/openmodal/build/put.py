"""Copying into a new layer: local files, and files of another image (COPY --from).

Folders on the way to a target are made with the modes that they have in the image below, which the
layer would hide. Links on the way (/bin) are followed in the image, or a folder would hide the
link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from openmodal._spec import Copy
from openmodal.build import local
from openmodal.build.local import Entry
from openmodal.build.merged import Found, Merged
from openmodal.build.names import DEEPEST
from openmodal.build.tar import MOST_ID
from openmodal.errors import ImageBuildError, InvalidError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers

_COPIED = "copied"

Facts = list[Any]
"""What two equal files have in common: hash, mode, owner, group, time."""


class Upper:
    """A layer being written over an image."""

    def __init__(self, root: str, below: tuple[str, ...]) -> None:
        self._root = root
        self._image = Merged((root, *below))
        # Folders that the image below does not have: nothing in them needs looking up.
        self._fresh: set[str] = set()

    def place(self, target: str, *, folder: bool, name: str, owner: tuple[int, int] = (0, 0)) -> str:
        """Where a source goes: into `target` if that is a folder. `owner` gets the parents."""
        into = not folder and (target.endswith("/") or self._is_folder(target))
        real, missing = self._image.resolve(f"{target}/{name}" if into else target)
        path = real
        for part in missing[:-1]:
            path = self.folder(f"{path.rstrip('/')}/{part}", owner=owner)
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

    def folder(self, path: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0), *, anew: bool = False) -> str:
        """Make a folder in the layer, with the mode and owner of the image's unless `anew`."""
        file = self._root + path
        found = self._look(path)
        if found is not None and not found.is_folder:
            raise ImageBuildError(f"{path!r} in the image is not a folder, so nothing can be copied below it")
        if found is not None and not anew:
            mode, owner = stat.S_IMODE(found.info.st_mode), (found.info.st_uid, found.info.st_gid)
        elif found is None:
            self._fresh.add(path)
        if not os.path.isdir(file):
            self._with_parents(path)
            os.mkdir(file)
        elif not anew:
            return path
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

    def link(self, path: str, target: str, owner: tuple[int, int], changed: int) -> None:
        """Make a symbolic link."""
        file = self.clear(path)
        os.symlink(target, file)
        own(file, owner)
        os.utime(file, ns=(changed, changed), follow_symlinks=False)

    def date(self, folder: str, changed: int) -> None:
        """Give a folder, now that all is in it, the time of its source."""
        os.utime(self._root + folder, ns=(changed, changed))


def own(file: str, owner: tuple[int, int], mode: int | None = None) -> None:
    """Set owner and mode. A plain user's files are all the user's; sandboxes see root."""
    if os.geteuid() == 0:
        os.chown(file, *owner, follow_symlinks=False)
    if mode is not None:
        os.chmod(file, mode)


def numbers(owner: str) -> tuple[int, int]:
    """ "uid:gid" as numbers."""
    user, _, group = owner.partition(":")
    values = [int(text) if text.isascii() and text.isdigit() else -1 for text in (user, group or user)]
    if any(not 0 <= value <= MOST_ID for value in values):
        raise InvalidError(
            f"the owner {owner!r} is not of the form uid:gid, with numbers up to {MOST_ID}, the last id of a sandbox"
        )
    return values[0], values[1]


class Earlier:
    """A source's files as they were last copied: an unchanged file is linked from that layer, not
    copied.

    Layers may share files, because no layer ever changes. Copies are noted once they are on the
    disk.
    """

    def __init__(self, store: Layers, step: Copy) -> None:
        self.store = store
        self._source = step.source
        self._base = ""
        self._folder = ""
        self._known: dict[str, Any] = {}
        self._new: dict[str, Facts] = {}

    @property
    def _note(self) -> str:
        return local.note_name(_COPIED, f"{self._source}\0{self._base}")

    def at(self, base: str) -> None:
        """Where in the layer the source goes."""
        self._base = local.escaped(base)
        note = self.store.note(self._note)
        self._known = note.get("files", {})
        self._folder = f"{self.store.folder(str(note.get('layer')))}{base}"

    def link(self, entry: Entry, facts: Facts, target: str) -> bool:
        """Link a file, if there is one with the same content, mode, owner and time."""
        if self._known.get(local.escaped(entry.name)) != facts:
            return False
        # Its layer is gone, or the file has as many links as there can be.
        with suppress(OSError):
            os.link(f"{self._folder}{_below(entry)}", target, follow_symlinks=False)
            return True
        return False

    def copied(self, entry: Entry, facts: Facts) -> None:
        """A file is in the new layer."""
        self._new[local.escaped(entry.name)] = facts

    def remember(self, layer: str) -> None:
        """The new layer is in the store; nothing is noted of one that was there before."""
        if self._new:
            self.store.set_note(self._note, {"layer": layer, "files": self._new})


def forget(store: Layers) -> None:
    """Drop what is noted of layers that are gone."""
    for file in store.notes(_COPIED):
        if not store.has(str(store.note(file).get("layer"))):
            store.drop_note(file)


def _below(entry: Entry) -> str:
    return f"/{entry.name}" if entry.name else ""


def copy_local(upper: Upper, step: Copy, expected: str, earlier: Earlier) -> None:
    """Copy what a step names; `expected` is the digest that the layer's key is made of.

    Raises:
        ImageBuildError: what was read is not what was hashed.
    """
    scan = local.scan_of(step)
    copying = _Copying(upper, step, scan, earlier)
    with local.Memo(earlier.store, step.source) as memo:
        copied = [copying.take(entry, memo.get(entry) or "") for entry in scan.entries]
    copying.date()
    if scan.digest_of(copied) != expected:
        raise local.changed(step.source)


class _Copying:
    """Copying from this machine. As in Docker, the content of a source folder is copied."""

    def __init__(self, upper: Upper, step: Copy, scan: local.Scan, earlier: Earlier) -> None:
        self._upper = upper
        self._step = step
        self._entries = scan.entries
        self._earlier = earlier
        self._owner = numbers(step.owner)
        folder, name = scan.entries[0].is_folder, local.base_name(step.source)
        self._base = upper.place(step.target, folder=folder, name=name, owner=self._owner).rstrip("/")
        earlier.at(self._base)

    def take(self, entry: Entry, content: str) -> list[str]:
        """Copy one file and describe it. `content` is the hash of its content, "" if unknown."""
        mode = entry.permissions if self._step.mode is None else self._step.mode
        path = f"{self._base}{_below(entry)}" or "/"
        if entry.is_folder:
            anew = self._step.keep and bool(entry.name)
            self._upper.folder(path, mode if entry.name else 0o755, self._owner, anew=anew)
        elif entry.is_link:
            self._upper.link(path, entry.link, self._owner, entry.changed)
        else:
            content = self._file(entry, self._upper.clear(path), mode, content)
        return entry.described(content)

    def _file(self, entry: Entry, file: str, mode: int, content: str) -> str:
        if not content or not self._earlier.link(entry, [content, mode, *self._owner, entry.changed], file):
            try:
                content = local.copy_file(entry, file, mode)
            except FileNotFoundError as error:
                raise local.changed(entry.path) from error
            own(file, self._owner, mode)
        self._earlier.copied(entry, [content, mode, *self._owner, entry.changed])
        return content

    def date(self) -> None:
        """Give folders the times of their sources, now that all is in them."""
        for entry in reversed(self._entries):
            if entry.is_folder and entry.name:
                self._upper.date(f"{self._base}{_below(entry)}", entry.changed)


def copy_image(upper: Upper, source: Merged, paths: Iterable[str], target: str, mode: int | None, owner: str) -> None:
    """Copy files of another image, keeping modes and times; owners, too, unless one is given."""
    taking = _Taking(upper, source, mode, numbers(owner) if owner else None)
    for path in paths:
        found = source.find(path)
        if found is None:
            raise ImageBuildError(f"there is no {path!r} in the stage that it is copied from")
        name = os.path.basename(path.rstrip("/"))
        base = upper.place(target, folder=found.is_folder, name=name, owner=taking.owner or (0, 0))
        if found.is_folder:
            taking.inside(found, upper.folder(base, 0o755, taking.owner or (0, 0)))
        else:
            taking.take(found, base)


class _Taking:
    """Copying from another image; hard links stay hard links."""

    def __init__(self, upper: Upper, source: Merged, mode: int | None, owner: tuple[int, int] | None) -> None:
        self._upper = upper
        self._source = source
        self._mode = mode
        self.owner = owner
        self._links: dict[tuple[int, int], str] = {}

    def inside(self, folder: Found, path: str) -> None:
        """Copy what is in a folder."""
        if path.count("/") > DEEPEST:
            raise ImageBuildError(f"{path[:80]!r}… lies deeper than {DEEPEST} folders; copy what is above it only")
        for child in self._source.children(folder):
            self.take(child, f"{path.rstrip('/')}/{os.path.basename(child.name)}")

    def take(self, found: Found, path: str) -> None:
        """Copy one file, or a folder with everything in it."""
        info = found.info
        owner = self.owner or (info.st_uid, info.st_gid)
        permissions = stat.S_IMODE(info.st_mode) if self._mode is None else self._mode
        if found.is_folder:
            self.inside(found, self._upper.folder(path, permissions, owner, anew=True))
            self._upper.date(path, info.st_mtime_ns)
        elif found.is_link:
            self._upper.link(path, os.readlink(found.file), owner, info.st_mtime_ns)
        elif stat.S_ISREG(info.st_mode):
            self._file(found, self._upper.clear(path), permissions, owner)

    def _file(self, found: Found, file: str, permissions: int, owner: tuple[int, int]) -> None:
        same = (found.info.st_dev, found.info.st_ino)
        if found.info.st_nlink > 1 and same in self._links:
            return os.link(self._links[same], file)
        identity = local.identity(found.info)
        local.copy_file(Entry("", found.file, found.info.st_mode, identity=identity), file, permissions)
        own(file, owner, permissions)
        _copy_attributes(found.file, file)
        self._links[same] = file
        return None


def _copy_attributes(source: str, target: str) -> None:
    """Copy extended attributes, of which capabilities are one. A plain user may not set all."""
    for name in os.listxattr(source):
        with suppress(PermissionError):
            os.setxattr(target, name, os.getxattr(source, name))
