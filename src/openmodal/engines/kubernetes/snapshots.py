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
from collections.abc import AsyncIterator, Callable, Mapping
from typing import IO

import msgspec

from openmodal import _config
from openmodal._agent import Agent
from openmodal._command import Command, Feed
from openmodal._dual import Blocking
from openmodal._spec import ExecSpec, Made, OutputGap, Referenced, Root, SandboxSpec
from openmodal._wire import Flag
from openmodal.build import credentials, names, pull
from openmodal.build.push import Base, Pusher, pack_with
from openmodal.build.reference import parse
from openmodal.build.registry import Client
from openmodal.engines import asked
from openmodal.engines.book import Book
from openmodal.engines.contract import FOREVER, Created
from openmodal.engines.kubernetes import difference, kept, pods
from openmodal.engines.kubernetes.api import Json
from openmodal.engines.kubernetes.images import NO_REGISTRY
from openmodal.engines.kubernetes.volumes import Keeper
from openmodal.errors import EngineError, UnsupportedError, disk_full_named

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


class Snapshots(Keeper):
    """What a pod's files were."""

    _book: Book

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
            await self._list(root, list_of_image)
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

    async def _list(self, root: Referenced, target: IO[bytes]) -> None:
        """The list of the files of an image, made in a pod of it."""
        spec = SandboxSpec(app="list", timeout=_SECONDS, lease=_SECONDS / 2, hidden=True, workdir="/")
        made = await self.create(spec, root)
        try:
            async with self._agent(made) as agent:
                await _told(agent, "list", b"", target, None)
        finally:
            await self.stop(made.id if isinstance(made, Created) else made)

    async def _compare(self, id: str, list_of_image: IO[bytes], told: IO[bytes], deadline: float | None) -> None:
        """Have the sandbox's agent tell what differs, while everything else in it is stopped."""
        list_of_image.seek(0)
        async with self._agent(id) as agent:
            try:
                await _told(agent, "since-start", list_of_image, told, deadline)
            except BaseException:
                # Whatever has ended the agent's process: nothing shall stay stopped.
                with contextlib.suppress(EngineError, ConnectionError):
                    await _told(agent, "go-on", b"", None, None)
                raise

    @contextlib.asynccontextmanager
    async def _agent(self, made: str | Created) -> AsyncIterator[Agent]:
        id = made if isinstance(made, str) else made.id

        async def why(error: Exception) -> None:
            if (await self.inspect(id)).ended:
                raise ConnectionResetError(f"the sandbox {id} has ended") from error

        agent = Agent(lambda: self.connect(id), why, None if isinstance(made, str) else made.first)
        try:
            yield agent
        finally:
            agent.close()


class _File:
    """Takes a stream's bytes into a file."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._size = 0

    def skip(self, gap: OutputGap) -> None:
        raise EngineError("a part of what has changed is lost; take the snapshot again")

    def write(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > _MOST:
            raise EngineError(f"the sandbox has more than {_MOST >> 30} GiB of changed files; use a volume for them")
        if self._file:
            with disk_full_named(tempfile.gettempdir()):
                self._file.write(data)


async def _told(
    agent: Agent, what: str, stdin: bytes | IO[bytes], target: IO[bytes] | None, deadline: float | None
) -> None:
    """What `openmodal-agent changes` says (native/changes.c).

    Raises:
        TimeoutError: it has not ended in time.
    """
    left = None if deadline is None else max(0.001, deadline - time.monotonic())
    spec = ExecSpec((pods.AGENT, "changes", what), user="0", workdir="/", timeout=left, flags=Flag.STDIN)
    with tempfile.TemporaryFile() as said:
        sinks = {1: _File(target), 2: _File(said)}
        _, record = await Command(agent, os.urandom(16)).run(spec, Feed(stdin), sinks)
        if record.timed_out:
            raise TimeoutError("the snapshot was not taken in time")
        if record.code or record.signaled:
            said.seek(0)
            text = said.read(1000).decode(errors="replace").strip() or f"its agent ends with {record.returncode}"
            raise EngineError(f"the sandbox's files cannot be compared with the image: {text}")


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
        with disk_full_named(tempfile.gettempdir()):
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
