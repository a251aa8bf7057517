"""The verbs of the Kubernetes engine that keep a sandbox's files: snapshots, forks, names.

A pod can neither see its upper folder nor mount. So its agent compares the files with a list that
another pod of the same image has made, and what differs is pushed as one layer on top of the image.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO

import msgspec

from openmodal import _config
from openmodal._dual import Blocking
from openmodal._spec import Made, Referenced, Root
from openmodal.build import credentials, names, pull
from openmodal.build.push import Base, Pusher, pack_with
from openmodal.build.reference import parse
from openmodal.build.registry import Client
from openmodal.engines import asked
from openmodal.engines.book import Book
from openmodal.engines.compared import Compared
from openmodal.engines.contract import FOREVER
from openmodal.engines.kubernetes import difference, kept, pods
from openmodal.engines.kubernetes.api import Json
from openmodal.engines.kubernetes.images import NO_REGISTRY
from openmodal.engines.kubernetes.volumes import Keeper
from openmodal.errors import OTHER_TEMPORARY, EngineError, UnsupportedError, disk_full_named

_SECONDS = 600.0  # for the list of an image
_MOST = 64 << 30  # bytes of what has changed
_NOTE = f"{pods.DOMAIN}/image"
_UNKNOWN = (
    "what {} was made of is known only to the machine, and the version, that created it; create a new one, or use "
    "snapshot_filesystem()"
)


def noted(root: Referenced) -> dict[str, str]:
    """A sandbox's image, as an annotation of its pod."""
    return {_NOTE: msgspec.json.encode(root).decode()}


class Snapshots(Compared, Keeper):
    """What a pod's files were."""

    _book: Book
    _program = pods.AGENT

    async def made(self, id: str) -> Made[Referenced]:
        # Not at the pod: no object of the cluster has a sandbox's variables and main command.
        await self._running(id)
        if found := self._book.made(id, Referenced):
            return found
        raise UnsupportedError(_UNKNOWN.format(id))

    async def snapshot(self, id: str, expires: float, timeout: float | None = None) -> str:
        key, _ = await self._snapshot(id, expires, timeout)
        return key

    async def checkpoint(self, id: str) -> Referenced:
        _, image = await self._snapshot(id, (await self.inspect(id)).expires, None)
        return image

    async def import_files(self, files: IO[bytes], title: str, expires: float) -> str:
        key = os.urandom(32).hex()
        wanted, cpu = Referenced(key, reference=""), self._access()[1].cpu
        image: Referenced = await Blocking(_pushed, wanted, lambda out: shutil.copyfileobj(files, out), "", cpu)
        await self._keep(key, image, expires)
        return key

    async def publish(self, name: str, root: Root) -> str:
        image = asked.prepared(root, Referenced)
        key = names.digest("published", name, msgspec.to_builtins(image))
        await self._keep(key, image, FOREVER, name)
        return key

    async def published(self) -> Mapping[str, str]:
        cluster, settings, _ = self._access()
        found: list[kept.Kept] = await Blocking(kept.listed, cluster, settings)
        return {each.name: each.key for each in found if each.name}

    async def unpublish(self, name: str) -> bool:
        cluster, settings, _ = self._access()
        found: list[kept.Kept] = await Blocking(kept.listed, cluster, settings)
        return any([await Blocking(kept.delete, cluster, each) for each in found if each.name == name])

    async def _keep(self, key: str, image: Referenced, expires: float, name: str = "") -> None:
        cluster, settings, _ = self._access()
        await Blocking(kept.keep, cluster, settings, key, image, expires, name)

    async def _running(self, id: str) -> Json:
        """The object of a sandbox's pod.

        Raises:
            ConnectionError: it has ended.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------- what differs

    async def _snapshot(self, id: str, expires: float, timeout: float | None) -> tuple[str, Referenced]:
        """An image of a sandbox's files, with the settings of the image that it is made of."""
        if not _config.registry():
            raise EngineError(NO_REGISTRY)
        deadline = None if timeout is None else time.monotonic() + timeout
        root, key = await self._image(id), os.urandom(32).hex()
        with tempfile.TemporaryFile() as list_of_image, tempfile.TemporaryFile() as told:
            async with self._pristine(root) as image_agent:
                await self._told(image_agent, "list", b"", list_of_image)
            await self._compare(id, list_of_image, told, deadline)
            wanted = msgspec.structs.replace(root, key=names.digest("snapshot", key))
            cpu, write = self._access()[1].cpu, functools.partial(difference.write, told)
            image: Referenced = await Blocking(_pushed, wanted, write, root.reference, cpu)
        _check_time(deadline)
        await self._keep(key, image, expires)
        return key, image

    async def _image(self, id: str) -> Referenced:
        """The image that a sandbox was made of."""
        note = str((await self._running(id))["metadata"]["annotations"].get(_NOTE, ""))
        if not note:
            raise UnsupportedError(
                f"an earlier version has made {id}, of which no snapshot can be taken; create a new one"
            )
        return msgspec.json.decode(note, type=Referenced)

    async def _compare(self, id: str, list_of_image: IO[bytes], told: IO[bytes], deadline: float | None) -> None:
        """Have the sandbox's agent tell what differs, while everything else in it is stopped."""
        list_of_image.seek(0)
        async with self._agent(id) as agent:
            try:
                left = None if deadline is None else max(0.001, deadline - time.monotonic())
                await self._told(agent, "since-start", list_of_image, told, left)
            except BaseException:
                # Whatever has ended the agent's process: nothing shall stay stopped.
                with contextlib.suppress(EngineError, ConnectionError):
                    await self._told(agent, "go-on", b"", None)
                raise


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError("the snapshot was not taken in time")


def _pushed(root: Referenced, write: Callable[[IO[bytes]], None], base: str, cpu: str) -> Referenced:
    """Push a layer, on top of an image of a registry or of nothing; the image."""
    registry = _config.registry()
    if not registry:
        raise EngineError(NO_REGISTRY)
    target = parse(f"{registry.rstrip('/')}/openmodal:snap-{root.key[:40]}")
    with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        with disk_full_named(tempfile.gettempdir(), OTHER_TEMPORARY):
            layer = pack_with(write, file)
        below = _base(stack, base, cpu) if base else None
        pusher = stack.enter_context(contextlib.closing(Pusher(target)))
        digest = pusher.on_top(root, below, layer, file, cpu)
    reference = msgspec.structs.replace(target, target=digest)
    return msgspec.structs.replace(root, reference=str(reference))


def _base(stack: contextlib.ExitStack, text: str, cpu: str) -> Base:
    reference = parse(text)
    client = stack.enter_context(Client(reference.host, login=credentials.find(reference.host)))
    return Base(client, reference, pull.resolve(client, reference, cpu))
