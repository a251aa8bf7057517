"""One connection to an agent: whole frames over a byte stream. One operation at a time; links are
leased from a pool and reused.

Nothing here starts a command twice: a link that breaks raises LinkLost, and the caller asks again
by command id and offset.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from openmodal import _wire
from openmodal._dual import Sleep, readable, writable
from openmodal._wire import Kind
from openmodal.errors import ProtocolError, UnsupportedError

_FIRST_BUFFER = 16 * 1024
_QUEUE_SECONDS = 5.0


class LinkLost(ConnectionError):
    """The stream to the agent ended or broke in the middle."""


class Stream(Protocol):
    """What an engine gives: bytes to and from an agent. Both raise OSError when the connection is gone."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""

    async def receive(self, buffer: memoryview) -> int:
        """Read at least one byte into the buffer and return how many; 0 at the end."""
        ...

    def close(self) -> None:
        """Close it; never raises."""


class Streamed(Stream, Protocol):
    """A stream that can be waited for."""

    def fileno(self) -> int: ...


class SocketStream:
    """A stream over a connected, non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._ready = bytearray()

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await writable(self._socket.fileno())

    async def receive(self, buffer: memoryview) -> int:
        if self._ready:
            count = min(len(buffer), len(self._ready))
            buffer[:count] = self._ready[:count]
            del self._ready[:count]
            return count
        return await self._read(buffer, None)

    async def peek(self, count: int, deadline: float | None = None) -> bytearray:
        """What came and was not received, of which there are at least so many bytes; TimeoutError at the deadline (of time.monotonic)."""
        piece = memoryview(bytearray(_FIRST_BUFFER))
        while len(self._ready) < count:
            got = await self._read(piece, deadline)
            if not got:
                raise ConnectionResetError("the other side closed the connection")
            self._ready += piece[:got]
        return self._ready

    async def _read(self, buffer: memoryview, deadline: float | None) -> int:
        while True:
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                await readable(self._socket.fileno(), None if deadline is None else deadline - time.monotonic())

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


async def connected(path: str) -> socket.socket:
    """A non-blocking socket that is connected to the unix socket of that path.

    Raises:
        OSError: there is none, nobody listens, or who does accepts none for some seconds: a sandbox
            may have put it there, to hold up whoever comes.
    """
    sock, over = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), time.monotonic() + _QUEUE_SECONDS
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError as error:  # its queue is full: many connect at once
                if time.monotonic() > over:
                    text = f"what listens there has accepted no connection for {_QUEUE_SECONDS:.0f} s"
                    raise ConnectionRefusedError(text) from error
                await Sleep(0.002)
    except BaseException:
        sock.close()
        raise


def peer(sock: socket.socket) -> int:
    """The process that listens at the other end of a unix socket (SO_PEERCRED, unix(7))."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


async def until_end(stream: Streamed, deadline: float | None) -> None:
    """Wait until the agent is gone, and close the stream.

    Raises:
        TimeoutError: it is still there at the deadline (of time.monotonic).
    """
    try:
        while True:
            await readable(stream.fileno(), None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not await stream.receive(memoryview(bytearray(256))):
                return
    except ConnectionError:
        return
    finally:
        stream.close()


Wake = Callable[[], Coroutine[Any, Any, None]]

# What fits into any socket, also if nobody reads.
_PIECE = 64 * 1024


class Link:
    """Frames over a stream. After any exception the link is unusable: close it."""

    def __init__(self, stream: Stream, wake: Wake | None = None) -> None:
        """`wake` lets a box that is paused go on."""
        self._stream = stream
        self._wake = wake
        self._buffer = bytearray(_FIRST_BUFFER)
        self._start = 0
        self._end = 0
        self.greeted = False
        """Whether the agent at the other end has said hello."""
        self.agent = 0
        """The number of the agent at the other end, once it has said hello."""

    async def send(self, *frames: bytes) -> None:
        """Send frames; raises LinkLost."""
        await self._sent(frames[0] if len(frames) == 1 else b"".join(frames), self._wake)

    async def post(self, frame: bytes) -> None:
        """Send a frame that has no answer: a paused box stays paused, and reads the frame when it
        goes on. Raises LinkLost."""
        await self._sent(frame, None)

    async def _sent(self, data: bytes | memoryview, wake: Wake | None) -> None:
        try:
            if wake:
                data = await self._awake(wake, data)
            if data:
                await self._stream.send(data)
        except OSError as error:
            raise LinkLost(str(error)) from error

    async def _awake(self, wake: Wake, data: bytes | memoryview) -> memoryview:
        """Send the beginning, and only then see whether the box is paused: one that is about to
        pause has either seen what was sent, or is seen to pause (native/rest.c). Return the rest."""
        view = memoryview(data)
        await self._stream.send(view[:_PIECE])
        await wake()
        return view[_PIECE:]

    async def receive(self) -> tuple[int, memoryview]:
        """Return the next frame's kind and payload, which is valid until the next call; raises LinkLost, ProtocolError."""
        if not self.greeted:
            await self.meet()
        return await self._frame()

    async def meet(self) -> int:
        """Wait for the agent's hello, unless it has come; return the agent's number."""
        if not self.greeted:
            self.agent = self._greet(*await self._frame())
            self.greeted = True
        return self.agent

    async def look(self) -> None:
        """Let nothing that is asked here count as a use of the sandbox.

        Raises:
            UnsupportedError: the agent is of a version that cannot.
        """
        await self.post(_wire.frame(Kind.LOOK))
        kind, _ = await self.expect(Kind.OK)
        if kind == Kind.ERROR:
            raise UnsupportedError(
                "the sandbox's agent is older than this SDK, and cannot be looked at without a use of it"
            )

    async def expect(self, *kinds: Kind) -> tuple[int, memoryview]:
        """Like `receive`, for an answer that must be one of these kinds or ERROR."""
        kind, payload = await self.receive()
        if kind not in kinds and kind != Kind.ERROR:
            raise ProtocolError(f"the agent answered with a frame of type {kind:#x}, not {kinds[0].name}")
        return kind, payload

    def close(self) -> None:
        self._stream.close()

    @staticmethod
    def _greet(kind: int, payload: memoryview) -> int:
        if kind != Kind.HELLO:
            raise ProtocolError("the agent did not say hello; is something else listening there?")
        protocol, version, number = _wire.decode_hello(payload)
        if protocol != _wire.PROTOCOL:
            raise ProtocolError(
                f"the sandbox's agent ({version}) speaks protocol {protocol} and this SDK {_wire.PROTOCOL}; "
                "use the OpenModal version that created the sandbox, or create a new one"
            )
        return number

    async def _frame(self) -> tuple[int, memoryview]:
        if self._end - self._start < 4:
            await self._fill(4)
        length = int.from_bytes(self._buffer[self._start : self._start + 4], "little")
        if not 1 <= length <= _wire.MAX_FRAME:
            raise ProtocolError(f"the agent sent a frame of {length} bytes")
        if self._end - self._start < 4 + length:
            await self._fill(4 + length)
        begin = self._start + 4
        self._start = begin + length
        return self._buffer[begin], memoryview(self._buffer)[begin + 1 : begin + length]

    async def _fill(self, count: int) -> None:
        """Have at least `count` unread bytes in the buffer, which has fewer."""
        self._make_room(count)
        view = memoryview(self._buffer)
        while self._end - self._start < count:
            try:
                got = await self._stream.receive(view[self._end :])
            except OSError as error:
                raise LinkLost(str(error)) from error
            if not got:
                raise LinkLost("the agent closed the link")
            self._end += got

    def _make_room(self, count: int) -> None:
        unread = self._end - self._start
        if count > len(self._buffer):  # a new one: the old may still have a payload's view on it
            bigger = bytearray(max(count, 2 * len(self._buffer)))
            bigger[:unread] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end = bigger, 0, unread
        elif len(self._buffer) - self._start < count or not unread:
            self._buffer[:unread] = self._buffer[self._start : self._end]
            self._start, self._end = 0, unread


@contextmanager
def _closing_on_error(link: Link) -> Iterator[None]:
    try:
        yield
    except BaseException:
        link.close()
        raise


class Links:
    """The links of one sandbox: leased one operation at a time, kept for reuse.

    Safe from many threads without a lock (a deque's append and pop are atomic), and after a fork: a
    child never touches its parent's links, whose bytes it would steal.
    """

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, Stream]],
        first: Stream | None = None,
        wake: Wake | None = None,
        *,
        looks: bool = False,
    ) -> None:
        self._connect = connect
        self._wake = wake
        self._looks = looks
        self._idle = deque([Link(first, wake)] if first else ())
        self._pid = os.getpid()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Link]:
        """Take a free link, or open one. It goes back if the block ends well, and is closed if not."""
        link = self._take() or await self._opened()
        with _closing_on_error(link):
            yield link
        self._idle.append(link)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Link]:
        """Open a link that does not go back: the caller keeps it, unless the block fails."""
        link = await self._opened()
        with _closing_on_error(link):
            yield link

    async def _opened(self) -> Link:
        if self._wake:  # an engine may have no way into a box that is paused
            await self._wake()
        link = Link(await self._connect(), self._wake)
        if self._looks:
            with _closing_on_error(link):
                await link.look()
        return link

    def close(self) -> None:
        """Close the idle links."""
        while link := self._take():
            link.close()

    def _take(self) -> Link | None:
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None
