"""What all rooms of a door know: the engine, what is kept, who may call, where it is reached."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from modal_proto import api_pb2 as api

from openmodal._dual import run_async
from openmodal._spec import EndRecord, Status
from openmodal.engines import Engine
from openmodal.errors import NotFoundError
from openmodal.sandbox import Sandbox
from openmodal.serve import ids
from openmodal.serve.access import Access
from openmodal.serve.images import Images
from openmodal.serve.kept import Kept
from openmodal.serve.tunnels import Tunnels
from openmodal.tunnel import Tunnel

T = TypeVar("T")

_SANDBOXES_KNOWN = 200
_TUNNELS = 50.0
"""Seconds until a sandbox's tunnels must be there."""

_RESULTS = {
    "timeout": api.GenericResult.GENERIC_STATUS_TIMEOUT,
    "terminated": api.GenericResult.GENERIC_STATUS_TERMINATED,
    "idle": api.GenericResult.GENERIC_STATUS_IDLE_TIMEOUT,
    "oom": api.GenericResult.GENERIC_STATUS_KERNEL_OOM_KILL,
    "lost": api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
    "disk": api.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE,
    "error": api.GenericResult.GENERIC_STATUS_INIT_FAILURE,
}


@dataclass(frozen=True)
class Limits:
    """What a door lets its clients have.

    Attributes:
        sandboxes: how many run at a time.
        starts: how many are created at a time; more wait.
        queue: how many wait; the clients of more are told to ask again.
        lifetime: seconds that one lives at most.
        memory: MiB that one has at most; 0: what the engine says.
        upload: bytes of a file that is sent.
    """

    sandboxes: int = 1000
    starts: int = 16
    queue: int = 1000
    lifetime: float = 24 * 3600.0
    memory: int = 0
    upload: int = 8 << 30


@dataclass(frozen=True)
class Door:
    """A door; it holds nothing that matters."""

    engine: Engine
    kept: Kept
    access: Access
    images: Images
    url: str
    limits: Limits

    @functools.cached_property
    def starting(self) -> asyncio.Semaphore:
        """Held by who creates a sandbox."""
        return asyncio.Semaphore(self.limits.starts)

    @functools.cached_property
    def tunnels(self) -> Tunnels:
        """Where ports of sandboxes are reached."""

        async def find(id: str) -> Mapping[int, Tunnel]:
            return await self.sandbox(ids.sandbox_on_wire(id)).tunnels.aio(_TUNNELS)

        async def running() -> set[str]:
            return {status.id for status in await self.run(self.engine.list())}

        return Tunnels(self.kept, self.own("tunnel"), find, running)

    def own(self, kind: str) -> str:
        """A kind of names about sandboxes, which the doors of other engines do not see: one of this
        folder would take them for ended."""
        return f"{kind}-{self.engine.name}"

    def variables(self, secret_ids: Iterable[str], sources: Iterable[Any]) -> dict[str, str]:
        """The variables of secrets and, over them, of sources, of which a later one beats the others."""
        found = self.kept.variables(secret_ids)
        for source in sources:
            is_kept = source.WhichOneof("source") == "secret_id"
            found |= self.kept.secret(source.secret_id).variables if is_kept else dict(source.env.contents)
        return found

    def router(self, client: str) -> str:
        """Where a client of that version sends commands; up to 1.4, it wants TLS on loopback."""
        numbers = re.match(r"(\d+)\.(\d+)", client)
        is_old = numbers is not None and (int(numbers[1]), int(numbers[2])) < (1, 5)
        return self.url.replace("http://", "https://", 1) if is_old else self.url

    def sandbox(self, wire: str) -> Sandbox:
        """The sandbox of an id on the wire; nobody looks whether there is one.

        It is the same object for the next calls, whose connections are those of the last. So many
        are remembered as were used last.
        """
        id = ids.sandbox(wire)
        return self.remember(self._sandboxes.pop(id) if id in self._sandboxes else Sandbox(id, self.engine))

    def remember(self, sandbox: Sandbox) -> Sandbox:
        """Have the next calls use this object, and its connections."""
        self._sandboxes[sandbox.id] = sandbox
        while len(self._sandboxes) > _SANDBOXES_KNOWN:
            self.forget(next(iter(self._sandboxes)))
        return sandbox

    def forget(self, id: str) -> None:
        """Close the connections to a sandbox."""
        if id in self._sandboxes:
            self._sandboxes.pop(id)._agent.close()

    async def end(self, id: str) -> None:
        """End a sandbox, and what leads to it."""
        self.forget(id)
        self.tunnels.close(id)
        await self.run(self.engine.stop(id))

    @functools.cached_property
    def _sandboxes(self) -> dict[str, Sandbox]:
        return {}

    async def status(self, wire: str) -> Status:
        """How a sandbox is."""
        try:
            return await self.run(self.engine.inspect(ids.sandbox(wire)))
        except NotFoundError as error:
            raise NotFoundError(f"there is no sandbox {wire!r}, and none ended lately") from error

    @staticmethod
    async def run(core: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the core."""
        return await run_async(core)

    async def finish(self, core: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the core to its end, also when the call that wants it is lost: its
        client calls again, and finds what it made."""
        return await asyncio.shield(self.begin(core))

    def begin(self, core: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine of the core beside the call that wants it."""
        task = asyncio.get_running_loop().create_task(run_async(core))
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    @functools.cached_property
    def _unfinished(self) -> set[asyncio.Task[Any]]:
        return set()


def result(end: EndRecord | None) -> Any:
    """How a sandbox ended, in the client's words; None while it runs."""
    if end is None:
        return None
    status = _RESULTS.get(end.reason)
    if status is None:
        good = api.GenericResult.GENERIC_STATUS_SUCCESS
        status = good if end.returncode == 0 else api.GenericResult.GENERIC_STATUS_FAILURE
    told = end.reason in ("lost", "disk", "error")
    return api.GenericResult(status=status, exitcode=end.returncode, exception=end.text if told else "")
