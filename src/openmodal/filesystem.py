"""Files of a sandbox: read, write, copy, list. Every path is resolved inside the sandbox, by its
agent; nothing here follows a path that a sandbox gave on this machine. A relative path counts from
the sandbox's working folder.

Names that are not UTF-8 are str with surrogates, as in Python's `os` (`os.fsencode` gives their
bytes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from openmodal import _args, _wire
from openmodal._agent import Agent
from openmodal._command import contents, file_refusal, takes_holes
from openmodal._dual import Blocking, dual
from openmodal._link import Link
from openmodal._localcopy import Receiver, entries, is_sparse, pieces
from openmodal._packed import Packer
from openmodal._wire import Entry, FileOp, Kind
from openmodal.errors import InvalidError, ProtocolError, too_large
from openmodal.watch import Watch

_PIECE = 512 * 1024
_PARENTS = 1
_FOLLOW = 1
_HOLES = 2

READ_MOST = 256 << 20
"""Bytes that are read into memory at a time, unless `limit=` says otherwise."""

COPY_MOST = 16 << 30
"""Bytes that are copied to this machine, unless `max_bytes=` says otherwise."""

LIST_MOST = 500_000
"""Entries of a folder that are listed."""

_LIMIT_MOST = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file, folder or link in a sandbox.

    Attributes:
        path: where it is, as the path that was asked for: absolute, or from the sandbox's working
            folder on.
        name: the last part of it.
        kind: "file", "directory", "symlink" or "other".
        size: in bytes.
        mode: permission bits.
        uid, gid: owner, as inside the sandbox.
        mtime: last change, in seconds of the Unix clock.
        target: where a symlink points.
    """

    path: str
    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.kind == "directory"


class Filesystem:
    """The files of a sandbox, as the image's user may see and change them, or another one
    (`as_user`).

    Errors are SandboxFilesystemError and, at the same time, the builtin OSError of that meaning.
    """

    def __init__(self, agent: Agent, user: str = "") -> None:
        self._agent = agent
        self._user = _wire.encode(user)

    def as_user(self, user: str) -> Filesystem:
        """The same files, as another user: "name", "uid", "name:group" or "uid:gid"; what is made
        belongs to that user.

        A user that is not in the sandbox is an InvalidError when it is used.
        """
        if not _args.string("user", user):
            raise InvalidError("user is empty; write a name or number such as 'root', 'agent' or '1000:1000'")
        return Filesystem(self._agent, user)

    @dual
    async def read_bytes(self, path: str, offset: int = 0, limit: int | None = None) -> bytes:
        """Return a file's bytes from `offset` on: with `limit` at most so many, else all.

        Raises:
            SandboxFileTooLargeError: all are more than 256 MiB; read it in parts, or copy it.
        """
        return await self._read(path, _args.count("offset", offset, _args.OFFSET_MOST), limit)

    @dual
    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return a file's text.

        Raises:
            SandboxFileTooLargeError: it is more than 256 MiB.
            UnicodeDecodeError: it is not text of that encoding; `errors="replace"` reads it anyway.
        """
        return (await self._read(path, 0, None)).decode(encoding, errors)

    @dual
    async def write_bytes(self, path: str, data: bytes | bytearray | memoryview, *, mode: int | None = None) -> None:
        """Write a file: missing parents are made; readers see the old content or the new, nothing
        between.

        A file that is there asks whether it may be written to. Another user's that may be stays
        that user's: it is written into.

        Args:
            path: the file.
            data: its new content.
            mode: its permission bits, such as 0o600; None: those of the file that is there, else
                0o644.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidError(f"write_bytes needs bytes, not {type(data).__name__}; write_text writes str")
        await self._write(path, data, mode)

    @dual
    async def write_text(self, path: str, text: str, encoding: str = "utf-8", *, mode: int | None = None) -> None:
        """Write a text file in `encoding`; `mode` and all else as `write_bytes`."""
        if not isinstance(text, str):
            raise InvalidError(f"write_text needs a str, not {type(text).__name__}; write_bytes writes bytes")
        await self._write(path, text.encode(encoding), mode)

    @dual
    async def copy_from_local(self, local: str | os.PathLike[str], path: str) -> None:
        """Copy a local file or folder to `path`: a file is replaced at once, a folder is merged
        into one that is there. Holes stay holes.

        Links in a folder are copied as links; `local` itself must not be one, since a sandbox may
        have sent it. Local names that the other side refuses raise before their parent is complete.
        """
        await self._push(Path(local), path)

    async def _push(self, source: Path | IO[bytes], path: str) -> None:
        """Send what is at a local path, or in an open file, which needs no name."""
        request = self._request(FileOp.PUSH, path, flags=_PARENTS)

        async def operation(link: Link) -> None:
            holes: bool | None = None
            for entry, file in entries(source):
                if holes is None:
                    holes = (file is None or is_sparse(file)) and await takes_holes(link)
                    await link.send(request)
                await link.send(_wire.entry(entry))
                for piece in pieces(file, entry.size, holes=holes) if file else ():
                    await link.send(_wire.hole(piece) if isinstance(piece, int) else _wire.frame(Kind.CHUNK, piece))
            await link.send(_wire.frame(Kind.END))
            await _ok(link, path)

        with self._agent.journal.call("copy_from_local", path=path):
            await self._agent.exchange(operation)

    @dual
    async def copy_to_local(
        self, path: str, local: str | os.PathLike[str], *, max_bytes: int | None = COPY_MOST
    ) -> None:
        """Copy a file or folder of the sandbox to the local path `local`. Holes stay holes.

        A local file is replaced only on success. If `path` is a link, what it leads to in the
        sandbox is copied. Links in a folder are copied as links, and lead elsewhere on this
        machine: do not follow them. `local` itself is never followed: a link to a folder is
        refused, another one replaced. A name that would leave `local` ends the copy.

        Args:
            max_bytes: as much as is written here at most: content, and 4 KiB for each file, folder
                and link; by default 16 GiB. None: whatever there is.

        Raises:
            SandboxFileTooLargeError: there is more than `max_bytes`; nothing is left of it.
            DiskFullError: the disk of `local` is full; nothing is left of it.
        """
        target = Path(local)
        most = _args.optional_count("max_bytes", max_bytes)
        with self._agent.journal.call("copy_to_local", path=path):
            await self._pull(path, lambda: Receiver(target, most, path))

    async def _pull(self, path: str, receiver: Callable[[], Receiver | Packer]) -> None:
        """Have a tree sent to a receiver, and to another one if the link breaks."""
        request = self._request(FileOp.PULL, path, flags=_FOLLOW | _HOLES)

        async def operation(link: Link) -> None:
            await link.send(request)
            with receiver() as begun:
                await _receive_tree(link, path, begun)
                await Blocking(begun.commit)

        await self._agent.exchange(operation)

    @dual
    async def list_files(self, path: str) -> list[FileInfo]:
        """Return what is in a folder, sorted by name.

        Raises:
            SandboxFileTooLargeError: it has more than 500,000 entries.
        """
        request = self._request(FileOp.LIST, path)

        async def operation(link: Link) -> list[FileInfo]:
            await link.send(request)
            found: list[FileInfo] = []
            while (entry := await _entry_or_end(link, path)) is not None:
                if b"/" in entry.path or entry.path in (b"", b".", b".."):
                    raise ProtocolError("the agent told of a folder's entry whose name is a path")
                found.append(_info(entry, _join(path, _decode(entry.path))))
                if len(found) > LIST_MOST:
                    raise too_large(
                        path, LIST_MOST, f"the folder has more than {LIST_MOST} entries; list it with a command"
                    )
            return sorted(found, key=lambda info: info.name)

        return await self._agent.exchange(operation)

    @dual
    async def stat(self, path: str, *, follow_symlinks: bool = True) -> FileInfo:
        """Tell about a file or folder; of a link, about what it leads to, unless
        `follow_symlinks=False`."""
        return await self._stat(path, follow=follow_symlinks)

    @dual
    async def exists(self, path: str) -> bool:
        """Whether there is something at that path (a link counts if its target exists)."""
        try:
            await self._stat(path, follow=True)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @dual
    async def make_directory(self, path: str, *, create_parents: bool = True, mode: int | None = None) -> None:
        """Make a folder with permission bits `mode` (None: 0o755). With `create_parents` its
        parents are made, too, and a folder that is there is no error."""
        request = self._request(FileOp.MKDIR, path, flags=int(create_parents), mode=_bits(mode))
        await self._change("make_directory", request, path)

    @dual
    async def chmod(self, path: str, mode: int) -> None:
        """Change the permission bits of a file or folder to `mode`, such as 0o755."""
        request = self._request(FileOp.CHMOD, path, mode=_args.whole("mode", mode, 0, 0o7777))
        await self._change("chmod", request, path, f"{mode:o}")

    @dual
    async def chown(self, path: str, owner: str) -> None:
        """Give a file or folder to another `owner`: "name" or "uid" (its group stays), "name:group" or "uid:gid". Mostly root's to do."""
        second = _wire.encode(_args.string("owner", owner))
        await self._change("chown", self._request(FileOp.CHOWN, path, second=second), path, owner)

    @dual
    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, or an empty folder; `recursive` also what is in a folder."""
        await self._change("remove", self._request(FileOp.REMOVE, path, flags=int(recursive)), path)

    @dual
    async def rename(self, path: str, new_path: str) -> None:
        """Rename a file or folder to `new_path` in the same file system; a file there is replaced."""
        second = _wire.encode(_args.path("new_path", new_path))
        await self._change("rename", self._request(FileOp.RENAME, path, second=second), path, new_path)

    @dual
    async def watch(self, path: str, *, recursive: bool = False, timeout: float | None = None) -> Watch:
        """Watch a file, or what is in a folder, and return when no later change can be missed.

        The user who watches needs the right to read: folders that are closed to that user are left
        out. An open watch counts as activity.

        Args:
            path: the file or folder.
            recursive: also what is in the folders below it, those that are made later, too.
            timeout: seconds without a change after which the iteration ends; None: it goes on.

        Raises:
            ExecError: it has more folders than can be watched, or too much is watched already.
        """
        request = self._request(FileOp.WATCH, path, flags=int(recursive))
        watch = Watch(self._agent, request, path, _args.optional_seconds("timeout", timeout))
        await watch._open()
        return watch

    async def _duplicate(self, path: str, copy: str) -> None:
        """Copy a file or folder to another path there: what one link sends, another takes."""
        pull = self._request(FileOp.PULL, path, flags=_FOLLOW | _HOLES)
        push = self._request(FileOp.PUSH, copy, flags=_PARENTS)
        async with self._agent.lease() as source, self._agent.lease() as target:
            await source.send(pull)
            await target.send(push)
            kind: int = Kind.ENTRY
            while kind != Kind.END:
                kind, payload = await _told(source, path, Kind.ENTRY, Kind.CHUNK, Kind.HOLE, Kind.END)
                for frame in _relayed(Kind(kind), payload):
                    await target.send(frame)
            await _ok(target, copy)

    def _request(
        self, operation: FileOp, path: str, *, flags: int = 0, mode: int = 0, offset: int = 0, second: bytes = b""
    ) -> bytes:
        where = _wire.encode(_args.path("path", path))
        return _wire.file(operation, where, flags=flags, mode=mode, offset=offset, second=second, user=self._user)

    async def _stat(self, path: str, *, follow: bool) -> FileInfo:
        request = self._request(FileOp.STAT, path, flags=_FOLLOW if follow else 0)

        async def operation(link: Link) -> FileInfo:
            await link.send(request)
            return _info(_wire.decode_entry(await _answer(link, path, Kind.ENTRY)), path)

        return await self._agent.exchange(operation)

    async def _change(self, call: str, request: bytes, path: str, detail: str = "") -> None:
        async def operation(link: Link) -> None:
            await link.send(request)
            await _ok(link, path)

        with self._agent.journal.call(call, path=path, detail=detail):
            await self._agent.exchange(operation)

    async def _write(self, path: str, data: bytes | bytearray | memoryview, mode: int | None) -> None:
        request = self._request(FileOp.WRITE, path, flags=_PARENTS, mode=_bits(mode))
        view = memoryview(data).cast("B")

        async def operation(link: Link) -> None:
            await link.send(request)
            for start in range(0, len(view), _PIECE):
                await link.send(_wire.frame(Kind.CHUNK, bytes(view[start : start + _PIECE])))
            await link.send(_wire.frame(Kind.END))
            await _ok(link, path)

        with self._agent.journal.call("write", path=path, size=len(view)):
            await self._agent.exchange(operation)

    async def _read(self, path: str, offset: int, limit: int | None) -> bytes:
        if limit == 0:
            await self._stat(path, follow=True)
            return b""
        most = READ_MOST + 1 if limit is None else _args.count("limit", limit, _LIMIT_MOST)
        request = self._request(FileOp.READ, path, mode=most, offset=offset)

        async def operation(link: Link) -> bytes:
            await link.send(request)
            entry = _wire.decode_entry(await _answer(link, path, Kind.ENTRY))
            small = limit is not None or entry.size - offset <= READ_MOST
            data = await contents(link, lambda payload: file_refusal(payload, path), most) if small else b""
            if small and (limit is not None or len(data) <= READ_MOST):
                return data
            text = (
                f"it has more than {READ_MOST} bytes; read it in parts, with offset= and limit=, or use copy_to_local"
            )
            raise too_large(path, READ_MOST, text)

        with self._agent.journal.call("read", path=path) as line:
            data = await self._agent.exchange(operation)
            line["size"] = len(data)
            return data


def _relayed(kind: Kind, payload: memoryview) -> Iterator[bytes]:
    """What was pulled, as it is pushed: only files have a size; pipes and devices stay behind."""
    if kind != Kind.ENTRY:
        yield _wire.frame(kind, bytes(payload))
    elif (entry := _wire.decode_entry(payload)).kind != "o":
        yield _wire.entry(entry if entry.kind == "f" else entry._replace(size=0))


async def _receive_tree(link: Link, path: str, receiver: Receiver | Packer) -> None:
    while (entry := await _entry_or_end(link, path)) is not None:
        await Blocking(receiver.begin, entry)
        left = entry.size if entry.kind == "f" else 0
        while left:
            kind, payload = await _told(link, path, Kind.CHUNK, Kind.HOLE)
            size = _wire.decode_hole(payload) if kind == Kind.HOLE else len(payload)
            if not 0 < size <= left:
                raise ProtocolError("the agent sent more of a file than it had announced")
            left -= size
            receiver.skip(size) if kind == Kind.HOLE else receiver.write(payload)


async def _answer(link: Link, path: str, kind: Kind) -> memoryview:
    return (await _told(link, path, kind))[1]


async def _told(link: Link, path: str, *kinds: Kind) -> tuple[int, memoryview]:
    kind, payload = await link.expect(*kinds)
    if kind == Kind.ERROR:
        raise file_refusal(payload, path)
    return kind, payload


async def _ok(link: Link, path: str) -> None:
    await _answer(link, path, Kind.OK)


async def _entry_or_end(link: Link, path: str) -> Entry | None:
    kind, payload = await _told(link, path, Kind.ENTRY, Kind.END)
    return None if kind == Kind.END else _wire.decode_entry(payload)


def _bits(mode: int | None) -> int:
    """Permission bits as a request has them, where 0 stands for none said."""
    return 0 if mode is None else _args.whole("mode", mode, 1, 0o7777)


_KINDS = {"f": "file", "d": "directory", "l": "symlink", "o": "other"}


def _info(entry: Entry, path: str) -> FileInfo:
    return FileInfo(
        path=path,
        name=path.rstrip("/").rpartition("/")[2],
        kind=_KINDS[entry.kind],
        size=entry.size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime / 1e9,
        target=_decode(entry.target),
    )


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


__all__ = ["FileInfo", "Filesystem"]
