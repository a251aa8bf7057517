"""The file helper of the client: a program that does not exist. The client runs it as a command
with one JSON argument; the door does what it says, by the sandbox's own agent.

Unlike commands, such a call is the door's own; it takes moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openmodal.errors import (
    Error,
    InvalidError,
    SandboxDirectoryNotEmptyError,
    SandboxFileNotFoundError,
    SandboxFilesystemError,
    SandboxFileTooLargeError,
    SandboxIsADirectoryError,
    SandboxNotADirectoryError,
    SandboxPathAlreadyExistsError,
    SandboxPermissionError,
    file_error,
)
from openmodal.filesystem import FileInfo, Filesystem
from openmodal.sandbox import Sandbox
from openmodal.watch import Watch

HELPER = "/__modal/.bin/modal-sandbox-fs-tools"

_PIECE = 1 << 20
_MODE = 0o644
_ANY_MODE = 0o7777
_PATIENCE = 60.0
FORGET = 600.0
"""Seconds after which a call of the file helper is forgotten that nobody asked about."""
_MOST_NAMES = 1 << 20
"""Bytes of a sandbox's /etc/passwd that are looked at: the memory is all clients'."""
_MOST = 16 << 20
"""Bytes of changes that wait for who watches."""

_KINDS: tuple[tuple[type[Error], str], ...] = (
    (SandboxFileNotFoundError, "NotFound"),
    (SandboxIsADirectoryError, "IsDirectory"),
    (SandboxNotADirectoryError, "NotDirectory"),
    (SandboxPathAlreadyExistsError, "PathAlreadyExists"),
    (SandboxDirectoryNotEmptyError, "DirectoryNotEmpty"),
    (SandboxPermissionError, "PermissionDenied"),
    (SandboxFileTooLargeError, "FileTooLarge"),
    (Error, "Io"),
)
_CHANGES = {
    "created": "Create",
    "modified": "Modify",
    "deleted": "Remove",
    "moved": "Rename",
    "overflow": "Modify",  # of what is watched: look at all of it again
}
_TYPES = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "other": stat.S_IFREG}


@dataclass(frozen=True)
class Done:
    """What an operation came to: output, or a file whose content is the output."""

    stdout: bytes = b""
    stderr: bytes = b""
    code: int = 0
    file: str = ""


class FileCall:
    """One call of the helper, which looks like a command: stdin, output, an exit code."""

    def __init__(self, sandbox: Sandbox, arguments: list[str], most: int) -> None:
        """`most`: how many bytes of stdin it takes."""
        self._most = most
        self.use()
        self._filesystem = sandbox.filesystem
        self._input = tempfile.NamedTemporaryFile()  # noqa: SIM115  (until the call ends)
        self._closed = asyncio.Event()
        self._said = b""
        self._dropped = 0
        self._ended = False
        self._news = asyncio.Condition()
        self.written = 0
        self._task = asyncio.get_running_loop().create_task(self._run(arguments))

    def use(self) -> None:
        """Somebody asks about it."""
        self._used = time.monotonic()

    @property
    def rested(self) -> float:
        """For how many seconds nobody has asked about it."""
        return time.monotonic() - self._used

    def close(self) -> None:
        """Nobody asks about it any more; what it waits for does not come."""
        self._task.cancel()

    @property
    def closed(self) -> bool:
        """Whether its stdin has ended."""
        return self._closed.is_set()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._task.result().code if self._task.done() else None

    def write(self, offset: int, data: bytes, *, ends: bool) -> None:
        """Take stdin; what was taken before is skipped."""
        self.use()
        new = data[max(0, self.written - offset) :]
        if self.written + len(new) > self._most:
            raise InvalidError(
                f"the file has more than the {self._most} bytes that this door takes; use a larger --max-upload"
            )
        if new and not self.closed:
            self._input.write(new)
            self.written += len(new)
        if ends:
            self._closed.set()

    async def _ends(self) -> None:
        """Return when its stdin has ended, or its client is gone."""
        while not self.closed and self.rested < FORGET:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORGET - self.rested + 1):
                    await self._closed.wait()

    async def wait(self) -> int:
        """Wait until it has ended."""
        return (await asyncio.shield(self._task)).code

    async def output(self, number: int, offset: int) -> AsyncIterator[bytes]:
        """Its stdout (1) or stderr (2), from an offset on. A file is read as it is taken, and what
        a watch says is told as it comes."""
        if number == 1:
            while not self._task.done() or self._count > offset:
                if new := self._said[max(0, offset - self._dropped) :]:
                    yield new
                    offset = self._count
                await self._more_than(offset)
        done = await asyncio.shield(self._task)
        if number == 1 and done.file:
            while piece := await self._filesystem.read_bytes.aio(done.file, offset, _PIECE):
                yield piece
                offset += len(piece)
            return
        whole = done.stdout if number == 1 else done.stderr
        for at in range(offset, len(whole), _PIECE):
            yield whole[at : at + _PIECE]

    @property
    def _count(self) -> int:
        """How many bytes were said before its end."""
        return self._dropped + len(self._said)

    async def _more_than(self, count: int) -> None:
        """Wait until more was said, or it has ended; or for a while: somebody waits, so it is used."""
        self.use()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE), self._news:
                await self._news.wait_for(lambda: self._count > count or self._ended)

    async def _say(self, line: bytes) -> None:
        async with self._news:
            self._said += line
            too_much = self._said[:-_MOST]
            self._said, self._dropped = self._said[len(too_much) :], self._dropped + len(too_much)
            self._news.notify_all()

    async def _run(self, arguments: list[str]) -> Done:
        try:
            ((name, options),) = json.loads(arguments[0]).items()
            return await _OPERATIONS[name](self, self._filesystem, options)
        except Error as error:
            kind = next(kind for cause, kind in _KINDS if isinstance(error, cause))
            message = error.strerror if isinstance(error, SandboxFilesystemError) else str(error)
            return Done(stderr=json.dumps({"error_kind": kind, "message": message}).encode(), code=1)
        except (IndexError, KeyError, ValueError) as error:
            text = f"OpenModal's door does not know this operation of the client's file helper: {error!r}"
            return Done(stderr=json.dumps({"error_kind": "Io", "message": text}).encode(), code=2)
        finally:
            self._input.close()
            self._ended = True
            async with self._news:
                self._news.notify_all()

    async def read(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        path = options["path"]
        await files.read_bytes.aio(path, 0, 1)  # so that what cannot be read is told
        return Done(file=path)

    async def put(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        await self._ends()
        if not self.closed:
            raise InvalidError(f"the rest of the file did not come within {FORGET:.0f} s; write it again")
        self._input.flush()
        mode = _MODE
        with contextlib.suppress(SandboxFilesystemError):  # a file that is there keeps its mode
            mode = (await files.stat.aio(options["path"])).mode
        os.fchmod(self._input.fileno(), mode & _ANY_MODE)
        await files.copy_from_local.aio(self._input.name, options["path"])
        return Done()

    async def listing(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        names = await _names(files)
        found = await files.list_files.aio(options["path"])
        return Done(json.dumps([_entry(info, names) for info in found]).encode())

    async def look(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        info = await files.stat.aio(options["path"], follow_symlinks=False)
        return Done(json.dumps(_entry(info, await _names(files))).encode())

    async def make(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        path, parents = options["path"], bool(options.get("parents"))
        if parents and await files.exists.aio(path) and not (await files.stat.aio(path)).is_dir:
            raise file_error(errno.EEXIST, path)
        await files.make_directory.aio(path, create_parents=parents)
        return Done()

    async def remove(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        await files.remove.aio(options["path"], recursive=bool(options.get("recursive")))
        return Done()

    async def changes(self, files: Filesystem, options: Mapping[str, Any]) -> Done:
        """Tell of changes, until the time is over, stdin ends, or nobody is there any more: as long as it
        watches, its sandbox is not idle."""
        wanted = options.get("filter")
        watch = await files.watch.aio(options["path"], recursive=bool(options.get("recursive")))
        telling = asyncio.ensure_future(self._tell(watch, wanted))
        closing = asyncio.ensure_future(self._ends())
        try:
            await asyncio.wait(
                (telling, closing), timeout=options.get("timeout_secs"), return_when=asyncio.FIRST_COMPLETED
            )
            if telling.done():
                telling.result()
        finally:
            telling.cancel()
            closing.cancel()
            await asyncio.wait((telling, closing))
            await watch.close.aio()
        return Done()

    async def _tell(self, watch: Watch, wanted: list[str] | None) -> None:
        async for event in watch:
            kind = _CHANGES[event.kind]
            if wanted is None or kind in wanted:
                paths = [path for path in (event.path, event.new_path) if path]
                await self._say(json.dumps({"event_type": kind, "paths": paths}).encode() + b"\n")


_OPERATIONS: dict[str, Callable[[FileCall, Filesystem, Mapping[str, Any]], Awaitable[Done]]] = {
    "ReadFile": FileCall.read,
    "WriteFile": FileCall.put,
    "ListFiles": FileCall.listing,
    "Stat": FileCall.look,
    "MakeDirectory": FileCall.make,
    "Remove": FileCall.remove,
    "Watch": FileCall.changes,
}

Names = tuple[Mapping[int, str], Mapping[int, str]]


async def _names(files: Filesystem) -> Names:
    """The names of the sandbox's users and groups."""
    tables: list[dict[int, str]] = []
    for path in ("/etc/passwd", "/etc/group"):
        table: dict[int, str] = {}
        try:
            data = await files.read_bytes.aio(path, limit=_MOST_NAMES)
        except SandboxFilesystemError:
            data = b""
        for line in data.decode("utf-8", "replace").splitlines():
            name, _, rest = line.partition(":")
            number = rest.split(":")[1:2]
            if number and number[0].isdigit():
                table.setdefault(int(number[0]), name)
        tables.append(table)
    return tables[0], tables[1]


def _entry(info: FileInfo, names: Names) -> dict[str, Any]:
    users, groups = names
    return {
        "name": info.name,
        "path": info.path,
        "type": info.kind if info.kind in ("file", "directory", "symlink") else "file",
        "size": info.size,
        "mode": info.mode | _TYPES[info.kind],
        "permissions": f"{info.mode & 0o7777:04o}",
        "owner": users.get(info.uid, str(info.uid)),
        "group": groups.get(info.gid, str(info.gid)),
        "modified_time": info.mtime,
        "symlink_target": info.target or None,
    }


__all__ = ["FORGET", "HELPER", "FileCall"]
