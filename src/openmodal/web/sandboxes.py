"""The list of sandboxes: what runs, what ended and why, and what each uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from openmodal._spec import Info, Status, Usage
from openmodal.errors import Error, NotFoundError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.web.feed import Feed, Rows

if TYPE_CHECKING:
    from openmodal.web.server import Page

_MEASURED = 48
"""So many sandboxes are measured in one look, the longest not measured first."""
_AT_ONCE = 8
_EVERY = 2.0  # seconds from one measurement of a sandbox to the next
_ENDED_EVERY = 60.0
_ENDED_SHOWN = 500


@dataclass
class _Known:
    """A running sandbox, and what was measured of it."""

    sandbox: Sandbox
    status: Status
    measured: float = 0.0
    usage: Usage = field(default_factory=Usage)
    cores: float | None = None
    info: Info | None = None


class Sandboxes:
    """The feed `sandboxes`, and what a visitor does to one of them."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._running: dict[str, _Known] = {}
        self._ended: dict[str, Status] = {}
        self._ended_read = float("-inf")
        self._feed = Feed(self.look)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Stop, pause, resume."""
        return [Route("/sandboxes/{id}/{verb:str}", self._act, methods=["POST"])]

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """The rows of the list."""
        return {"sandboxes": self._feed}

    async def look(self) -> Rows:
        """The rows: the newest sandbox first, then those that ended, the last one first."""
        found = await Sandbox.list.aio(engine=self._page.engine)
        await self._note([(each, each.last_status) for each in found])
        await self._measure()
        known = sorted(self._running.values(), key=lambda each: -each.status.created)
        rows = {each.status.id: _row(each.status, each) for each in known}
        return rows | {id: _row(status) for id, status in self._ended.items()}

    async def _note(self, found: Iterable[tuple[Sandbox, Status | None]]) -> None:
        before, now = self._running, time.monotonic()
        self._running = {}
        for sandbox, status in found:
            if status:
                self._running[sandbox.id] = before.get(sandbox.id) or _Known(sandbox, status)
                self._running[sandbox.id].status = status
        ended = [await _last(before[id].sandbox) for id in before if id not in self._running]
        if now - self._ended_read > _ENDED_EVERY and "ended" not in self._page.lacks:
            self._ended_read = now
            ended += [each.last_status for each in await Sandbox.list.aio(ended=True, engine=self._page.engine)]
        known = self._ended | {status.id: status for status in ended if status and status.ended}
        newest = sorted(known.values(), key=lambda status: -status.ended.ended if status.ended else 0.0)
        self._ended = {status.id: status for status in newest[:_ENDED_SHOWN] if status.id not in self._running}

    async def _measure(self) -> None:
        if "usage" in self._page.lacks:
            return
        now = time.monotonic()
        due = sorted((k for k in self._running.values() if now - k.measured >= _EVERY), key=lambda k: k.measured)
        turns = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(self._measure_one(known, turns) for known in due[:_MEASURED]))

    async def _measure_one(self, known: _Known, turns: asyncio.Semaphore) -> None:
        async with turns:
            before, then = known.usage.cpu, known.measured
            known.measured = time.monotonic()
            try:
                known.usage = await known.sandbox.usage.aio()
                if known.info is None and "info" not in self._page.lacks:
                    known.info = await known.sandbox.info.aio()
            except (SandboxNotRunningError, ConnectionError, NotFoundError):
                return  # the next look tells
            if before is not None and known.usage.cpu is not None:
                known.cores = max(0.0, known.usage.cpu - before) / (known.measured - then)

    async def _act(self, request: Request) -> Response:
        sandbox = await Sandbox.from_id.aio(request.path_params["id"], engine=self._page.engine)
        verbs = {"stop": sandbox.terminate, "pause": sandbox.pause, "resume": sandbox.resume}
        verb = verbs.get(request.path_params["verb"])
        if verb is None:
            return Response(status_code=404)
        await verb.aio()
        self._feed.look_now()
        return JSONResponse({})


async def _last(sandbox: Sandbox) -> Status | None:
    """How a sandbox is that is in the list no more; None if nobody knows."""
    try:
        return await sandbox.status.aio()
    except Error:
        return None


def _row(status: Status, known: _Known | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": status.id,
        "app": status.app,
        "name": status.name,
        "tags": dict(status.tags),
        "image": status.image,
        "runtime": status.runtime,
        "run": status.run,
        "created": status.created,
        "expires": status.expires,
        "state": _state(status),
        "ports": dict(status.tunnels),
    }
    if status.ended:
        end = status.ended
        row["end"] = {"reason": end.reason, "text": end.text, "at": end.ended, "code": end.returncode}
    if known:
        row |= _measured(known)
    return row


def _measured(known: _Known) -> dict[str, Any]:
    """Rounded, so that a sandbox that does nothing is not sent anew each time."""
    usage, info = known.usage, known.info
    return {
        "cores": None if known.cores is None else round(known.cores, 2),
        "memory": None if usage.memory is None else round(usage.memory, 1),
        "processes": usage.processes,
        "written": usage.written,
        "limits": {"memory": info.memory, "cpu": info.cpu} if info else None,
        "degraded": list(info.degraded) if info else [],
        "generation": info.generation if info else 0,
    }


def _state(status: Status) -> str:
    if status.ended:
        return "ended"
    return "paused" if status.paused else "running"


__all__ = ["Sandboxes"]
