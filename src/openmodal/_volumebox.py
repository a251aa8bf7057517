"""A short-lived box that has a volume and nothing else, and what its agent does for `Volume`."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from openmodal import _args, _config
from openmodal._agent import Agent
from openmodal._dual import DualIterator
from openmodal._spec import Mount, Network, Recipe, SandboxSpec, Scratch
from openmodal.engines import Engine, lacking
from openmodal.errors import EngineError, SandboxFilesystemError, temporary_full_named, too_large
from openmodal.filesystem import LIST_MOST, FileInfo, Filesystem

PLACE = "/volume"
"""Where the volume is in the box, and where relative paths begin."""

PIECE = 8 << 20
_ZEROS = bytes(PIECE)  # no memory is taken for them: nothing writes there

_SECONDS = 6 * 3600.0
_LEASE = 900.0  # a caller's file may take its time for a piece


@contextlib.asynccontextmanager
async def box(engine: Engine, mount: Mount) -> AsyncIterator[Filesystem]:
    """The files of a sandbox that has a volume and nothing else; it ends with the block."""
    lacked = lacking(engine)
    spec = SandboxSpec(
        app="volume",
        timeout=_SECONDS,
        # It is in no list, and keeps the volume from `delete`: if we are killed, it ends, too.
        lease=None if "lease" in lacked else _LEASE,
        owner=0 if "owner" in lacked else os.getpid(),
        workdir=PLACE,
        network=Network(block="network_block" not in lacked),
        allow_degraded=_args.controls(_config.allow_degraded()),
        mounts=(mount,),
        hidden=True,
    )
    await engine.check(spec)
    root = await engine.prepare(Recipe((Scratch(),)), lambda progress: None)
    made = await engine.create(spec, root)
    id = made if isinstance(made, str) else made.id

    async def why(error: Exception) -> None:
        if ended := (await engine.inspect(id)).ended:
            raise EngineError(
                f"the box with the volume {mount.volume!r} ended ({ended.reason}): {ended.text}"
            ) from error

    agent = Agent(lambda: engine.connect(id), why, None if isinstance(made, str) else made.first)
    try:
        yield Filesystem(agent)
    except SandboxFilesystemError as error:
        error._place = f"the volume {mount.volume!r}"
        raise
    finally:
        agent.close()
        await engine.stop(id)


def inside(path: object) -> str:
    """A path in a volume, from its root on, as the box's working folder has it."""
    text = posixpath.normpath(f"/{_args.path('path', path).lstrip('/')}")
    return text[1:] or "."


async def is_folder(files: Filesystem, path: str) -> bool:
    """Whether there is a folder at that path."""
    return await files.exists.core(path) and (await files.stat.core(path)).is_dir


async def listed(files: Filesystem, path: str, *, recursive: bool) -> list[FileInfo]:
    """What is in a folder, and in those in it; of a file, the file."""
    info = await files.stat.core(path)
    if not info.is_dir:
        return [info]
    found: list[FileInfo] = []
    folders = [path]
    while folders:
        for entry in await files.list_files.core(folders.pop()):
            found.append(_from_root(entry))
            if recursive and entry.is_dir:
                folders.append(entry.path)
        if len(found) > LIST_MOST:
            raise too_large(path, LIST_MOST, f"it has more than {LIST_MOST} entries; list its folders one by one")
    return sorted(found, key=lambda entry: entry.path)


def _from_root(entry: FileInfo) -> FileInfo:
    return replace(entry, path=entry.path.removeprefix("./"))


async def read_into(files: Filesystem, path: str, write: Callable[[bytes], object], most: int | None) -> int:
    """Give a file's bytes to `write`, in pieces; how many there were.

    Raises:
        SandboxFileTooLargeError: there are more than `most`. None is fetched, unless it grows
            meanwhile.
    """
    size = 0
    _bound(path, (await files.stat.core(path)).size, most)
    while piece := await files.read_bytes.core(path, size, PIECE):
        size += len(piece)
        _bound(path, size, most)
        write(piece)
    return size


def _bound(path: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        text = f"it has more than {most} bytes to read, holes counted; raise max_bytes, or use copy_to_local"
        raise too_large(path, most, text)


class Pieces(DualIterator[bytes]):
    """The bytes of a file of a volume, read whole with the first: so no box outlives the call."""

    def __init__(
        self, files: Callable[[], AbstractAsyncContextManager[Filesystem]], path: str, most: int | None
    ) -> None:
        self._files, self._path, self._most = files, path, most
        self._kept: IO[bytes] | None = None

    async def _next(self) -> bytes:
        if self._kept is None:
            self._kept = await self._read()
        if piece := self._kept.read(PIECE):
            return piece
        self._kept.close()
        raise EOFError

    async def _read(self) -> IO[bytes]:
        # What is in memory is less than a piece, and so has no hole.
        kept = cast("IO[bytes]", tempfile.SpooledTemporaryFile(PIECE - 1))  # noqa: SIM115
        try:
            async with self._files() as files:
                await read_into(files, self._path, lambda piece: _keep(kept, piece), self._most)
            kept.seek(0)
        except BaseException:
            with contextlib.suppress(OSError):  # it tries once more to write what did not fit
                kept.close()
            raise
        return kept


def _keep(file: IO[bytes], piece: bytes) -> None:
    """Write a piece to a temporary file; one of zeros becomes a hole.

    Raises:
        DiskFullError: the disk that temporary files are on is full.
    """
    with temporary_full_named():
        if piece == _ZEROS:
            file.truncate(file.seek(PIECE, os.SEEK_CUR))
        else:
            file.write(piece)
            file.flush()


async def put(files: Filesystem, source: Path | IO[bytes], target: str, mode: int | None) -> None:
    """Copy a file or folder of this machine, or what can be read, to a path."""
    if isinstance(source, Path):
        await files.copy_from_local.core(source, target)
    else:
        with temporary_full_named(), tempfile.TemporaryFile() as copy:
            while piece := source.read(PIECE):
                copy.write(piece)
            copy.flush()
            await files._push(copy, target)
    if mode is not None:
        await files.chmod.core(target, mode)
