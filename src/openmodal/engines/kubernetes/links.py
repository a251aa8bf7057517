"""Links to the agent in a pod: the WebSocket of an exec, or a connection to the pod itself; opened, greeted and accepted."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from openmodal import _wire
from openmodal._dual import Blocking, writable
from openmodal._link import SocketStream, Stream
from openmodal._wire import Code, Kind
from openmodal.engines.kubernetes import api, pods, policies
from openmodal.engines.kubernetes.websocket import KEEP_ALIVE, WebSocket
from openmodal.errors import EngineError

if TYPE_CHECKING:
    import httpx2

_PATIENCE = 5.0  # seconds for a direct link: a lost packet is sent again after one, and again after two more
_LONGEST_ANSWER = 4096
_log = logging.getLogger("openmodal")


class _Greetable(Stream, Protocol):
    async def peek(self, count: int, deadline: float | None = None) -> bytearray: ...


async def open_link(
    cluster: api.Api, pod: str, greeting: bytes, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> WebSocket:
    """A link to an agent that has accepted our greeting, AUTH or SETUP.

    `meanwhile` is done when that is sent, while the program at the other end still starts.

    Raises:
        ConnectionError: there is no such pod, or its agent does not listen yet, or any more.
    """
    query: api.Query = [("command", part) for part in (pods.AGENT, "dial", pods.SOCKET)]
    query += [("container", pods.CONTAINER), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
    upgrade = _Upgrade(cluster, pod, query)
    try:
        stream = WebSocket(await Blocking(upgrade))
    except BaseException:
        upgrade.give_up()
        raise
    try:
        await stream.send(greeting)
        if meanwhile:
            await meanwhile()
        _check(*await _answer(stream, None))
    except BaseException:
        stream.close()
        raise
    return stream


class _Upgrade:
    """Opening a WebSocket, in a thread that goes on when who waits for it is interrupted: then nobody else would close it."""

    def __init__(self, cluster: api.Api, pod: str, query: api.Query) -> None:
        self._cluster = cluster
        self._path = cluster.pods(f"{pod}/exec")
        self._query = query
        self._response: httpx2.Response | None = None
        self._given_up = False

    def __call__(self) -> httpx2.Response:
        self._response = self._cluster.upgrade(self._path, self._query)
        if self._given_up:
            self._response.close()
        return self._response

    def give_up(self) -> None:
        """Close it, now or when it is open: whichever of the two looks last sees the other."""
        self._given_up = True
        if self._response:
            self._response.close()


async def link_to(cluster: api.Api, found: pods.Found, *, direct: bool) -> WebSocket | SocketStream:
    """A link to a sandbox's agent, without the API server if that is wanted and works.

    Where the pod's address cannot be reached, this process does not try it again.
    """
    if not direct or not found.address or found.uid in cluster.out_of_reach:
        return await open_link(cluster, found.pod, _wire.auth(found.token))
    try:
        return await direct_link(cluster, found)
    except OSError as error:
        stream = await open_link(cluster, found.pod, _wire.auth(found.token))
        if not cluster.out_of_reach:
            _log.warning(
                "sandbox %s cannot be reached directly (%s), so the API server carries what it says: "
                'the pod of a client needs the label %s: "true"; without any, set kubernetes.direct = false',
                found.status.id,
                str(error) or type(error).__name__,
                policies.CLIENT,
            )
        cluster.out_of_reach.add(found.uid)
        return stream


async def direct_link(cluster: api.Api, found: pods.Found) -> SocketStream:
    """A link to the agent at the pod's own address.

    A pod that is gone leaves its address to others, who may be anybody. So the pod is looked at
    once more: if it is still the same, what we are connected to was its agent. Otherwise nobody
    heard more than the token of a sandbox that is gone.

    Raises:
        OSError: it cannot be reached that way, or is gone.
    """
    assert found.address, "its pod says where"
    deadline = time.monotonic() + _PATIENCE
    stream = SocketStream(await _connected(*found.address, deadline))
    try:
        await stream.send(_wire.auth(found.token))
        answer = await _answer(stream, deadline)
        if not await Blocking(_is_still, cluster, found):
            raise ConnectionRefusedError(f"the pod {found.pod} is gone, and another may have its address")
        _check(*answer)
    except BaseException:
        stream.close()
        raise
    return stream


async def _connected(host: str, port: int, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        for level, option, value in KEEP_ALIVE:
            sock.setsockopt(level, option, value)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            await writable(sock.fileno(), deadline - time.monotonic())
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_still(cluster: api.Api, found: pods.Found) -> bool:
    try:
        now = pods.found(cluster.get(cluster.pods(found.pod)))
    except api.ApiError as error:
        if error.status != 404:
            raise
        return False
    return now is not None and (now.uid, now.address) == (found.uid, found.address)


# ---------------------------------------------------------------------------------------- greetings


async def _answer(stream: _Greetable, deadline: float | None) -> tuple[int, memoryview]:
    """Read HELLO and the frame behind it, and leave HELLO for the link that will be made of the stream."""
    hello = await _end_of_frame(stream, 0, deadline)
    whole = await _end_of_frame(stream, hello, deadline)
    answers = await stream.peek(whole)
    kind, payload = answers[hello + 4], memoryview(bytes(answers[hello + 5 : whole]))
    del answers[hello:whole]
    return kind, payload


async def _end_of_frame(stream: _Greetable, at: int, deadline: float | None) -> int:
    head = await stream.peek(at + 5, deadline)
    size = int.from_bytes(head[at : at + 4], "little")
    if not 1 <= size <= _LONGEST_ANSWER:
        raise ConnectionRefusedError("what listens there is not the sandbox's agent")
    await stream.peek(at + 4 + size, deadline)
    return at + 4 + size


def _check(kind: int, payload: memoryview) -> None:
    """Raise why the agent did not accept us, if so."""
    if kind == Kind.OK:
        return
    code, sentence = _wire.decode_error(payload) if kind == Kind.ERROR else (0, "it does not speak our protocol")
    if code == Code.LATER:
        raise ConnectionRefusedError(sentence)
    raise EngineError(f"the sandbox's agent does not accept us: {sentence}")
