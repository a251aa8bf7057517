"""Volumes: by their names, which their ids have, and their files.

A file is read in blocks, each by a URL of its own. What the client sends of local files is kept as
that of mounts, and then copied.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as api
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from openmodal._journal import plain
from openmodal._spec import Mount, VolumeInfo
from openmodal.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    SandboxFileNotFoundError,
    SandboxFilesystemError,
)
from openmodal.filesystem import COPY_MOST
from openmodal.serve import ids
from openmodal.serve.apps import VOLUME
from openmodal.serve.calls import Call, serves
from openmodal.serve.door import Door
from openmodal.serve.uploads import proof
from openmodal.volume import Volume

_BLOCK = 8 << 20
"""What the client takes for a block; it believes no other size."""

_TYPES = {
    "file": api.FileEntry.FILE,
    "directory": api.FileEntry.DIRECTORY,
    "symlink": api.FileEntry.SYMLINK,
    "other": api.FileEntry.FILE,
}
_ANONYMOUS = (api.OBJECT_CREATION_TYPE_EPHEMERAL, api.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP)


class Volumes:
    """Serves the calls about volumes."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @serves("VolumeGetOrCreate")
    async def get_or_create(self, request: Any, call: Call) -> Any:
        kind, name = request.object_creation_type, request.deployment_name
        if kind in _ANONYMOUS:
            name = f"client-{ids.letters('volume', call.key or os.urandom(16), count=16)}"
        name = Volume.from_name(name).name  # it becomes a path, so it is checked
        there = name in {found.name for found in await self._all()}
        if there and kind == api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise AlreadyExistsError(f"Volume '{name}' already exists")
        if not there and kind == api.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise NotFoundError(f"there is no volume {name!r}; from_name(…, create_if_missing=True) makes it")
        if kind == api.OBJECT_CREATION_TYPE_EPHEMERAL:
            self._beat(name)
        if not there:
            await self._door.run(self._door.engine.make_volume(name))
        return api.VolumeGetOrCreateResponse(
            volume_id=ids.volume(name), version=api.VOLUME_FS_VERSION_V1, metadata=_metadata(name)
        )

    @serves("VolumeHeartbeat")
    async def heartbeat(self, request: Any, call: Call) -> Any:
        """The program of an ephemeral volume lives."""
        name = ids.volume_name(request.volume_id)
        if self._door.kept.named(self._door.own(VOLUME), name) is not None:
            self._beat(name)
        return Empty()

    def _beat(self, name: str) -> None:
        self._door.kept.name(self._door.own(VOLUME), name, "")

    @serves("VolumeGetById")
    async def by_id(self, request: Any, call: Call) -> Any:
        name = ids.volume_name(request.volume_id)
        if name not in {found.name for found in await self._all()}:
            raise NotFoundError(f"there is no volume {name!r}")
        return api.VolumeGetByIdResponse(volume_id=request.volume_id, metadata=_metadata(name))

    @serves("VolumeList")
    async def list(self, request: Any, call: Call) -> Any:
        found = [] if request.pagination.created_before else await self._all()
        items = [
            api.VolumeListItem(
                label=each.name, volume_id=ids.volume(each.name), created_at=each.created, metadata=_metadata(each.name)
            )
            for each in found
        ]
        return api.VolumeListResponse(items=items)

    @serves("VolumeDelete")
    async def delete(self, request: Any, call: Call) -> Any:
        await Volume.delete.aio(ids.volume_name(request.volume_id), engine=self._door.engine)
        return Empty()

    @serves("VolumeRename")
    async def rename(self, request: Any, call: Call) -> Any:
        await Volume.rename.aio(ids.volume_name(request.volume_id), request.name, engine=self._door.engine)
        return Empty()

    @serves("VolumeCommit")
    async def commit(self, request: Any, call: Call) -> Any:
        await self._volume(request).commit.aio()
        return api.VolumeCommitResponse(skip_reload=True)

    @serves("VolumeReload")
    async def reload(self, request: Any, call: Call) -> Any:
        await self._volume(request).reload.aio()
        return Empty()

    # ---------------------------------------------------------------------------------------- files

    @serves("VolumeListFiles")
    async def list_files(self, request: Any, call: Call) -> AsyncIterator[Any]:
        try:
            found = await self._volume(request).listdir.aio(request.path, recursive=request.recursive)
        except SandboxFileNotFoundError as error:
            raise NotFoundError(f"there is no {request.path!r} in the volume") from error
        entries = [
            api.FileEntry(
                path=plain(each.path.lstrip("/"), 1 << 16),
                type=_TYPES[each.kind],
                mtime=max(0, int(each.mtime)),  # a sandbox may set a time before 1970
                size=each.size,
            )
            for each in found
        ]
        yield api.VolumeListFilesResponse(entries=entries)

    @serves("VolumeGetFile2")
    async def get_file(self, request: Any, call: Call) -> Any:
        try:
            found = await self._volume(request).listdir.aio(request.path)
        except SandboxFileNotFoundError as error:
            raise NotFoundError(f"there is no {request.path!r} in the volume") from error
        if len(found) != 1 or found[0].is_dir or found[0].path.strip("/") != request.path.strip("/"):
            raise InvalidError(f"{request.path!r} is a folder of the volume, and no file")
        size = found[0].size
        length = min(request.len or size, max(0, size - request.start))
        # A hole costs a sandbox nothing, and the door a URL for each of its blocks.
        if length > COPY_MOST:
            raise InvalidError(
                f"{request.path!r} has {size} bytes, and a door gives a file of a volume up to {COPY_MOST >> 30} GiB, holes "
                "counted; have a sandbox that mounts the volume cut it into parts (`split -b 8G`), and read those"
            )
        urls = [
            self._url(request.volume_id, request.path, at, min(_BLOCK - at % _BLOCK, request.start + length - at))
            for at in _begins(request.start, length)
        ]
        return api.VolumeGetFile2Response(get_urls=urls, size=size, start=request.start, len=length)

    @serves("VolumePutFiles")
    async def put_files(self, request: Any, call: Call) -> Any:
        volume, kept = self._volume(request), self._door.kept
        async with volume.batch_upload(force=not request.disallow_overwrite_existing_files) as batch:
            for file in request.files:
                batch.put_file(kept.file(file.sha256_hex), file.filename, mode=file.mode or None)
        return Empty()

    @serves("VolumeRemoveFile")
    async def remove_file(self, request: Any, call: Call) -> Any:
        try:
            await self._volume(request).remove_file.aio(request.path, recursive=request.recursive)
        except SandboxFileNotFoundError as error:
            raise NotFoundError(f"there is no {request.path!r} in the volume") from error
        return Empty()

    @serves("VolumeCopyFiles")
    async def copy_files(self, request: Any, call: Call) -> Any:
        await self._volume(request).copy_files.aio([*request.src_paths], request.dst_path, recursive=request.recursive)
        return Empty()

    async def send(self, request: Request) -> Response:
        """GET of a block, by a URL that `get_file` gave."""
        where = request.path_params["where"]
        if not self._door.access.is_signed(where, *proof(request)):
            return PlainTextResponse("this URL is not one of this door's, or it is too old\n", 403)
        id, path, at, size = where.split("-")
        volume = Volume.from_name(ids.volume_name(f"vo-{id}"), engine=self._door.engine)
        try:
            data = await self._door.run(_read(volume, bytes.fromhex(path).decode(), int(at), int(size)))
        except (NotFoundError, SandboxFilesystemError) as error:
            return PlainTextResponse(f"{error}\n", 404)
        return Response(data, media_type="application/octet-stream")

    def _url(self, id: str, path: str, at: int, size: int) -> str:
        where = f"{id.removeprefix('vo-')}-{path.encode().hex()}-{at}-{size}"
        return f"{self._door.url}/volumes/{self._door.access.signed(where)}"

    # --------------------------------------------------------------------------------------- inside

    def _volume(self, request: Any) -> Volume:
        return Volume.from_name(ids.volume_name(request.volume_id), engine=self._door.engine)

    async def _all(self) -> Sequence[VolumeInfo]:
        return await Volume.list.aio(engine=self._door.engine)


async def _read(volume: Volume, path: str, at: int, size: int) -> bytes:
    async with volume._files() as files:
        return await files.read_bytes.core(path.lstrip("/"), at, size)


def mounts(definition: Any) -> tuple[Mount, ...]:
    """The volumes of a sandbox."""
    found: list[Mount] = []
    for each in definition.volume_mounts:
        volume = Volume.from_name(ids.volume_name(each.volume_id)).with_mount_options(
            read_only=each.read_only, sub_path=each.sub_path or None
        )
        found.append(volume.mount(each.mount_path))
    return tuple(found)


def _begins(start: int, length: int) -> list[int]:
    """Where the blocks of a range begin."""
    first = start - start % _BLOCK + _BLOCK
    return [start, *range(first, start + length, _BLOCK)] if length else []


def _metadata(name: str) -> Any:
    return api.VolumeMetadata(version=api.VOLUME_FS_VERSION_V1, name=name)


__all__ = ["Volumes", "mounts"]
