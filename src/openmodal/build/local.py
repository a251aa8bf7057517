"""Local files on their way into an image: which ones, what they hash to, and copying them so that hash and copy are the same bytes.

What counts is what an image can tell: relative path, content, link target, and whether the owner may execute it. Other modes, owners
and times do not, so that two checkouts of one repository make one layer: files get 0644 or 0755, folders 0755.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal.build.names import digest
from openmodal.errors import ImageBuildError, InvalidError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers

SETTLED = 2.0  # seconds; a file may be written twice within one tick of its time stamps
_CHUNK = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """One file, folder or link. `name` is relative to the source, "" for the source itself; `link` is a link's target."""

    name: str
    path: str
    mode: int
    link: str = ""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int:
        """The mode that it has in an image."""
        return 0o755 if self.is_folder or self.mode & 0o100 else 0o644

    def described(self, content: str) -> list[str]:
        """What of it goes into a digest: bytes of names, which read alike in every locale."""
        name = _of_bytes(self.name)
        if self.is_folder:
            return [name, "folder"]
        if self.is_link:
            return [name, "link", _of_bytes(self.link)]
        return [name, oct(self.permissions), content]


class Scan(msgspec.Struct, frozen=True):
    """What a source consists of, sorted by name; parents come before children."""

    source: str
    entries: tuple[Entry, ...]

    def digest(self, store: Layers | None = None) -> str:
        """The content's hash. `store` remembers the hashes of files that have not changed since."""
        with _Memo(store, self.source) as memo:
            return digest(*[entry.described(_content(entry, memo)) for entry in self.entries])


def scan(source: str, ignore: tuple[str, ...] = ()) -> Scan:
    """Find what is to be copied; `ignore` are .dockerignore patterns relative to `source`.

    Raises:
        InvalidError: there is no such file, a pattern is wrong, or something is neither file, folder nor link.
    """
    try:
        info = os.stat(source)
    except OSError as error:
        raise InvalidError(f"{source!r} cannot be added to the image: {error.strerror}; check the path") from error
    if not stat.S_ISDIR(info.st_mode):
        return Scan(source, (_entry("", source, info),))
    found = [Entry("", source, info.st_mode)]
    _walk(source, "", _matcher(ignore), found)
    return Scan(source, tuple(sorted(found, key=lambda entry: os.fsencode(entry.name))))


class _Nothing:
    """The matcher of no patterns."""

    def matches(self, path: str) -> bool:
        return False

    def may_match_under(self, dir_path: str) -> bool:
        return False


def _matcher(ignore: tuple[str, ...]) -> Any:
    if not ignore:
        return _Nothing()
    from e2b_dockerfile_utils import PatternMatcher

    try:
        return PatternMatcher(list(ignore))
    except ValueError as error:
        raise InvalidError(f"ignore: {error}; use the patterns of a .dockerignore file") from error


def _walk(folder: str, prefix: str, matcher: Any, found: list[Entry]) -> None:
    with os.scandir(folder) as entries:
        for item in entries:
            name = prefix + item.name
            info = item.stat(follow_symlinks=False)
            ignored = matcher.matches(name)
            if not ignored:
                found.append(_entry(name, item.path, info))
            # A later `!pattern` may bring back something below an ignored folder.
            if stat.S_ISDIR(info.st_mode) and (not ignored or matcher.may_match_under(name)):
                _below(found, ignored, item.path, name, info, matcher)


def _below(found: list[Entry], ignored: bool, path: str, name: str, info: os.stat_result, matcher: Any) -> None:
    count = len(found)
    _walk(path, name + "/", matcher, found)
    if ignored and len(found) > count:
        found.append(Entry(name, path, info.st_mode))


def _entry(name: str, path: str, info: os.stat_result) -> Entry:
    if stat.S_ISLNK(info.st_mode):
        return Entry(name, path, info.st_mode, os.readlink(path))
    if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
        return Entry(name, path, info.st_mode)
    raise InvalidError(f"{path!r} is neither file, folder nor link; leave it out with ignore=")


# ---------------------------------------------------------------------------------------------------- content


def _content(entry: Entry, memo: _Memo) -> str:
    if not stat.S_ISREG(entry.mode):
        return ""
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"{entry.path!r} cannot be read: {error.strerror}") from error
    try:
        before = _identity(os.fstat(fd))
        known = memo.get(entry.name, before)
        if known is None:
            known = _hash(fd)
            memo.put(entry.name, before, _identity(os.fstat(fd)), known)
        return known
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
    """Copy one file, which must not exist, and return the hash of the bytes that were copied."""
    source = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            result = _hash(source, copy)
            os.fchmod(copy, mode)
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


# ---------------------------------------------------------------------------------------------------- memory


def _identity(info: os.stat_result) -> list[int]:
    """The change time cannot be set back, unlike the modification time."""
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


class _Memo:
    """Hashes of the files of one source, from the last time, for files that are still the same to `stat`."""

    def __init__(self, store: Layers | None, source: str) -> None:
        self._store = store
        self._name = "files-" + digest(os.path.abspath(source))[:32]
        self._known: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        self._learnt = False

    def __enter__(self) -> _Memo:
        if self._store is not None:
            self._known = self._store.note(self._name)
        return self

    def get(self, name: str, identity: list[int]) -> str | None:
        entry = self._known.get(_escaped(name))
        if not isinstance(entry, list) or entry[:-1] != identity:
            return None
        self._new[_escaped(name)] = entry
        return str(entry[-1])

    def put(self, name: str, before: list[int], after: list[int], content: str) -> None:
        # A file changed a moment ago may change again without its times moving: then nothing is remembered.
        if before == after and time.time() - before[-1] / 1e9 > SETTLED:
            self._new[_escaped(name)] = [*before, content]
            self._learnt = True

    def __exit__(self, *unused: object) -> None:
        if self._store is not None and self._learnt:
            self._store.set_note(self._name, self._new)


def _escaped(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _of_bytes(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def base_name(path: str) -> str:
    """The last component of a local path, also of one that ends in a slash."""
    return Path(path).name
