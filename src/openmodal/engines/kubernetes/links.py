"""Links to the agent in a pod: an exec of the program that carries bytes to it, opened and greeted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from openmodal import _wire
from openmodal._dual import Blocking
from openmodal.engines.kubernetes import api, pods
from openmodal.engines.kubernetes.websocket import WebSocket
from openmodal.errors import EngineError


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
    stream = WebSocket(await Blocking(cluster.upgrade, cluster.pods(f"{pod}/exec"), query))
    try:
        await stream.send(greeting)
        if meanwhile:
            await meanwhile()
        await _accepted(stream)
    except BaseException:
        stream.close()
        raise
    return stream


async def _accepted(stream: WebSocket) -> None:
    """Read HELLO and OK, and leave HELLO for the link that will be made of the stream."""
    hello = await _size_of_frame(stream, 0)
    whole = hello + await _size_of_frame(stream, hello)
    answers = await stream.peek(whole)
    kind, payload = answers[hello + 4], memoryview(bytes(answers[hello + 5 : whole]))
    if kind == _wire.Kind.ERROR:
        raise EngineError(f"the sandbox's agent does not accept us: {_wire.decode_error(payload)[1]}")
    del answers[hello:whole]


async def _size_of_frame(stream: WebSocket, at: int) -> int:
    head = await stream.peek(at + 4)
    size = 4 + int.from_bytes(head[at : at + 4], "little")
    await stream.peek(at + size)
    return size
