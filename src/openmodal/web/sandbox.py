"""One sandbox, for the view static/sandbox.mjs: what was done with it, what it uses, what holds it.

Whatever comes from a sandbox is data here: JSON, or bytes of a download. To look on is no use of
it: a lease runs out, and an idle sandbox ends, whoever has its page open.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from openmodal import _args
from openmodal._journal import Event
from openmodal._spec import Status
from openmodal.errors import Error, InvalidError, NotFoundError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.web import files, terminal
from openmodal.web.feed import Feed, Rows, streamed
from openmodal.web.output import output

if TYPE_CHECKING:
    from openmodal.web.server import Page

_KEPT = 64
"""So many sandboxes are remembered, with what they used."""

_SAMPLES = 3600
_SHOWN = 1000
"""Events that are shown, the newest."""

_TALKED = 200
"""What a sandbox wanted to reach: so many names, and so many of the newest attempts."""

_INFO_EVERY = 10.0


class OneSandbox:
    """The feed `sandbox/ID`, and the calls below /sandbox/ID/."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._watched: OrderedDict[str, _Watched] = OrderedDict()

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """All of them."""
        return [
            Route("/feeds/sandbox/{id}", self._watch),
            Route("/sandbox/{id}/samples", self._samples),
            Route("/sandbox/{id}/output/{command}", self._output),
            Route("/sandbox/{id}/files", self._files),
            Route("/sandbox/{id}/file", self._file, methods=["GET", "POST"]),
            Route("/sandbox/{id}/diff", self._diff),
            WebSocketRoute("/sandbox/{id}/terminal", self._terminal),
        ]

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """Each sandbox has its own."""
        return {}

    async def _of(self, connection: Request | WebSocket) -> _Watched:
        """The sandbox of a call, the same one for all calls: they share its connections."""
        id: str = connection.path_params["id"]
        if id not in self._watched:
            sandbox = await Sandbox.from_id.aio(id, engine=self._page.engine)
            self._watched.setdefault(id, _Watched(sandbox, self._page))
            while len(self._watched) > _KEPT:
                self._watched.popitem(last=False)
        self._watched.move_to_end(id)
        return self._watched[id]

    async def _watch(self, request: Request) -> Response:
        return (await self._of(request)).feed.response(request)

    async def _samples(self, request: Request) -> Response:
        return JSONResponse([*(await self._of(request)).samples])

    async def _output(self, request: Request) -> Response:
        id = _args.command_id(request.path_params["command"])
        return streamed(output((await self._of(request)).sandbox, id))

    async def _files(self, request: Request) -> Response:
        return await files.listed((await self._of(request)).sandbox, request)

    async def _file(self, request: Request) -> Response:
        sandbox = (await self._of(request)).sandbox
        return await (files.taken if request.method == "POST" else files.given)(sandbox, request)

    async def _diff(self, request: Request) -> Response:
        return await files.diff((await self._of(request)).sandbox)

    async def _terminal(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            sandbox = (await self._of(socket)).sandbox
            await terminal.serve(socket, sandbox)
        except Error as error:
            await socket.close(terminal.FAILED, terminal.reason(error))


class _Watched:
    """A sandbox whose page is, or was, open."""

    def __init__(self, sandbox: Sandbox, page: Page) -> None:
        self.sandbox = sandbox
        self._lacks = page.lacks
        self._spent: tuple[float, float] | None = None
        self._info: dict[str, Any] | None = None
        self._info_read = float("-inf")
        self.samples: deque[dict[str, Any]] = deque(maxlen=_SAMPLES)
        self.feed = Feed(self.look)

    async def look(self) -> Rows:
        """Rows: `about`, `use`, `egress`, and one for each event."""
        events = await self.sandbox.timeline.aio()
        status = self.sandbox.last_status or await self.sandbox.status.aio()
        rows: dict[str, Mapping[str, Any]] = {"about": await self._about(status)}
        if not status.ended and (sample := await self._sample()):
            self.samples.append(sample)
            rows["use"] = {"id": "use", **sample}
        if talked := await self._egress():
            rows["egress"] = talked
        return rows | {row["id"]: row for row in map(_row, events[-_SHOWN:])}

    async def _about(self, status: Status) -> dict[str, Any]:
        now = time.monotonic()
        if not status.ended and "info" not in self._lacks and now - self._info_read > _INFO_EVERY:
            self._info_read = now
            try:
                self._info = msgspec.to_builtins(await self.sandbox.info.aio())
            except (Error, OSError):
                self._info = None
        return {"id": "about", "status": status, "info": self._info}

    async def _sample(self) -> dict[str, Any] | None:
        if "usage" in self._lacks:
            return None
        try:
            usage = await self.sandbox.usage.aio()
        except (SandboxNotRunningError, ConnectionError, NotFoundError):
            return None
        now, before = time.time(), self._spent
        self._spent = None if usage.cpu is None else (now, usage.cpu)
        cores = None
        if before and usage.cpu is not None and now > before[0]:
            cores = round(max(0.0, usage.cpu - before[1]) / (now - before[0]), 3)
        return {"at": round(now, 2), "cores": cores, **msgspec.to_builtins(usage)}

    async def _egress(self) -> dict[str, Any] | None:
        """What it wanted to reach; None if nothing is noted of that."""
        if "network_allowlists" in self._lacks:
            return None
        try:
            log = await self.sandbox.egress_log.aio()
        except (InvalidError, NotFoundError):
            return None
        counts = Counter((each.asked or each.address, each.kind, each.allowed, each.reason) for each in log)
        return {
            "id": "egress",
            "counts": [
                {"name": name, "kind": kind, "allowed": allowed, "reason": reason, "count": count}
                for (name, kind, allowed, reason), count in counts.most_common(_TALKED)
            ],
            "newest": log[-_TALKED:],
        }


def _row(event: Event) -> dict[str, Any]:
    code = event.record.returncode if event.record else None
    return {"id": f"{event.call} {event.command or event.at}", "event": event, "code": code}


__all__ = ["OneSandbox"]
