"""Where the ports of sandboxes are on this machine: in the clear, as the engine has them, and over
TLS, for which a door listens in front of them.

A door that is started again listens where the last one did, for the numbers are kept.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from modal_proto import api_pb2 as api

from openmodal.errors import Error
from openmodal.serve import certificate
from openmodal.serve.calls import log
from openmodal.serve.kept import Kept
from openmodal.tunnel import LOCAL, Tunnel

CLEAR, ENCRYPTED, H2 = "clear", "encrypted", "h2"

_PIECE = 256 * 1024
_HOUR = 3600.0

Find = Callable[[str], Awaitable[Mapping[int, Tunnel]]]
Running = Callable[[], Awaitable[set[str]]]


class Tunnels:
    """The listeners of a door, by sandbox and port."""

    def __init__(self, kept: Kept, kind: str, find: Find, running: Running) -> None:
        """`kind`: of the names that are kept; `find`: the tunnels of a sandbox; `running`: the ids of
        the sandboxes that run."""
        self._kept = kept
        self._kind = kind
        self._find = find
        self._running = running
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._opening = asyncio.Lock()

    def ask(self, id: str, kinds: Mapping[int, str]) -> None:
        """A sandbox with these ports is about to be created."""
        for port, kind in kinds.items():
            if kind != CLEAR:
                self._keep(id, port, kind, 0)

    async def of(self, id: str, found: Mapping[int, Tunnel]) -> list[Any]:
        """The tunnels of a sandbox, as the client is told."""
        await self.sweep()
        told: list[Any] = []
        for port, tunnel in found.items():
            kind, _ = self._known(id, port)
            data = api.TunnelData(host=LOCAL, port=await self._listen(id, port), container_port=port)
            if kind == CLEAR:
                data.unencrypted_host, data.unencrypted_port = tunnel.host, tunnel.port
            told.append(data)
        return told

    async def reopen(self) -> None:
        """Listen where the last door of this folder did."""
        running = await self._running()
        for name, kept in self._kept.names(self._kind).items():
            id, _, port = name.rpartition("/")
            # Of one that does not run: another door may be creating it. Later, `sweep` takes the name.
            if id in running and not kept.endswith(" 0"):
                with suppress(OSError):
                    await self._listen(id, int(port))

    def close(self, id: str) -> None:
        """A sandbox has ended."""
        for key in [key for key in self._servers if key[0] == id]:
            self._servers.pop(key).close()
        for name in self._kept.moments(self._kind):
            if name.rpartition("/")[0] == id:
                self._kept.forget_name(self._kind, name)

    async def sweep(self) -> None:
        """Close what leads to sandboxes that have ended."""
        # One that is asked for is not running yet, but soon.
        oldest = time.time() - _HOUR
        old = {name.rpartition("/")[0] for name, at in self._kept.moments(self._kind).items() if at < oldest}
        known = {id for id, _ in self._servers} | old
        for id in known - await self._running() if known else ():
            self.close(id)

    # --------------------------------------------------------------------------------------- inside

    async def _listen(self, id: str, port: int) -> int:
        """The port of this machine at which a sandbox's is reached over TLS."""
        async with self._opening:
            kind, number = self._known(id, port)
            if number and (id, port) in self._servers:
                return number
            try:
                server = await self._server(id, port, kind, number)
            except OSError as error:
                # Another door of this folder listens there, and its certificate is as good.
                if error.errno == errno.EADDRINUSE and await self._is_ours(number):
                    return number
                server = await self._server(id, port, kind, 0)
            self._servers[id, port] = server
            number = server.sockets[0].getsockname()[1]
            self._keep(id, port, kind, number)
            return int(number)

    async def _server(self, id: str, port: int, kind: str, number: int) -> asyncio.Server:
        taken = {kept.split()[1] for kept in self._kept.names(self._kind).values()}
        while True:
            server = await asyncio.start_server(
                functools.partial(self._relay, id, port), LOCAL, number, ssl=self._tls(kind), limit=_PIECE
            )
            # One of a sandbox whose door does not listen now would be reached by that one's clients.
            if number or str(server.sockets[0].getsockname()[1]) not in taken:
                return server
            server.close()

    @functools.cache  # noqa: B019  (it lives as long as its door)
    def _tls(self, kind: str) -> ssl.SSLContext:
        return certificate.context(self._kept.folder, "h2" if kind == H2 else "http/1.1")

    async def _is_ours(self, number: int) -> bool:
        verifies = ssl.create_default_context(cafile=certificate.trusted(self._kept.folder)["SSL_CERT_FILE"])
        try:
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(LOCAL, number, ssl=verifies)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _relay(self, id: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        try:
            tunnel = (await self._find(id))[port]
            far_reader, far_writer = await asyncio.open_connection(tunnel.host, tunnel.port, limit=_PIECE)
        except (Error, OSError, TimeoutError, KeyError) as error:
            log.info("a tunnel does not reach its sandbox", extra={"port": port, "reason": str(error)})
            writer.transport.abort()
            await self.sweep()
            return
        try:
            await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        except OSError:  # one side went away
            pass
        finally:
            writer.close()
            far_writer.close()

    def _known(self, id: str, port: int) -> tuple[str, int]:
        kind, _, number = (self._kept.named(self._kind, f"{id}/{port}") or f"{CLEAR} 0").partition(" ")
        return kind, int(number)

    def _keep(self, id: str, port: int, kind: str, number: int) -> None:
        self._kept.name(self._kind, f"{id}/{port}", f"{kind} {number}")


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:  # TLS of Python's cannot close one direction
        writer.close()


__all__ = ["CLEAR", "ENCRYPTED", "H2", "Tunnels"]
