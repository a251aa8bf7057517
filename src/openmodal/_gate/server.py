"""Takes the sandbox's connections and questions, judges each, and carries what is allowed.

The only file of the gate with I/O and time. For each connection: the kernel, which redirected it to
the gate, tells the address that the sandbox called. Is that address on the list? If not, is the
name on the list that the first bytes give? Then the gate resolves the name itself, connects, and
copies until one side ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from typing import Any

from openmodal._gate import head, hello, names
from openmodal._gate.log import Log
from openmodal._gate.names import Answer
from openmodal._gate.policy import Denied, Policy, normal
from openmodal._gate.resolver import Resolver, read_exactly

CONNECTIONS = 256  # at once; more wait in the kernel's queue
QUESTIONS = 64
DNS_PORT = 53

_FIRST_SECONDS = 15.0  # until a client has said what it wants
_CONNECT_SECONDS = 15.0
_IDLE_SECONDS = 600.0
_CHUNK = 64 << 10
_MOST_TRIED = 4  # addresses of one name
_QUESTIONS_PER_CONNECTION = 100
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_SMTP = 25
_LISTED = "on the domain list"

# Port, what is spoken there, and where its first bytes say whom they are for.
_SPOKEN: dict[int, tuple[str, Callable[[bytes], str | None], int]] = {
    80: ("http", head.host, head.LIMIT),
    443: ("tls", hello.server_name, hello.LIMIT),
}


class Gate:
    """One for the life of the sandbox."""

    def __init__(self, policy: Policy, log: Log) -> None:
        self._policy = policy
        self._log = log
        self._resolver = Resolver(policy.resolvers)

    async def serve(
        self, listener: socket.socket, datagrams: socket.socket, lifeline: socket.socket, begin: Callable[[], None]
    ) -> None:
        """Serve until the supervisor is gone, from when `begin` has been called."""
        loop = asyncio.get_running_loop()
        begin()
        tasks = (asyncio.create_task(self._accept(listener)), asyncio.create_task(self._hear(datagrams)))
        lifeline.setblocking(False)
        await loop.sock_recv(lifeline, 1)
        for task in tasks:
            task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        crowd = _Crowd(CONNECTIONS)
        while True:
            await crowd.room()
            crowd.start(self._client(await _next_client(listener)))

    async def _hear(self, datagrams: socket.socket) -> None:
        crowd = _Crowd(QUESTIONS)
        while True:
            await crowd.room()
            crowd.start(self._reply(datagrams, *await _next_datagram(datagrams)))

    # ---------------------------------------------------------------------------------------- names

    async def _reply(self, datagrams: socket.socket, data: bytes, sender: Any) -> None:
        answer = await self._answer(data)
        try:
            await asyncio.get_running_loop().sock_sendto(datagrams, answer, sender)
        except OSError:
            pass  # the one who asked is gone

    async def _answer(self, data: bytes) -> bytes:
        """The answer to the sandbox. Only allowed names are asked for: a name can carry data out."""
        try:
            question = names.parse_question(data)
        except Denied as denied:
            self._log.add("dns", denied.asked, "", str(denied), allowed=False)
            return names.make_error(data)
        try:
            name = self._listed(normal(question.name))
        except Denied as denied:
            self._log.add("dns", denied.asked, "", str(denied), allowed=False)
            return names.make_answer(question, Answer(names.NO_SUCH_NAME))
        if question.kind != names.A:  # no IPv6 here, and nothing else that clients need
            return names.make_answer(question, Answer(names.NO_ERROR))
        found = await self._resolver.lookup(name)
        usable = tuple(self._policy.usable(found.addresses, None))
        self._log.add("dns", name, "", _LISTED if usable else f"{_LISTED}, but {_why_useless(found)}", allowed=True)
        return names.make_answer(question, Answer(found.rcode, usable, min(found.seconds, 60)))

    def _listed(self, name: str) -> str:
        if not self._policy.allows(name):
            raise Denied("not on the domain list", name)
        return name

    async def _answer_over_tcp(self, client: socket.socket) -> None:
        for _ in range(_QUESTIONS_PER_CONNECTION):
            async with asyncio.timeout(_FIRST_SECONDS):
                size = int.from_bytes(await read_exactly(client, 2), "big")
                answer = await self._answer(await read_exactly(client, size))
                await asyncio.get_running_loop().sock_sendall(client, len(answer).to_bytes(2, "big") + answer)

    # ---------------------------------------------------------------------------------- connections

    async def _client(self, client: socket.socket) -> None:
        with client:
            try:
                address, port = _called(client)
                if port == DNS_PORT and not self._policy.reaches(address, port):
                    await self._answer_over_tcp(client)
                else:
                    await self._carry(client, address, port)
            except (OSError, TimeoutError):
                _reset(client)

    async def _carry(self, client: socket.socket, address: IPv4Address, port: int) -> None:
        where = f"{address}:{port}"
        kind, read, limit = _SPOKEN.get(port, ("tcp", None, 0))
        first, asked = b"", ""
        try:
            if port == _SMTP:
                raise Denied("mail between servers is never allowed")
            if self._policy.reaches(address, port):
                targets, why = [str(address)], "on the CIDR list"
            elif read is None:
                raise Denied("not on the CIDR list")
            else:
                asked, first = await _first_bytes(client, read, limit)
                targets, why = await self._targets(asked, port), _LISTED
        except Denied as denied:
            self._log.add(kind, denied.asked or asked, where, str(denied), allowed=False)
            await _refuse(client, kind, denied)
            return
        server, problem = await _connect(targets, port)
        self._log.add(kind, asked, where, why + problem, allowed=True)
        if server is None:
            _reset(client)
            return
        with server:
            await asyncio.get_running_loop().sock_sendall(server, first)
            await _copy_both(client, server)

    async def _targets(self, name: str, port: int) -> list[str]:
        """The addresses for a name. The gate resolves it, whatever the sandbox was told or chose."""
        found = await self._resolver.lookup(self._listed(name))
        usable = self._policy.usable(found.addresses, port)
        if not usable:
            raise Denied(_why_useless(found), name)
        return usable[:_MOST_TRIED]


class _Crowd:
    """Tasks of which there are at most so many at once. One that fails harms no other."""

    def __init__(self, most: int) -> None:
        self._room = asyncio.Semaphore(most)
        self._tasks: set[asyncio.Task[None]] = set()

    async def room(self) -> None:
        """Wait until there may be one more; it is to be started next."""
        await self._room.acquire()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()


def _why_useless(answer: Answer) -> str:
    if answer.addresses:
        return "it has only addresses that sandboxes may not reach"
    return "no name server answers" if answer.rcode == names.SERVER_FAILURE else "it has no address"


async def _next_client(listener: socket.socket) -> socket.socket:
    while True:
        try:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError:  # it was reset in the queue, or descriptors are short for a moment
            await asyncio.sleep(0.01)
        else:
            return client


async def _next_datagram(datagrams: socket.socket) -> tuple[bytes, Any]:
    while True:
        try:
            return await asyncio.get_running_loop().sock_recvfrom(datagrams, 4096)
        except OSError:  # an answer of ours could not be delivered
            await asyncio.sleep(0)


def _called(client: socket.socket) -> tuple[IPv4Address, int]:
    """Whom the client called, before the kernel turned its call to us."""
    raw = client.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    port, address = struct.unpack("!2xH4s8x", raw)
    return IPv4Address(address), port


async def _first_bytes(client: socket.socket, read: Callable[[bytes], str | None], limit: int) -> tuple[str, bytes]:
    """What the client says first, as far as is needed to know whom it wants, and who that is."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            while len(data) < limit:
                part = await loop.sock_recv(client, _CHUNK)
                if not part:
                    raise Denied("it ended before it said whom it wants")
                data += part
                if (name := read(data)) is not None:
                    return name, data
    except TimeoutError:
        raise Denied("it did not say whom it wants in time") from None
    raise Denied("it says too much before whom it wants")


async def _connect(addresses: list[str], port: int) -> tuple[socket.socket | None, str]:
    """A connection to the first that answers; or None and what the last one's problem was."""
    problem = ""
    for address in addresses:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(server, (address, port))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return server, ""
        except TimeoutError:
            problem = ", but it does not answer"
        except OSError as error:
            problem = f", but it cannot be reached: {os.strerror(error.errno or 0)}"
        except BaseException:
            server.close()
            raise
        server.close()
    return None, problem


async def _copy_both(client: socket.socket, server: socket.socket) -> None:
    """Copy both ways until both sides have ended, one has failed, or nothing has moved for long."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with asyncio.timeout(_IDLE_SECONDS) as idle, asyncio.TaskGroup() as both:
            both.create_task(_copy(client, server, idle))
            both.create_task(_copy(server, client, idle))
    except (ExceptionGroup, TimeoutError):
        _reset(client)
        _reset(server)


async def _copy(source: socket.socket, sink: socket.socket, idle: asyncio.Timeout) -> None:
    loop = asyncio.get_running_loop()
    room = memoryview(bytearray(_CHUNK))
    moved = loop.time()
    while count := await loop.sock_recv_into(source, room):
        await loop.sock_sendall(sink, room[:count])
        if loop.time() - moved > 1:
            moved = loop.time()
            idle.reschedule(moved + _IDLE_SECONDS)
        await asyncio.sleep(0)  # receiving what is there already does not give way to others
    sink.shutdown(socket.SHUT_WR)


async def _refuse(client: socket.socket, kind: str, denied: Denied) -> None:
    """Tell the client, where its language has a word for that."""
    text = {"tls": hello.ACCESS_DENIED, "http": head.refusal(str(denied), denied.asked)}.get(kind)
    if text is None:
        _reset(client)
        return
    async with asyncio.timeout(1):
        await asyncio.get_running_loop().sock_sendall(client, text)
    client.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    """Make closing a reset: nobody shall take it for a proper end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
