"""An MCP server over stdio, or over streamable HTTP.

HTTP without a token is for this machine only, and no web page gets in: `Host` and `Origin` of each
request are checked, for a page of another site can reach loopback by a name that leads there.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from openmodal import __version__
from openmodal.engines import Engine
from openmodal.errors import Error, SandboxNotRunningError
from openmodal.integrations.mcp.sandboxes import Limits, Sandboxes
from openmodal.integrations.mcp.tools import Tools

INSTRUCTIONS = (
    "Sandboxes are fresh Linux machines in which commands and code run, apart from the user's machine. "
    "Leave out `id` to use this session's own sandbox; files and processes in it stay until it ends."
)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
ENDS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
RUNS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)

TOOLS = {
    "create_sandbox": ADDS,
    "list_sandboxes": READS,
    "terminate_sandbox": ENDS,
    "exec_command": RUNS,
    "read_output": ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False),
    "write_input": RUNS,
    "kill_process": ENDS,
    "run_python": RUNS,
    "read_file": READS,
    "write_file": CHANGES,
    "edit_file": CHANGES,
    "list_files": READS,
    "make_directory": ADDS,
    "move": CHANGES,
    "remove": CHANGES,
    "port_url": ADDS,
}
"""The tools, and what clients are told of them before they ask their user."""

LOCAL_TOOLS = {"upload": CHANGES, "download": CHANGES}
"""Only where the operator allows a folder."""


def server_of(sandboxes: Sandboxes) -> MCPServer[Any]:
    """A server whose tools use these sandboxes."""
    server: MCPServer[Any] = MCPServer(
        "openmodal", title="OpenModal", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    tools = Tools(sandboxes)
    for name, hints in (TOOLS | (LOCAL_TOOLS if sandboxes.limits.local else {})).items():
        server.add_tool(_told(sandboxes, getattr(tools, name)), annotations=hints, structured_output=True)
    return server


async def serve_stdio(engine: Engine, limits: Limits) -> None:
    """Serve one client until it goes; its sandboxes end then."""
    sandboxes = Sandboxes(engine, limits, stay=False)
    renewing = asyncio.create_task(sandboxes.renew())
    try:
        await server_of(sandboxes).run_stdio_async()
    finally:
        renewing.cancel()
        await sandboxes.close()


async def serve_http(
    engine: Engine,
    limits: Limits,
    listener: socket.socket,
    *,
    token: str | None,
    origins: Sequence[str] = (),
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve clients at a listener until SIGINT or SIGTERM; sandboxes stay until their timeouts."""
    server = server_of(Sandboxes(engine, limits, stay=True))
    app: ASGIApp = server.streamable_http_app(
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False)  # Guard does it
    )
    if origins:
        app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["mcp-session-id"]
        )
    config = uvicorn.Config(Guard(app, token, origins), log_level="warning", ws="none", timeout_graceful_shutdown=5)
    config.load()
    config.ssl = tls
    await uvicorn.Server(config).serve(sockets=[listener])


class Guard:
    """An application that is open to those who know the token; without one, to programs of this
    machine.

    A page of the web is let in only if its origin is listed: not even one of this machine, which a
    sandbox may have made. Without a token the request must name this machine's loopback, for a page
    can have a name of its own lead there, and is of the same origin then.
    """

    def __init__(self, app: ASGIApp, token: str | None, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._token = token
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refused(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and origin not in self._origins:
            return PlainTextResponse(f"pages of {origin} may not ask; --allow-origin lets them", 403)
        if self._token is None:
            host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if host not in LOOPBACK:
                return PlainTextResponse(f"ask at {LOOPBACK[0]}, or have the server take a --token-file", 421)
            return None
        is_preflight = scope["method"] == "OPTIONS" and origin
        given = headers.get("authorization", "").encode()
        if not is_preflight and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            return PlainTextResponse(
                "give the server's token: `Authorization: Bearer TOKEN`", 401, {"WWW-Authenticate": "Bearer"}
            )
        return None


def _told(sandboxes: Sandboxes, tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A tool whose errors a model can read: one sentence with cause and remedy."""

    @functools.wraps(tool)
    async def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return await tool(*arguments, **keywords)
        except (Error, OSError) as error:
            if isinstance(error, SandboxNotRunningError):
                await sandboxes.running()  # forgets it: the session's next call makes another
            raise ToolError(str(error)) from error

    return call


__all__ = ["Guard", "serve_http", "serve_stdio", "server_of"]
