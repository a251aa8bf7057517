"""A byte stream to a program in a pod: the WebSocket of an exec, of whose channels two carry our
bytes.

The handshake is HTTP's and done before; from then on wsproto turns frames into bytes and back, and
this class waits for the socket by the effects of `_dual`. No thread, and no ping of ours: the
kernel's keep-alive finds a connection whose other side is gone.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, cast

import httpcore2
import httpx2
import msgspec
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping
from wsproto.utilities import ProtocolError

from openmodal._dual import readable, writable
from openmodal.errors import UnsupportedError

_PIECE = 128 << 10  # bytes of a message, and of a read
_STDIN, _STDOUT, _STDERR, _STATUS = range(4)
_MOST_SAID = 4 << 10
KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""Options of a socket: small frames are not held back, and another side that is gone is found out within a minute."""


class WebSocket:
    """Bytes to stdin and from stdout. What the program says on stderr, or the cluster about it, is in the error when it ends."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._socket = _socket_of(response)
        self._frames = Connection(ConnectionType.CLIENT)
        self._ready = bytearray()
        self._said = bytearray()
        self._channel = -1
        self._ended = False
        network = cast("httpcore2.NetworkStream", response.extensions["network_stream"])
        try:
            self._frames.receive_data(network.read(_PIECE, timeout=0))  # what came together with the handshake's answer
        except (httpcore2.ReadError, httpcore2.ReadTimeout):
            pass  # nothing yet, or an error that the next read will meet again
        self._socket.setblocking(False)

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            if self._ended:
                raise ConnectionResetError(self._reason())
            message = Message(data=bytes((_STDIN,)) + view[start : start + _PIECE])
            await self._write(self._frames.send(cast("Any", message)))

    async def receive(self, buffer: memoryview) -> int:
        if not self._ready:
            await self._fill(None)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        del self._ready[:count]
        return count

    def close(self) -> None:
        self._response.close()

    async def peek(self, count: int, deadline: float | None = None) -> bytearray:
        """What came and was not received, of which there are at least so many bytes; TimeoutError at the deadline (of time.monotonic)."""
        await self._take()
        while len(self._ready) < count:
            if self._ended:
                raise ConnectionResetError(self._reason())
            await self._more(deadline)
        return self._ready

    async def until_end(self, deadline: float | None) -> None:
        """Wait until the other side has ended, whatever it still says, and close; TimeoutError at the deadline (of time.monotonic)."""
        try:
            while not self._ended:
                self._ready.clear()
                await self._fill(deadline)
        except ConnectionError:
            pass
        finally:
            self.close()

    # --------------------------------------------------------------------------------------- frames

    async def _fill(self, deadline: float | None) -> None:
        """Have something in `_ready`, or the end."""
        await self._take()
        while not self._ready and not self._ended:
            await self._more(deadline)

    async def _more(self, deadline: float | None) -> None:
        self._frames.receive_data(await self._read(deadline) or None)
        await self._take()

    async def _take(self) -> None:
        """Sort out what came: our bytes, words about them, and what WebSockets say among themselves."""
        try:
            for event in self._frames.events():
                if isinstance(event, BytesMessage):
                    self._message(bytes(event.data), event.message_finished)
                elif isinstance(event, Ping):
                    await self._write(self._frames.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._ended = True
        except ProtocolError as error:
            raise ConnectionResetError(f"the API server broke the WebSocket protocol: {error}") from error

    def _message(self, data: bytes, finished: bool) -> None:
        # The first byte of a message is its channel; a long message comes in parts.
        if self._channel < 0 and data:
            self._channel, data = data[0], data[1:]
        if self._channel == _STDOUT:
            self._ready += data
        elif self._channel in (_STDERR, _STATUS):
            self._said += data[: _MOST_SAID - len(self._said)]
            self._ended = self._ended or (self._channel == _STATUS and finished)
        self._channel = -1 if finished else self._channel

    def _reason(self) -> str:
        text = self._said.decode("utf-8", "replace")
        try:
            text = str(msgspec.json.decode(self._said)["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            pass
        return text.strip() or "the connection to the pod ended"

    # ----------------------------------------------------------------------------------- the socket

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except ssl.SSLWantReadError:
                await readable(self._socket.fileno())
            except (BlockingIOError, ssl.SSLWantWriteError):
                await writable(self._socket.fileno())

    async def _read(self, deadline: float | None) -> bytes:
        while True:
            try:
                return self._socket.recv(_PIECE)
            except ssl.SSLWantWriteError:
                await writable(self._socket.fileno())
            except (BlockingIOError, ssl.SSLWantReadError):
                await readable(self._socket.fileno(), None if deadline is None else deadline - time.monotonic())


def _socket_of(response: httpx2.Response) -> socket.socket:
    network = cast("httpcore2.NetworkStream", response.extensions["network_stream"])
    sock = network.get_extra_info("socket")
    if (network.get_extra_info("ssl_object") is not None) != isinstance(sock, ssl.SSLSocket):
        response.close()
        raise UnsupportedError("an https:// proxy is not supported; use an http:// one for the cluster")
    for level, option, value in KEEP_ALIVE:
        sock.setsockopt(level, option, value)
    return cast("socket.socket", sock)
