"""Snapshots of a sandbox's files, and images that are mounted in a sandbox that runs."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as api
from modal_proto import task_command_router_pb2 as router

from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.serve import fields, ids
from openmodal.serve.calls import Call, serves
from openmodal.serve.door import Door

_FOR_EVER = -1


class Snapshots:
    """Serves the calls of the router about a sandbox's files as images."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @serves("TaskSnapshotFilesystem")
    async def filesystem(self, request: Any, call: Call) -> Any:
        fields.check(request, fields.SNAPSHOT, call)
        sandbox = self._sandbox(request)
        id = await self._once(request, lambda: sandbox.snapshot_filesystem.aio(ttl=_ttl(request)))
        return router.TaskSnapshotFilesystemResponse(image_id=id)

    @serves("TaskSnapshotDirectory")
    async def directory(self, request: Any, call: Call) -> Any:
        fields.check(request, fields.SNAPSHOT, call)
        sandbox, path = self._sandbox(request), os.fsdecode(request.path)
        id = await self._once(request, lambda: sandbox.snapshot_directory.aio(path, ttl=_ttl(request)))
        return router.TaskSnapshotDirectoryResponse(image_id=id)

    @serves("TaskMountDirectory")
    async def mount(self, request: Any, call: Call) -> Any:
        fields.check(request, fields.SNAPSHOT, call)
        image = Image(self._door.kept.recipe(request.image_id))
        await self._sandbox(request).mount_image.aio(os.fsdecode(request.path), image)
        return Empty()

    @serves("TaskUnmountDirectory")
    async def unmount(self, request: Any, call: Call) -> Any:
        fields.check(request, fields.SNAPSHOT, call)
        await self._sandbox(request).unmount_image.aio(os.fsdecode(request.path))
        return Empty()

    async def _once(self, request: Any, make: Callable[[], Awaitable[Image]]) -> str:
        """The image of a snapshot; the same if the client asks for that snapshot again."""
        kept, name = self._door.kept, request.snapshot_id
        if name and (known := kept.named("snapshot", name)):
            return known
        id = kept.keep_recipe((await make()).recipe)
        if name:
            kept.name("snapshot", name, id)
        return id

    def _sandbox(self, request: Any) -> Sandbox:
        return self._door.sandbox(ids.sandbox_of_task(request.task_id))


class OldSnapshots:
    """Serves the same of clients that ask the control service."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @serves("SandboxSnapshotFs")
    async def filesystem(self, request: Any, call: Call) -> Any:
        image = await self._door.sandbox(request.sandbox_id).snapshot_filesystem.aio()
        id = self._door.kept.keep_recipe(image.recipe)
        good = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        return api.SandboxSnapshotFsResponse(image_id=id, result=good, image_metadata=api.ImageMetadata())


def _ttl(request: Any) -> float | None:
    seconds = request.ttl_seconds
    return None if seconds == _FOR_EVER else float(seconds) if seconds else 30 * 86400.0


__all__ = ["OldSnapshots", "Snapshots"]
