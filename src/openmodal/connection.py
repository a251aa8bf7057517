"""Connection: bytes to and from something that listens in a sandbox.

For the agent it is a command without a program (docs/protocol.md), with an id and offsets:
a link that breaks on the way does not break it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from openmodal import _args, _wire
from openmodal._command import Command, KernelError, Spool
from openmodal._dual import DualContext, dual, within
from openmodal._sources import Live
from openmodal._spec import ExecSpec
from openmodal._wire import Flag, Want
from openmodal.errors import (
    Error,
    ExecError,
    InvalidError,
    SandboxConnectionRefusedError,
    SandboxConnectionResetError,
    StdinClosedError,
    UnsupportedError,
)
from openmodal.process import StreamWriter

_LINGER = 1.0  # seconds that the other side has to take what was sent, and to close


class Connection(DualContext):
    """A TCP connection to a port of a sandbox; a `with` block closes it.

    One thread or task may send while another receives.

    Attributes:
        port: the port in the sandbox.
    """

    def __init__(self, command: Command, port: int) -> None:
        self.port = port
        self._command = command
        self._source = Live(command, 1)
        self._writer = StreamWriter(command)
        self._rest = b""
        self._receiving = False
        self._closed = False

    @dual
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; return when the sandbox has taken it.

        Raises:
            SandboxConnectionResetError: the other side takes nothing more.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidError(f"send needs bytes, not {type(data).__name__}; write text.encode()")
        self._check()
        with _reset_is_told(self.port):
            self._writer.write(data)
            await self._writer._drain()

    @dual
    async def send_eof(self) -> None:
        """Say that nothing more is sent; what the other side still says can be received."""
        self._check()
        with _reset_is_told(self.port):
            self._writer._ends = True
            await self._writer._flush()

    @dual
    async def recv(self, most: int = 65536) -> bytes:
        """Return what is there, at most so many bytes, waiting for it if need be; b"" at the end.

        Raises:
            SandboxConnectionResetError: the other side has broken the connection.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        most = _args.whole("most", most, 1, _wire.MAX_DATA)
        self._check()
        if not self._rest:
            self._rest = await self._more()
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    @dual
    async def close(self) -> None:
        """Close it. What was sent reaches the other side, if that takes it within a second."""
        await self._close()

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(Error, OSError):
            await within(_LINGER, self._part())
        with suppress(Error, OSError):
            await self._command.end()

    async def _part(self) -> None:
        self._writer._ends = True
        await self._writer._flush()
        await self._command.io(Want.EXIT, [0, 0, 0], {})

    async def _more(self) -> bytes:
        if self._receiving:
            raise ExecError("this connection is received from by another thread or task; let one of them do it")
        self._receiving = True
        try:
            data = await self._source.chunk()
        finally:
            self._receiving = False
        if self._source.gaps:
            raise SandboxConnectionResetError(f"bytes of the connection to port {self.port} were lost; connect again")
        if not data:
            await self._tell_of_reset()
        return data

    async def _tell_of_reset(self) -> None:
        """Why the stream has ended, if the other side did not end it: the agent wrote that before."""
        said = Spool()
        await self._command.io(Want.STDERR, [0, 0, 0], {2: said}, wait=0)
        if reason := said.read(0, 200).decode("utf-8", "replace"):
            raise SandboxConnectionResetError(f"the connection to port {self.port} was broken: {reason}")

    def _check(self) -> None:
        if self._closed:
            raise InvalidError("this connection is closed; connect again with sandbox.connect(port)")

    def __repr__(self) -> str:
        return f"<Connection to port {self.port}{' (closed)' if self._closed else ''}>"


@contextmanager
def _reset_is_told(port: int) -> Iterator[None]:
    try:
        yield
    except StdinClosedError:
        text = f"what listened on port {port} of the sandbox takes nothing more: it has closed the connection"
        raise SandboxConnectionResetError(text) from None


async def connect(command: Command, port: int, timeout: float) -> Connection:
    """Open one; see `Sandbox.connect`."""
    argv = (str(port), str(round(timeout * 1000)))
    spec = ExecSpec(argv, flags=Flag.CONNECT | Flag.STDIN | Flag.ATTACHED)
    try:
        await command.start(spec)
    except KernelError as error:
        if error.errno != errno.ECONNREFUSED:
            raise
        text = f"nothing listens on port {port} of the sandbox; start a server in it, or wait for it with timeout="
        raise SandboxConnectionRefusedError(text) from None
    except UnsupportedError:
        raise UnsupportedError(
            "the sandbox was created by a version of OpenModal that knows no connections; create a new one"
        ) from None
    return Connection(command, port)


__all__ = ["Connection"]
