"""What every call of the page passes: of which name, from which page, and what its answer forbids.

`Host` must be a name of this machine, so that a name which somebody else's DNS lets lead here gets
nothing. `Origin` must be the page's own wherever a browser sends one, and whatever changes
something, and each WebSocket, must have one.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = ("GET", "HEAD")
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing is loaded for what is no page of ours, whatever it says.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class Guard:
    """Around an application. `hosts`: the names that it is called by; None: any, because TLS has
    seen to it."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if why := self._refusal(scope):
            await refuse(scope, receive, send, why)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, answer)

    def _refusal(self, scope: Scope) -> str:
        """Why a call is not answered; "" if it is."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(host) not in self._hosts:
            return "this page has another name; open it as 127.0.0.1 or localhost"
        if origin is not None and not _is_own(origin, host, is_encrypted=scope.get("scheme") in ("https", "wss")):
            return "the call comes from another page"
        if origin is None and (scope["type"] == "websocket" or scope["method"] not in _SAFE):
            return "the call does not tell which page it comes from"
        return ""


async def refuse(scope: Scope, receive: Receive, send: Send, why: str, status: int = 403) -> None:
    """Answer that it is not answered."""
    if scope["type"] == "websocket":
        await WebSocketClose(_POLICY_VIOLATION, why)(scope, receive, send)
    else:
        await PlainTextResponse(why, status)(scope, receive, send)


def _is_own(origin: str, host: str, *, is_encrypted: bool) -> bool:
    """Whether a page at `origin` is the one that `host` is called for."""
    try:
        scheme, place, *_ = urlsplit(origin)
    except ValueError:
        return False
    # By another name than this machine's, a proxy may have decrypted it.
    own = {"https"} if is_encrypted else {"http"} if _name(host) in LOOPBACK else {"http", "https"}
    return place == host != "" and scheme in own


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


__all__ = ["LOOPBACK", "Guard", "refuse"]
