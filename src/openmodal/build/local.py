"""Local files on their way into an image: which ones, what they hash to, and copying them so that
hash and copy are the same bytes.

What counts is what an image can tell: relative path, content, link target, and whether the owner
may execute it. Other modes and owners do not, so that two checkouts of one repository make one
layer: files get 0644 or 0755, folders 0755. COPY in Dockerfiles keeps modes, as Docker does. Times
of change are kept, but do not count. Sockets, FIFOs and devices in a folder are left out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal import _planted
from openmodal._spec import Copy
from openmodal.build.names import DEEPEST, digest
from openmodal.errors import ImageBuildError, InvalidError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers

SETTLED = 2.0  # seconds; a file may be written twice within one tick of its time stamps
_CHUNK = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """One file, folder or link. `name` is relative to the source, "" for the source itself; `mode`
    is what it has in an image.

    `link` is a link's target. `identity` tells whether it is still the same file.
    """

    name: str
    path: str
    mode: int
    link: str = ""
    identity: tuple[int, ...] = ()

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int:
        """The mode without the kind of file."""
        return stat.S_IMODE(self.mode)

    @property
    def changed(self) -> int:
        """When its content changed, in nanoseconds."""
        return self.identity[3]

    def described(self, content: str) -> list[str]:
        """What of it goes into a digest: bytes of names, which read alike in every locale."""
        name = _of_bytes(self.name)
        if self.is_folder:
            return [name, "folder", *([oct(self.permissions)] if self.permissions != 0o755 else [])]
        if self.is_link:
            return [name, "link", _of_bytes(self.link)]
        return [name, oct(self.permissions), content]


class Scan(msgspec.Struct, frozen=True):
    """What a source consists of, sorted by name; parents come before children.

    `name` is that of a file which keeps it in an image. `left_out` are paths of what is neither
    file, folder nor link.
    """

    source: str
    entries: tuple[Entry, ...]
    name: str = ""
    left_out: tuple[str, ...] = ()

    def digest(self, store: Layers | None = None) -> str:
        """The content's hash. `store` remembers the hashes of files that have not changed since."""
        with Memo(store, self.source) as memo:
            return self.digest_of(entry.described(_content(entry, memo)) for entry in self.entries)

    def digest_of(self, described: Iterable[list[str]]) -> str:
        """The hash of descriptions of all entries."""
        return digest(*described, *([self.name] if self.name else []))

    @property
    def remark(self) -> str:
        """A line about what is left out, "" for nothing."""
        return (
            f"left out, because it is neither file, folder nor link: {', '.join(self.left_out)}\n"
            if self.left_out
            else ""
        )


def scan_of(step: Copy) -> Scan:
    """Find what a step copies."""
    found = scan(step.source, step.ignore, keep=step.keep, below=step.below)
    name = base_name(step.source)
    keeps_name = step.target.endswith("/") and not found.entries[0].is_folder
    return msgspec.structs.replace(found, name=name) if keeps_name else found


def scan(source: str, ignore: tuple[str, ...] = (), *, keep: bool = False, below: str = "") -> Scan:
    """Find what is to be copied.

    Args:
        source: a file or folder.
        ignore: .dockerignore patterns, relative to the folder that `source` is `below` in.
        keep: modes stay as they are.
        below: where `source` is in that folder.

    Raises:
        InvalidError: there is no such file, a link from a sandbox leads to it, a pattern is wrong,
            or the source itself is neither file nor folder.
    """
    real = _planted.refuse(Path(source))
    try:
        info = os.stat(source)
    except OSError as error:
        raise InvalidError(f"{source!r} cannot be added to the image: {error.strerror}; check the path") from None
    if real and (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        fd = _same(source, identity(info), 0)
        _planted.stay(real, fd)
        os.close(fd)
    walk = _Walk(matcher(ignore), keep)
    if not stat.S_ISDIR(info.st_mode):
        walk.add("", source, info)
        if walk.left_out:
            raise InvalidError(f"{source!r} is neither file, folder nor link, so it cannot be added to an image")
        return Scan(source, tuple(walk.found))
    walk.add("", source, info)
    walk.into(source, info, "", f"{below}/" if below else "")
    return Scan(
        source,
        tuple(sorted(walk.found, key=lambda entry: os.fsencode(entry.name))),
        left_out=tuple(sorted(walk.left_out)),
    )


class _Nothing:
    """The matcher of no patterns."""

    def matches(self, path: str) -> bool:
        return False

    def may_match_under(self, dir_path: str) -> bool:
        return False


def matcher(ignore: tuple[str, ...]) -> Any:
    """What tells of each path whether patterns of .dockerignore leave it out."""
    if not ignore:
        return _Nothing()
    from e2b_dockerfile_utils import PatternMatcher

    try:
        return PatternMatcher(list(ignore))
    except ValueError as error:
        raise InvalidError(f"ignore: {error}; use the patterns of a .dockerignore file") from error


class _Walk:
    """Going through a folder."""

    def __init__(self, matcher: Any, keep: bool) -> None:
        self._matcher = matcher
        self._keep = keep
        self.found: list[Entry] = []
        self.left_out: list[str] = []

    def into(self, folder: str, known: os.stat_result, prefix: str, below: str) -> None:
        """Take what is in a folder; `prefix` is its name from the source on, `below` from where patterns count."""
        if prefix.count("/") > DEEPEST:
            raise InvalidError(f"{folder[:80]!r}… lies deeper than {DEEPEST} folders; leave it out with ignore=")
        for name, info in _listed(folder, known, prefix):
            path = os.path.join(folder, name)
            ignored = self._matcher.matches(below + name)
            if not ignored:
                self.add(prefix + name, path, info)
            # A later `!pattern` may bring back something below an ignored folder.
            if stat.S_ISDIR(info.st_mode) and (not ignored or self._matcher.may_match_under(below + name)):
                count = len(self.found)
                self.into(path, info, f"{prefix}{name}/", f"{below}{name}/")
                if ignored and len(self.found) > count:
                    self.add(prefix + name, path, info)

    def add(self, name: str, path: str, info: os.stat_result) -> None:
        """Take one."""
        kind, mode = stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode)
        if not self._keep:
            mode = 0o755 if kind == stat.S_IFDIR or mode & 0o100 else 0o644
        if kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            link = os.readlink(path) if kind == stat.S_IFLNK else ""
            self.found.append(Entry(name, path, kind | mode, link, identity(info)))
        else:
            self.left_out.append(path)


# ------------------------------------------------------------------------------------------ content


def _same(path: str, known: tuple[int, ...], flags: int) -> int:
    """Open what was found at a path, and nothing that took its place since.

    Whoever else writes to the folder, as a sandbox may that was given it, could put a link to
    another file of this machine there, or a pipe.

    Raises:
        ImageBuildError: it is something else now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise changed(path) from error
        raise
    if identity(os.fstat(fd))[:2] == known[:2]:
        return fd
    os.close(fd)
    raise changed(path)


def _unless_source(name: str) -> int:
    """A link is followed only if the caller named it."""
    return os.O_NOFOLLOW if name else 0


def _listed(folder: str, known: os.stat_result, prefix: str) -> list[tuple[str, os.stat_result]]:
    fd = _same(folder, identity(known), os.O_DIRECTORY | _unless_source(prefix))
    try:
        with os.scandir(fd) as entries:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    finally:
        os.close(fd)


def opened(entry: Entry) -> int:
    """Open a file that was found.

    Raises:
        ImageBuildError: something else took its place.
    """
    return _same(entry.path, entry.identity, _unless_source(entry.name))


def _content(entry: Entry, memo: Memo) -> str:
    if not stat.S_ISREG(entry.mode):
        return ""
    if known := memo.get(entry):
        return known
    try:
        fd = opened(entry)
    except OSError as error:
        raise InvalidError(f"{entry.path!r} cannot be read: {error.strerror}") from error
    try:
        before = identity(os.fstat(fd))
        content = _hash(fd)
        memo.put(entry.name, before, identity(os.fstat(fd)), content)
        return content
    finally:
        os.close(fd)


def _hash(fd: int, copy_to: int = -1) -> str:
    hasher = hashlib.sha256()
    while data := os.read(fd, _CHUNK):
        hasher.update(data)
        while copy_to >= 0 and data:
            data = data[os.write(copy_to, data) :]
    return hasher.hexdigest()


def copy_file(entry: Entry, target: str, mode: int) -> str:
    """Copy one file with its time to a name that is free, and return the hash of the bytes that were copied."""
    source = opened(entry)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            result = _hash(source, copy)
            os.fchmod(copy, mode)
            os.utime(copy, ns=(entry.changed, entry.changed))
        finally:
            os.close(copy)
    finally:
        os.close(source)
    return result


def changed(source: str) -> ImageBuildError:
    """The error for files that are not what was hashed."""
    return ImageBuildError(
        f"{source!r} changed while it was added to the image; build again when nothing writes to it",
        step=f"COPY {os.path.basename(source)}",
    )


# ------------------------------------------------------------------------------------------- memory


def identity(info: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does. The change time cannot be set back, unlike the modification time."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


class Memo:
    """Hashes of the files of one source, from the last time, for files that are still the same to `stat`."""

    def __init__(self, store: Layers | None, source: str) -> None:
        self._store = store
        self._name = note_name("files", source)
        self._known: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        self._learnt = False

    def __enter__(self) -> Memo:
        if self._store is not None:
            self._known = self._store.note(self._name)
        return self

    def get(self, entry: Entry) -> str | None:
        """The hash of a file that has not changed since."""
        known = self._known.get(name := escaped(entry.name))
        if not isinstance(known, list) or tuple(known[:-1]) != entry.identity:
            return None
        self._new[name] = known
        return str(known[-1])

    def put(self, name: str, before: tuple[int, ...], after: tuple[int, ...], content: str) -> None:
        """Remember the hash of a file that was read."""
        # A file changed a moment ago may change again without its times moving: then nothing is
        # remembered.
        if before == after and time.time() - before[-1] / 1e9 > SETTLED:
            self._new[escaped(name)] = [*before, content]
            self._learnt = True

    def __exit__(self, *unused: object) -> None:
        if self._store is not None and self._learnt:
            self._store.set_note(self._name, self._new)


def note_name(kind: str, source: str) -> str:
    """The name of what is noted of a source."""
    return f"{kind}-{digest(os.path.abspath(source))[:32]}"


def escaped(name: str) -> str:
    """A file's name as UTF-8, which notes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _of_bytes(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def base_name(path: str) -> str:
    """The last component of a local path, also of one that ends in a slash."""
    return Path(path).name
