"""The child that carries a tunnel's bytes where only this SDK reaches the agent: over a WebSocket
of a cluster, or through another machine's Docker daemon.

It ends with the process that started it, and with the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import sys

from openmodal.connection import Connection
from openmodal.errors import Error
from openmodal.sandbox.sandbox import Sandbox

_MOST = 256
_PIECE = 256 << 10


def main() -> None:
    """Serve the tunnel that standard input describes."""
    sandbox, descriptor, port, owner = pickle.load(sys.stdin.buffer)
    listener = socket.socket(fileno=descriptor)
    asyncio.run(_serve(sandbox, listener, port, os.pidfd_open(owner)))


async def _serve(sandbox: Sandbox, listener: socket.socket, port: int, owner: int) -> None:
    loop, over, places = asyncio.get_running_loop(), asyncio.Event(), asyncio.Semaphore(_MOST)
    loop.add_reader(owner, over.set)

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with places:
            await _carry(sandbox, port, reader, writer)

    async with await asyncio.start_server(visit, sock=listener):
        ended = asyncio.ensure_future(sandbox.wait.aio(raise_on_termination=False))
        parted = asyncio.ensure_future(over.wait())
        await asyncio.wait([ended, parted], return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)  # what is under way ends with us


async def _carry(sandbox: Sandbox, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways. What fails breaks the connection, as the port itself would."""
    try:
        async with await sandbox.connect.aio(port) as connection:
            await asyncio.gather(_there(connection, reader), _back(connection, writer))
    except (Error, OSError):
        with contextlib.suppress(OSError):
            writer.transport.abort()
    else:
        writer.close()


async def _there(connection: Connection, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(_PIECE):
        await connection.send.aio(data)
    await connection.send_eof.aio()


async def _back(connection: Connection, writer: asyncio.StreamWriter) -> None:
    while data := await connection.recv.aio(_PIECE):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
