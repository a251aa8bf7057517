"""The local side of copying: a tree of this machine read as entries, and entries from a sandbox written as a tree.

What comes from a sandbox is hostile. Every name is one plain component per level, every step is taken relative to an open
folder without following links, and the result is put in place only when it is complete.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from openmodal._wire import Entry
from openmodal.errors import InvalidError, ProtocolError

_PIECE = 512 * 1024
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def entries(source: Path) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    """Yield what a local file or folder consists of, parents first; a file comes with its open content.

    Raises:
        InvalidError: there is nothing at `source`, or it is neither file nor folder nor link.
    """
    try:
        root = os.stat(source)
    except OSError as error:
        raise InvalidError(f"{os.fspath(source)!r} cannot be copied: {error.strerror}") from error
    if stat.S_ISDIR(root.st_mode):
        yield _entry("d", root, b""), None
        yield from _below(os.fsencode(source), b"")
        return
    if not stat.S_ISREG(root.st_mode):
        raise InvalidError(f"{os.fspath(source)!r} is neither a file nor a folder; only those can be copied")
    yield from _file(os.fsencode(source), b"")


def _below(folder: bytes, prefix: bytes) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        name = prefix + child.name
        if child.is_symlink():
            yield _entry("l", child.stat(follow_symlinks=False), name, os.readlink(child.path)), None
        elif child.is_dir():
            yield _entry("d", child.stat(), name), None
            yield from _below(child.path, name + b"/")
        elif child.is_file():
            yield from _file(child.path, name)


def _file(path: bytes, name: bytes) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    with open(path, "rb") as file:
        yield _entry("f", os.fstat(file.fileno()), name), file


def _entry(kind: str, info: os.stat_result, name: bytes, target: bytes = b"") -> Entry:
    size = info.st_size if kind == "f" else 0
    return Entry(kind, stat.S_IMODE(info.st_mode), 0, 0, size, info.st_mtime_ns, name, target)


def pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield exactly `size` bytes of a file.

    Raises:
        InvalidError: it became shorter meanwhile.
    """
    left = size
    while left:
        data = file.read(min(_PIECE, left))
        if not data:
            raise InvalidError(f"{os.fsdecode(file.name)!r} became shorter while it was copied; copy it again")
        left -= len(data)
        yield data


class Receiver:
    """Writes entries below a temporary name beside `target`; `commit` puts it in place, leaving the block without it removes it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.parent / f".{target.name[:200]}.{os.urandom(6).hex()}"
        self._file: IO[bytes] | None = None
        self._folders: list[tuple[bytes, int, Entry]] = []
        self._root: Entry | None = None

    def __enter__(self) -> Self:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_file()
        self._leave(0)
        if os.path.lexists(self._temporary):
            is_tree = self._temporary.is_dir() and not self._temporary.is_symlink()
            shutil.rmtree(self._temporary) if is_tree else self._temporary.unlink()

    def begin(self, entry: Entry) -> None:
        """Begin the next entry; `write` gives the bytes of a file."""
        self._end_file()
        if self._root is None:
            self._begin_root(entry)
            return
        *parents, name = _components(entry.path)
        folder = self._enter(parents)
        if entry.kind == "d":
            os.mkdir(name, 0o700, dir_fd=folder)
            opened = os.open(name, _OPEN_FOLDER, dir_fd=folder)
            self._folders.append((entry.path, opened, entry))
        elif entry.kind == "l":
            os.symlink(entry.target, name, dir_fd=folder)
        elif entry.kind == "f":
            self._open_file(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder), entry
            )

    def write(self, data: memoryview) -> None:
        """Add bytes to the file begun last."""
        if self._file is None:
            raise ProtocolError("the agent sent bytes that belong to no file")
        while data:  # a disk that is nearly full takes a part, and says so only by the count
            data = data[self._file.write(data) :]

    def commit(self) -> None:
        """Put the result in place: a file replaces a file at once, a folder merges into a folder."""
        self._end_file()
        self._leave(0)
        if self._root is None:
            raise ProtocolError("the agent sent an empty answer")
        if self._root.kind == "d" and self._target.is_dir():
            _merge(self._temporary, self._target)
        elif self._root.kind != "d" and self._target.is_dir():
            raise InvalidError(f"{os.fspath(self._target)!r} is a folder; give the full name of the local file")
        else:
            os.rename(self._temporary, self._target)

    def _begin_root(self, entry: Entry) -> None:
        if entry.path:
            raise ProtocolError("the agent sent a tree without its root")
        self._root = entry
        if entry.kind == "d":
            os.mkdir(self._temporary, 0o700)
            self._folders.append((b"", os.open(self._temporary, _OPEN_FOLDER), entry))
        elif entry.kind == "l":
            os.symlink(entry.target, os.fsencode(self._temporary))
        elif entry.kind == "f":
            self._open_file(
                os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), entry
            )
        else:
            raise InvalidError("only files, folders and links can be copied; this is a device, pipe or socket")

    def _open_file(self, fd: int, entry: Entry) -> None:
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


def _merge(source: Path, target: Path) -> None:
    """Move what is in `source` into `target`; folders are merged, files replaced, nothing followed."""
    for child in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / child.name
        if child.is_dir(follow_symlinks=False) and place.is_dir() and not place.is_symlink():
            _merge(Path(child.path), place)
        else:
            os.rename(child.path, place)
    shutil.rmtree(source)
