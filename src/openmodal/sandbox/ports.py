"""The ports of a sandbox: what listens in it is reached from here."""

from __future__ import annotations

from collections.abc import Mapping

from openmodal import _args, connection, tunnel
from openmodal._dual import dual
from openmodal.connection import Connection
from openmodal.engines import forwarding
from openmodal.sandbox.handle import Handle, ended
from openmodal.tunnel import Forward, Tunnel


class Ports(Handle):
    """Reaching what listens in it."""

    @dual
    async def connect(self, port: int, *, timeout: float = 0.0) -> Connection:
        """Connect to a TCP port that something in the sandbox listens on, at its loopback address.

        No port has to be opened, and it works with `block_network`. An open connection counts as
        activity.

        Args:
            port: the port.
            timeout: seconds to wait until something listens.

        Raises:
            SandboxConnectionRefusedError: nothing listens there.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        port = _args.whole("port", port, 1, 65535)
        wait = _args.seconds("timeout", timeout) if timeout else 0.0
        return await connection.connect(self._new_command(), port, wait)

    @dual
    async def tunnels(self, timeout: float = 50.0) -> dict[int, Tunnel]:
        """Tell where this machine reaches the ports that were named at `create`.

        Args:
            timeout: as Modal's; `create` has opened all tunnels, so nothing has to be waited for.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        _args.seconds("timeout", timeout)
        status = await self._look()
        if status.ended:
            raise ended(self._id, status.ended)
        return {port: Tunnel(tunnel.LOCAL, local) for port, local in status.tunnels}

    async def _open_tunnels(self, ports: Mapping[int, int]) -> None:
        """Open those that last as long as the sandbox, or leave no sandbox. Each has its port of
        this machine, 0 for any."""
        if not ports:
            return
        try:
            with forwarding.listening(ports) as listeners:
                await self._engine.forward(self._id, listeners)
        except ConnectionError:
            pass  # it has ended already; the next call tells why
        except BaseException:
            await self._engine.stop(self._id)
            raise

    @dual
    async def forward(self, port: int, *, local_port: int = 0) -> Forward:
        """Let a port of this machine lead to a port of the sandbox, as long as the `with` block.

        No port has to be named at `create`, and it works with `block_network`. A small process
        beside this one carries the bytes; it ends with this one, too.

        Args:
            port: the port in the sandbox; nothing has to listen there yet.
            local_port: the port of 127.0.0.1; 0: any that is free.

        Returns:
            The tunnel, with `host`, `port`, `url` and `tcp_socket`.

        Raises:
            InvalidError: another process has the local port.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        port = _args.whole("port", port, 1, 65535)
        local_port = _args.whole("local_port", local_port, 0, 65535)
        status = await self._look()
        if status.ended:
            raise ended(self._id, status.ended)
        door = await self._engine.door(self._id) if hasattr(self._engine, "door") else None
        with tunnel.listen(local_port) as listener:
            if door:
                return tunnel.open_near(door, listener, port)
            return await tunnel.open_far(self, listener, port)
