"""A terminal in a sandbox, over a WebSocket.

Bytes go both ways as they are. A text of the page is JSON: {"rows", "columns"} of its terminal, or
{"ack"}: so many bytes it has shown. What is not shown is not read, so a command that writes without
end waits for the page. Whatever else is said closes the WebSocket with a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from openmodal.errors import Error, InvalidError
from openmodal.process import Process
from openmodal.sandbox import Sandbox

CLOSED, FAILED = 1000, 1011  # RFC 6455, section 7.4.1
_REFUSED = 1008

_AHEAD = 512 << 10
"""Bytes that are sent before the page says that it has shown some."""

_SHELL = "command -v bash >/dev/null && exec bash -i; exec sh -i"
_LONGEST_REASON = 100  # RFC 6455, section 5.5, allows 123 bytes


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    """What a page says of its terminal: how large it is, or what it has shown."""

    ack: _Count = 0
    rows: _Count = 0
    columns: _Count = 0


class _NoMessageError(Exception):
    """What came is nothing that our page says."""


def reason(error: Exception) -> str:
    """Why a WebSocket is closed, as far as that fits."""
    return str(error).encode()[:_LONGEST_REASON].decode("utf-8", "ignore")


async def serve(socket: WebSocket, sandbox: Sandbox) -> None:
    """Start a shell and be its terminal; the shell ends with the WebSocket.

    Raises:
        Error: there can be no shell.
    """
    shell = await sandbox.spawn.aio("sh", "-c", _SHELL, pty=True, text=False, env={"TERM": "xterm-256color"})
    window = _Window()
    ways = [asyncio.ensure_future(way(socket, shell, window)) for way in (_write, _read)]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        ended = await asyncio.gather(*ways, return_exceptions=True)
        await _end(socket, shell, next((e for e in ended if isinstance(e, _NoMessageError)), None))
    for way in done:
        with contextlib.suppress(_NoMessageError):
            way.result()  # a mistake of ours is told


async def _end(socket: WebSocket, shell: Process[bytes], refused: _NoMessageError | None) -> None:
    with contextlib.suppress(Error, ConnectionError):  # the sandbox has ended
        await shell.kill.aio()
    if WebSocketState.DISCONNECTED not in (socket.application_state, socket.client_state):
        await (socket.close(_REFUSED, reason(refused)) if refused else socket.close(CLOSED))


class _Window:
    """How many bytes the page has still to show."""

    def __init__(self) -> None:
        self._ahead = 0
        self._room = asyncio.Event()

    async def sent(self, size: int) -> None:
        """Note bytes that were sent, and wait until there is room for more."""
        self._ahead += size
        while self._ahead >= _AHEAD:
            self._room.clear()
            await self._room.wait()

    def shown(self, size: int) -> None:
        """Note bytes that were shown."""
        self._ahead = max(0, self._ahead - size)
        self._room.set()


async def _write(socket: WebSocket, shell: Process[bytes], window: _Window) -> None:
    with contextlib.suppress(Error, ConnectionError, WebSocketDisconnect):
        while data := await shell.stdout.read_some.aio():
            await socket.send_bytes(data)
            await window.sent(len(data))


async def _read(socket: WebSocket, shell: Process[bytes], window: _Window) -> None:
    with contextlib.suppress(Error, ConnectionError):
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            if data := message.get("bytes"):
                shell.stdin.write(data)
                await shell.stdin.drain.aio()
            elif (text := message.get("text")) is not None:
                await _heed(text, shell, window)


async def _heed(text: str, shell: Process[bytes], window: _Window) -> None:
    """Do what the page says.

    Raises:
        _NoMessageError: our page does not say that.
    """
    try:
        said = msgspec.json.decode(text, type=_Said)
        window.shown(said.ack)
        if said.rows or said.columns:
            await shell.resize.aio(said.rows, said.columns)
    except (msgspec.MsgspecError, UnicodeError, InvalidError) as error:
        raise _NoMessageError("this is no message of the page; open the terminal anew") from error


__all__ = ["CLOSED", "FAILED", "reason", "serve"]
