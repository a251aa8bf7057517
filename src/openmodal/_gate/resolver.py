"""Asks the machine's name servers for addresses of allowed names, and caches the answers."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from openmodal._gate import names
from openmodal._gate.names import Answer, Question
from openmodal._gate.policy import Denied

_ANSWER_SECONDS = 5.0  # and two attempts: as resolv.conf(5) has it
_ATTEMPTS = 2
_MOST_KEPT = 256
_LONGEST = 60  # seconds: what the sandbox was told and what the gate finds shall not drift apart
_FAILED = Answer(names.SERVER_FAILURE)


class Resolver:
    """One for the gate's life."""

    def __init__(self, servers: tuple[str, ...]) -> None:
        self._servers = servers
        self._kept: dict[str, tuple[float, Answer]] = {}

    async def lookup(self, name: str) -> Answer:
        """The answer for a normal name; SERVER_FAILURE when nobody answers."""
        until, answer = self._kept.get(name, (0.0, _FAILED))
        if time.monotonic() < until:
            return answer
        answer = await self._ask_all(name)
        if answer.addresses:
            if len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = (time.monotonic() + min(answer.seconds, _LONGEST), answer)
        return answer

    async def _ask_all(self, name: str) -> Answer:
        for server in self._servers * _ATTEMPTS:
            question = names.make_question(int.from_bytes(os.urandom(2)), name)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answer = await _ask(server, question)
            except (OSError, TimeoutError, Denied):
                continue
            if answer.rcode in (names.NO_ERROR, names.NO_SUCH_NAME):
                return answer
        return _FAILED


async def _ask(server: str, question: Question) -> Answer:
    """Ask once over UDP, from a port of the kernel's choice; over TCP what does not fit."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        await loop.sock_connect(sock, (server, 53))
        await loop.sock_sendall(sock, names.encode(question))
        answer = None
        while answer is None:
            answer = names.parse_answer(await loop.sock_recv(sock, 4096), question)
    return await _ask_over_tcp(server, question) if answer.truncated else answer


async def _ask_over_tcp(server: str, question: Question) -> Answer:
    loop = asyncio.get_running_loop()
    query = names.encode(question)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        await loop.sock_connect(sock, (server, 53))
        await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await read_exactly(sock, 2), "big")
        return names.parse_answer(await read_exactly(sock, size), question) or _FAILED


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the other side ended before.
    """
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(sock, count - len(data))
        if not part:
            raise ConnectionResetError("the other side ended")
        data += part
    return data
