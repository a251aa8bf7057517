"""The ports of a sandbox: what listens in it is reached from here."""

from __future__ import annotations

from openmodal import _args, connection
from openmodal._dual import dual
from openmodal.connection import Connection
from openmodal.sandbox.handle import Handle


class Ports(Handle):
    """Reaching what listens."""

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
