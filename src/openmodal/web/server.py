"""The application: the page itself, its files, and the calls below /api/PLACE/ for visitors."""

from __future__ import annotations

import asyncio
import functools
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from openmodal import _files
from openmodal._journal import caller
from openmodal.engines import Engine, lacking
from openmodal.errors import (
    AlreadyExistsError,
    Error,
    InvalidError,
    NotFoundError,
    SandboxFilesystemError,
    SandboxNotRunningError,
    UnsupportedError,
)
from openmodal.web.feed import Feed
from openmodal.web.guard import Guard, refuse
from openmodal.web.images import Images
from openmodal.web.machine import Machine
from openmodal.web.sandbox import OneSandbox
from openmodal.web.sandboxes import Sandboxes
from openmodal.web.sessions import Sessions

_FOLDER = Path(__file__).parent
_LONGEST_TOKEN = 4096
_FAREWELL = 5.0
_STATUS: Mapping[type[Error], int] = {
    NotFoundError: 404,
    SandboxNotRunningError: 409,
    AlreadyExistsError: 409,
    InvalidError: 400,
    SandboxFilesystemError: 400,
    UnsupportedError: 501,
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Inline styles are the terminal's, which sets sizes and colours of its cells by them."""


@dataclass(frozen=True)
class Page:
    """What the page is of, for the modules that make it.

    Attributes:
        engine: whose sandboxes are shown.
        sessions: who may see it.
        read_only: nothing is changed by it.
        hosts: the names that it is called by; None: any, because clients verify a certificate.
        version: of the package.
    """

    engine: Engine
    sessions: Sessions
    read_only: bool = False
    hosts: frozenset[str] | None = None
    version: str = ""

    @functools.cached_property
    def lacks(self) -> frozenset[str]:
        """The promises that the engine does not keep."""
        return lacking(self.engine)


class Part(Protocol):
    """A module of the page: its calls, and what it shows that changes, by name."""

    @property
    def routes(self) -> Sequence[BaseRoute]: ...

    @property
    def feeds(self) -> Mapping[str, Feed]: ...


def application(page: Page) -> Starlette:
    """The page as an ASGI application."""
    parts: Sequence[Part] = (Sandboxes(page), OneSandbox(page), Images(page), Machine(page))
    return Starlette(
        routes=[
            Route("/", _index),
            Route("/session", _Entrance(page).enter, methods=["POST"]),
            Mount("/static", StaticFiles(directory=_FOLDER / "static")),
            Mount("/vendor", StaticFiles(directory=_FOLDER / "vendor")),
            Mount("/api/{place}", _Admitted(page, _calls(page, parts))),
        ],
        middleware=[Middleware(Guard, hosts=page.hosts)],
        exception_handlers={Error: _told, ClientDisconnect: gone},
    )


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Serve the application at a socket that listens, as long as the block."""
    config, state = http(app), ServerState()
    protocol = functools.partial(H11Protocol, config, state, {})
    server = await asyncio.get_running_loop().create_server(protocol, sock=listener, ssl=tls)
    try:
        yield
    finally:
        server.close()
        await part(state)


async def part(state: ServerState) -> None:
    """Cut all connections, and let what is done for them end. What is cancelled instead, as the
    loop ends, is told as a mistake."""
    # Streams that never end are cut, too; the pages come again.
    for connection in list(state.connections):
        connection.transport.abort()
    if state.tasks:
        await asyncio.wait(state.tasks, timeout=_FAREWELL)


def http(app: ASGIApp) -> Config:
    """How HTTP is spoken here, and WebSockets."""
    config = Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False, http="h11", ws="wsproto"
    )
    config.load()
    return config


async def gone(request: Request, error: Exception) -> Response:
    """The answer to a client that left in the middle of what it sent: nobody reads it."""
    return Response(status_code=400)


def visitor(connection: HTTPConnection) -> str:
    """The name of whoever made this call."""
    name: str = connection.scope["openmodal.visitor"]
    return name


def _calls(page: Page, parts: Sequence[Part]) -> Router:
    feeds = {name: feed for part in parts for name, feed in part.feeds.items()}

    async def about(request: Request) -> Response:
        known = {"engine": page.engine.name, "readOnly": page.read_only, "lacks": sorted(page.lacks)}
        return JSONResponse({**known, "version": page.version, "visitor": visitor(request)})

    async def watch(request: Request) -> Response:
        feed = feeds.get(request.path_params["name"])
        return feed.response(request) if feed else Response(status_code=404)

    return Router([Route("/about", about), Route("/feeds/{name}", watch), *(r for part in parts for r in part.routes)])


class _Entrance:
    """Where a token becomes a cookie."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def enter(self, request: Request) -> Response:
        said = b""
        async for piece in request.stream():
            said += piece
            if len(said) > _LONGEST_TOKEN:
                break
        opened = self._page.sessions.opened(said.decode("utf-8", "replace").strip())
        if opened is None:
            return JSONResponse({"error": "this token is not known, or was used already"}, 401)
        place, cookie = opened
        secure = "; Secure" if request.url.scheme == "https" else ""
        return JSONResponse({"place": place}, headers={"Set-Cookie": cookie + secure})


class _Admitted:
    """Calls of visitors only; and only those that change nothing, if the page is read-only."""

    def __init__(self, page: Page, app: ASGIApp) -> None:
        self._page = page
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cookies = HTTPConnection(scope).headers.get("cookie", "")
        name = self._page.sessions.visitor(scope["path_params"]["place"], cookies)
        if name is None:
            await refuse(scope, receive, send, "open the page anew, with a token", 401)
        elif self._page.read_only and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
            await refuse(scope, receive, send, "this page is read-only")
        else:
            caller.set(name)  # of this call alone: each has a task of its own
            await self._app({**scope, "openmodal.visitor": name}, receive, send)


async def _index(request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _files.text(_FOLDER / "static" / "index.html").replace("NONCE", nonce)
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY.format(nonce=nonce)})


async def _told(request: Request, error: Exception) -> Response:
    """An error as one sentence."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    return JSONResponse({"error": str(error)}, status)


__all__ = ["Page", "Part", "application", "gone", "http", "part", "serving", "visitor"]
