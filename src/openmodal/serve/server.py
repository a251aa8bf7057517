"""One port for all, TLS or not, gRPC or HTTP/1.1: the first bytes of a client tell which."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from modal_proto import api_grpc, task_command_router_grpc
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from openmodal.serve import ids
from openmodal.serve.apps import Apps
from openmodal.serve.calls import Call, Details, handlers, log
from openmodal.serve.door import Door
from openmodal.serve.metrics import Metrics
from openmodal.serve.outputs import Outputs
from openmodal.serve.router import Router
from openmodal.serve.sandboxes import Sandboxes
from openmodal.serve.snapshots import OldSnapshots, Snapshots
from openmodal.serve.uploads import Uploads
from openmodal.serve.volumes import Volumes
from openmodal.web.server import Page, application, gone, http, part

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 sends first (RFC 9113, section 3.4)."""


_HANDSHAKE = b"\x16"
"""The type of TLS's first record (RFC 8446, section 5.1)."""

_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A client whose machine vanished is noticed after two minutes: its streams would last for ever, and
keep sandboxes from being idle."""

_AT_ONCE = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
"""Answers are not held back until the client has acknowledged the last one, which takes 40 ms. The
library does that for sockets that were made with the protocol's number only."""

_ENOUGH = 64 << 10
"""Bytes that are not held back for more of the same turn."""

_FIRST_BYTE = 60.0
_PAUSE = 0.05


class _Services:
    """All handlers, as grpclib takes them."""

    def __init__(self, table: dict[str, Handler]) -> None:
        self._table = table

    def __mapping__(self) -> dict[str, Handler]:
        return self._table


class _Together(asyncio.Transport):
    """A connection that sends what is written in one turn of the loop as one: an answer is three
    frames, and each would wake the client."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._written: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._written:
            asyncio.get_running_loop().call_soon(self._send)
        self._written.append(bytes(data))
        self._size += len(data)
        if self._size >= _ENOUGH:
            self._send()

    def _send(self) -> None:
        if self._written:
            self._transport.write(b"".join(self._written))
            self._written.clear()
            self._size = 0

    def close(self) -> None:
        self._send()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class _First(asyncio.Protocol):
    """A connection until it is known which protocol it speaks."""

    def __init__(self, grpc: Server, http: Config, state: ServerState) -> None:
        self._grpc = grpc
        self._http = http
        self._state = state
        self._begin = b""
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._patience = asyncio.get_running_loop().call_later(_FIRST_BYTE, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()

    def data_received(self, data: bytes) -> None:
        self._begin += data
        if len(self._begin) < len(_PREFACE) and _PREFACE.startswith(self._begin):
            return
        assert self._transport
        self._patience.cancel()
        chosen = self._chosen()
        is_http1 = isinstance(chosen, H11Protocol)
        chosen.connection_made(self._transport if is_http1 else _Together(self._transport))
        self._transport.set_protocol(chosen)
        chosen.data_received(self._begin)

    def _chosen(self) -> H2Protocol | H11Protocol:
        if self._begin.startswith(_PREFACE):
            return self._grpc._protocol_factory()
        return H11Protocol(self._http, self._state, {})


def _services(door: Door, metrics: Metrics) -> dict[str, Handler]:
    def admit(call: Call, request: Any) -> None:
        door.access.admit(call.metadata)

    def admit_to_task(call: Call, request: Any) -> None:
        if request is None:
            door.access.admit_somewhere(call.metadata)
            return
        task = request.start.task_id if call.name == "TaskExecStdinWriteStream" else request.task_id
        door.access.admit_to(ids.sandbox_of_task(task), call.metadata)

    rooms = (
        Apps(door),
        Sandboxes(door),
        Outputs(door),
        door.images,
        Uploads(door),
        Volumes(door),
        OldSnapshots(door),
    )
    control = handlers(api_grpc.ModalClientBase, rooms, admit)
    commands = handlers(task_command_router_grpc.TaskCommandRouterBase, (Router(door), Snapshots(door)), admit_to_task)
    return metrics.measured({**control, **commands})


def _application(door: Door, page: Page, metrics: Metrics) -> Starlette:
    uploads = Uploads(door)

    async def health(request: Request) -> Response:
        running = await door.run(door.engine.list())
        return JSONResponse({"engine": door.engine.name, "sandboxes": len(running)})

    async def measures(request: Request) -> Response:
        running = await door.run(door.engine.list())
        return PlainTextResponse(metrics.text(len(running)), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/metrics", measures),
            Route("/volumes/{where}/{until:int}/{signature}", Volumes(door).send),
            Route("/blobs/{digest}/{size:int}/{until:int}/{signature}", uploads.receive, methods=["PUT"]),
            Mount("/", application(page)),
        ],
        exception_handlers={ClientDisconnect: gone},
    )


class _Listener:
    """Accepts connections, and finds out which of them begin with TLS."""

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol], *, clear: bool
    ) -> None:
        self._sock = sock
        self._clear = clear
        self._tls = tls
        self._protocol = protocol
        self._greeting: set[asyncio.Task[None]] = set()

    async def accept(self) -> None:
        """Accept for ever."""
        self._sock.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._sock)
            except OSError as error:  # too many open files, or a client that is gone already
                log.warning("a connection was not accepted", extra={"reason": str(error)})
                await asyncio.sleep(_PAUSE)
                continue
            task = loop.create_task(self._greet(connection))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            for level, option, value in (*_ALIVE, _AT_ONCE):
                connection.setsockopt(level, option, value)
            async with asyncio.timeout(_FIRST_BYTE):
                await _readable(connection)
            tls = self._tls if connection.recv(1, socket.MSG_PEEK) == _HANDSHAKE else None
            if tls is None and not self._clear:
                raise ConnectionRefusedError("it was not encrypted")
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=tls)
        except (OSError, TimeoutError) as error:  # ssl.SSLError, too
            log.info("a connection was not made", extra={"reason": str(error)})
            connection.close()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, ready.cancel)
    try:
        await asyncio.wait([ready])
    finally:
        loop.remove_reader(sock)


@asynccontextmanager
async def serving(
    door: Door, page: Page, listener: socket.socket, tls: ssl.SSLContext, *, clear: bool = True
) -> AsyncIterator[None]:
    """Serve a door, and the web page, at a socket that listens, as long as the block; `clear`: not
    only encrypted."""
    metrics = Metrics()
    grpc = Server([_Services(_services(door, metrics))], status_details_codec=Details())
    config = http(_application(door, page, metrics))
    state = ServerState()
    server = _Listener(listener, tls, lambda: _First(grpc, config, state), clear=clear)
    accepting = asyncio.create_task(server.accept())
    # What is there now stays: no collection looks at it again.
    gc.freeze()
    try:
        yield
    finally:
        accepting.cancel()
        for handler in grpc._handlers:
            handler.close()
        await part(state)


__all__ = ["serving"]
