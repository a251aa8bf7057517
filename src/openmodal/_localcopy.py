"""The local side of copying: a tree of this machine read as entries, and entries from a sandbox
written as a tree.

What comes from a sandbox is hostile, and so is what came from one before: a local name may be a
link that a sandbox chose. Every name is one plain component per level, every step is taken relative
to an open folder, the last name that the caller gave is not followed either, nor a link from a
sandbox on the way to it, and the result is put in place only when it is complete.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from openmodal import _halfmade, _planted
from openmodal._wire import Entry
from openmodal.errors import (
    OTHER_DISK,
    InvalidError,
    ProtocolError,
    SandboxFilesystemError,
    disk_full_named,
    too_large,
)

_PIECE = 512 * 1024
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

DEEPEST = 256
"""Folders in folders: each level of what is copied holds a descriptor."""

PER_ENTRY = 4096
"""What a file, folder or link is counted as, beside its content."""

_LONGEST = (1 << 62) - 1
_NAMELESS_MODE = 0o644  # a temporary file's own is for us only
_MADE = "made"
_NAME_ITS_TARGET = "give the path that it leads to (os.path.realpath)"


def no_copy() -> InvalidError:
    """What was asked for is of another kind than a copy can have."""
    return InvalidError("only files, folders and links can be copied; this is a device, pipe or socket")


def entries(source: Path | IO[bytes]) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    """Yield what a local file or folder consists of, parents first; a file comes with its open
    content. Of an open file, which needs no name, that is all.

    Raises:
        InvalidError: there is nothing at `source`, it is a link, or a link from a sandbox leads
            there; it is neither file nor folder, or its folders are too deep.
    """
    if not isinstance(source, Path):
        yield _entry("f", os.fstat(source.fileno()), b"")._replace(mode=_NAMELESS_MODE), source
        return
    folder = _planted.refuse(source.parent)
    try:
        kind = os.lstat(source).st_mode
        if stat.S_ISLNK(kind):
            raise InvalidError(f"{os.fspath(source)!r} is a link, which is not followed; {_NAME_ITS_TARGET}")
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InvalidError(f"{os.fspath(source)!r} is neither a file nor a folder; only those can be copied")
        fd = os.open(source, _OPEN_FOLDER if stat.S_ISDIR(kind) else _OPEN_FILE)
    except OSError as error:
        raise InvalidError(f"{os.fspath(source)!r} cannot be copied: {error.strerror}; check the path") from None
    _planted.stay(folder and os.path.join(folder, source.name), fd)
    yield from _folder(fd, b"") if stat.S_ISDIR(kind) else _file(fd, b"")


def _folder(fd: int, name: bytes) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    try:
        yield _entry("d", os.fstat(fd), name), None
        if name.count(b"/") >= DEEPEST:
            raise InvalidError(
                f"{os.fsdecode(name)[:80]!r}… lies deeper than {DEEPEST} folders; pack it with tar first"
            )
        for child in sorted(map(os.fsencode, os.listdir(fd))):
            yield from _child(fd, child, name + b"/" + child if name else child)
    finally:
        os.close(fd)


def _child(folder: int, child: bytes, name: bytes) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    info = os.lstat(child, dir_fd=folder)
    if stat.S_ISLNK(info.st_mode):
        yield _entry("l", info, name, os.readlink(child, dir_fd=folder)), None
    elif stat.S_ISDIR(info.st_mode):
        yield from _folder(os.open(child, _OPEN_FOLDER, dir_fd=folder), name)
    elif stat.S_ISREG(info.st_mode):
        yield from _file(os.open(child, _OPEN_FILE, dir_fd=folder), name)


def _file(fd: int, name: bytes) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    with os.fdopen(fd, "rb") as file:
        yield _entry("f", os.fstat(fd), name), file


def _entry(kind: str, info: os.stat_result, name: bytes, target: bytes = b"") -> Entry:
    size = info.st_size if kind == "f" else 0
    return Entry(kind, stat.S_IMODE(info.st_mode), 0, 0, size, info.st_mtime_ns, name, target)


def is_sparse(file: IO[bytes]) -> bool:
    """Whether it has fewer blocks than bytes: then parts of it are holes, which read as zeros and take nothing."""
    info = os.fstat(file.fileno())
    return info.st_blocks * 512 < info.st_size


def pieces(file: IO[bytes], size: int, *, holes: bool = False) -> Iterator[bytes | int]:
    """Yield exactly `size` bytes of a file; with `holes`, a hole as its size.

    Raises:
        InvalidError: it became shorter meanwhile.
    """
    fd, at = file.fileno(), 0
    holes = holes and is_sparse(file)
    while at < size:
        data = _next(fd, at, size, os.SEEK_DATA) if holes else at
        if data > at and os.fstat(fd).st_size >= size:
            yield data - at
            at = data
            continue
        end = _next(fd, at, size, os.SEEK_HOLE) if holes else size
        piece = os.pread(fd, min(_PIECE, max(end - at, 1)), at)
        if not piece:
            name = os.readlink(f"/proc/self/fd/{fd}")
            raise InvalidError(f"{name!r} became shorter while it was copied; copy it again")
        yield piece
        at += len(piece)


def _next(fd: int, at: int, size: int, whence: int) -> int:
    """Where data or a hole begins from `at` on, `size` if nowhere. A file system that does not know has data only."""
    try:
        return min(os.lseek(fd, at, whence), size)
    except OSError as error:
        return size if error.errno == errno.ENXIO or whence == os.SEEK_HOLE else at


class Receiver:
    """Writes entries into a temporary folder beside `target`; `commit` puts them in
    place, leaving the block without it removes them."""

    def __init__(self, target: Path, most: int | None = None, source: str = "") -> None:
        """Nothing is written yet.

        Args:
            target: where the result is put.
            most: how many bytes are written at most, and PER_ENTRY for each file, folder and link:
                empty ones take room, too.
            source: what is copied, for errors.
        """
        self._source = source
        self._target = target
        self._most = most
        self._left = most or 0
        self._name = target.name or "."
        self._parent = -1
        self._box = -1
        self._open = ExitStack()
        self._file: IO[bytes] | None = None
        self._folders: list[tuple[bytes, int, Entry]] = []
        self._root: Entry | None = None

    def __enter__(self) -> Self:
        self._parent = _planted.made(self._target.parent)
        with ExitStack() as stack:
            stack.enter_context(disk_full_named(self._target.parent, OTHER_DISK))
            stack.callback(os.close, self._parent)
            self._box = stack.enter_context(_halfmade.folder(self._parent))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end_file()
            self._leave(0)
        finally:
            self._open.__exit__(kind, error, trace)

    def begin(self, entry: Entry) -> None:
        """Begin the next entry; `write` gives the bytes of a file.

        Raises:
            SandboxFileTooLargeError: it is more than was to be written at most; so does `write`.
        """
        self._end_file()
        self._take(PER_ENTRY)
        if self._root is None:
            self._begin_root(entry)
            return
        *parents, name = _components(entry.path)
        folder = self._enter(parents)
        if entry.kind == "d":
            self._open_folder(os.fsdecode(name), folder, entry)
        elif entry.kind == "l":
            _planted.plant(entry.target, name, folder)
        elif entry.kind == "f":
            self._open_file(os.fsdecode(name), folder, entry)

    def write(self, data: memoryview) -> None:
        """Add bytes to the file begun last."""
        if self._file is None:
            raise ProtocolError("the agent sent bytes that belong to no file")
        self._take(len(data))
        while data:  # a disk that is nearly full takes a part, and says so only by the count
            data = data[self._file.write(data) :]

    def skip(self, size: int) -> None:
        """Leave a hole in the file begun last."""
        if self._file is None or size > _LONGEST:
            raise ProtocolError("the agent sent a hole that belongs to no file")
        self._file.truncate(self._file.seek(size, os.SEEK_CUR))

    def _take(self, size: int) -> None:
        self._left -= size
        if self._most is not None and self._left < 0:
            text = f"there is more than {self._most} bytes to copy, {PER_ENTRY} for each file counted; raise max_bytes, or copy a part"
            raise too_large(self._source, self._most, text)

    def commit(self) -> None:
        """Put the result in place: a file replaces a file or a link at once, a folder merges into a
        folder.

        Raises:
            InvalidError: a link to a folder is there: it is not followed, and it may be a
                sandbox's; or a folder would replace something else, or be replaced. Nothing is
                changed then.
        """
        self._end_file()
        self._leave(0)
        if self._root is None:
            raise ProtocolError("the agent sent an empty answer")
        if self._root.kind == "d":
            self._put_folder()
        elif self._target.is_dir():
            raise InvalidError(f"{os.fspath(self._target)!r} is a folder; give the full name of the local file")
        else:
            os.rename(_MADE, self._name, src_dir_fd=self._box, dst_dir_fd=self._parent)

    def _put_folder(self) -> None:
        info = _looked_at(self._name, self._parent)
        if info is None:
            os.rename(_MADE, self._name, src_dir_fd=self._box, dst_dir_fd=self._parent)
            return
        if stat.S_ISLNK(info.st_mode):
            raise InvalidError(
                f"{os.fspath(self._target)!r} is a link here, which no copy follows; {_NAME_ITS_TARGET}, or remove it"
            )
        with _both(_MADE, self._box, self._name, self._parent) as (source, target):
            _refuse_other_kinds(source, target, os.fspath(self._target))
            _merge(source, target)

    def _begin_root(self, entry: Entry) -> None:
        if entry.path:
            raise ProtocolError("the agent sent a tree without its root")
        self._root = entry
        if entry.kind == "d":
            self._open_folder(_MADE, self._box, entry)
        elif entry.kind == "f":
            self._open_file(_MADE, self._box, entry)
        elif entry.kind == "l":  # from an agent that is older than this SDK: others resolve it where it means something
            raise InvalidError("this is a link in the sandbox; copy what it leads to")
        else:
            raise no_copy()

    def _open_folder(self, name: str, parent: int, entry: Entry) -> None:
        if len(self._folders) > DEEPEST:
            path = os.fsdecode(entry.path)
            text = f"it lies deeper than {DEEPEST} folders, which are copied; pack it with tar first"
            raise SandboxFilesystemError(errno.ENAMETOOLONG, text, f"{path[:80]}…")
        os.mkdir(name, 0o700, dir_fd=parent)
        self._folders.append((entry.path, os.open(name, _OPEN_FOLDER, dir_fd=parent), entry))

    def _open_file(self, name: str, parent: int, entry: Entry) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        # Never set-user-ID: the file is ours now, and its content is not.
        os.fchmod(fd, entry.mode & 0o777)
        self._file = os.fdopen(fd, "wb", buffering=0)

    def _end_file(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _enter(self, parents: list[bytes]) -> int:
        """The open folder of these components. Entries come parents first, so it is one of those open now."""
        path = b"/".join(parents)
        for depth, (name, fd, _) in enumerate(self._folders):
            if name == path:
                self._leave(depth + 1)
                return fd
        raise ProtocolError(f"the agent sent a file of the folder {path!r}, which it had not sent")

    def _leave(self, depth: int) -> None:
        """Close the folders below `depth`, giving them their mode now that nothing more is written to them."""
        while len(self._folders) > depth:
            _, fd, entry = self._folders.pop()
            os.fchmod(fd, (entry.mode & 0o777) | stat.S_IRWXU)
            os.close(fd)


def _components(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise ProtocolError(f"the sandbox sent the name {path!r}, which would leave the folder it is copied to")
    return parts


def _looked_at(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return None


@contextmanager
def _both(name: str, folder: int, place: str, into: int) -> Iterator[tuple[int, int]]:
    """Open the folders `name` and `place`, neither of them through a link."""
    source = os.open(name, _OPEN_FOLDER, dir_fd=folder)
    try:
        target = os.open(place, _OPEN_FOLDER, dir_fd=into)
        try:
            yield source, target
        finally:
            os.close(target)
    finally:
        os.close(source)


def _meet(name: str, source: int, target: int) -> tuple[bool, bool | None]:
    """Whether what has that name is a folder in each of two folders; None: there is nothing."""
    there = _looked_at(name, target)
    is_folder = stat.S_ISDIR(os.lstat(name, dir_fd=source).st_mode)
    return is_folder, stat.S_ISDIR(there.st_mode) if there else None


def _refuse_other_kinds(source: int, target: int, path: str) -> None:
    """Refuse to merge where a folder meets something else, before anything is moved."""
    for name in sorted(os.listdir(source)):
        comes, there = _meet(name, source, target)
        if there is None:
            continue
        if comes != there:
            is_now, was = ("a folder", "none") if comes else ("no folder", "one")
            raise InvalidError(
                f"{path}/{name} is {is_now} in the sandbox, and {was} here; remove it, or copy to another place"
            )
        if comes:
            with _both(name, source, name, target) as (below, into):
                _refuse_other_kinds(below, into, f"{path}/{name}")


def _merge(source: int, target: int) -> None:
    """Move what is in one folder into another; folders are merged, files replaced, nothing followed."""
    for name in sorted(os.listdir(source)):
        if _meet(name, source, target) == (True, True):
            with _both(name, source, name, target) as (below, into):
                _merge(below, into)
        else:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
