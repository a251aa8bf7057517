"""A short-lived box that has a volume and nothing else, and what its agent does for `Volume`."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from openmodal import _args, _config
from openmodal._agent import Agent
from openmodal._spec import Mount, Network, Recipe, SandboxSpec, Scratch
from openmodal.engines import Engine, lacking
from openmodal.errors import OTHER_TEMPORARY, EngineError, SandboxFilesystemError, disk_full_named, too_large
from openmodal.filesystem import LIST_MOST, FileInfo, Filesystem

PLACE = "/volume"
"""Where the volume is in the box, and where relative paths begin."""

PIECE = 8 << 20

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


async def read_into(files: Filesystem, path: str, target: IO[bytes]) -> int:
    """Write a file's bytes into one of this machine; how many there were."""
    size = 0
    while piece := await files.read_bytes.core(path, size, PIECE):
        target.write(piece)
        size += len(piece)
    return size


async def put(files: Filesystem, source: Path | IO[bytes], target: str, mode: int | None) -> None:
    """Copy a file or folder of this machine, or what can be read, to a path."""
    if isinstance(source, Path):
        await files.copy_from_local.core(source, target)
    else:
        with disk_full_named(tempfile.gettempdir(), OTHER_TEMPORARY), tempfile.TemporaryFile() as copy:
            while piece := source.read(PIECE):
                copy.write(piece)
            copy.flush()
            await files._push(copy, target)
    if mode is not None:
        await files.chmod.core(target, mode)
