"""Ways to a container's agent: its socket in a folder that both sides see, or a process in the
container that dials it.

The folder can be written by root inside the sandbox. So nothing in it is trusted: the socket is
opened without following links, and what listens there must be the process that the daemon says is
the container's first.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path

from openmodal._dual import Blocking, readable, writable
from openmodal._link import SocketStream, Streamed, connected, peer
from openmodal.engines.docker.daemon import Api, ApiError, Daemon, Taken

FOLDER = "/.openmodal"  # in the container
AGENT = f"{FOLDER}/agent"
RUN = f"{FOLDER}/run"
SOCKET = f"{RUN}/agent.sock"

_HEADER = 8  # of each piece of an attached stream: its number, three zeros, its length
_STDERR = 2


async def direct(folder: Path, pid: int) -> Streamed:
    """Connect to the agent's socket in a folder of this machine. `pid`: the agent's, as this
    machine counts.

    Raises:
        ConnectionError: nothing listens, or something else than the agent does.
    """
    sock = await _connected(folder / "agent.sock")
    listens = peer(sock)
    if listens != pid:
        sock.close()
        raise ConnectionRefusedError(f"process {listens} listens in {folder}, not the agent ({pid})")
    return SocketStream(sock)


async def _connected(path: Path) -> socket.socket:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConnectionRefusedError(str(error)) from error
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConnectionRefusedError(f"{path} is not a socket")
        return await connected(f"/proc/self/fd/{fd}")  # the file that was looked at, whatever its name means now
    finally:
        os.close(fd)


async def dial(daemon: Daemon, id: str) -> Streamed:
    """Start a process in the container that copies between this connection and the agent's socket.

    Raises:
        ConnectionError: the container does not run (any more).
    """
    return Attached(await Blocking(_dial, daemon, id))


def _dial(daemon: Daemon, id: str) -> Taken:
    command = {
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Cmd": [AGENT, "dial", SOCKET],
        "User": "0",
    }
    try:
        with daemon.open() as api:
            made = api.post(f"/containers/{id}/exec", command)
        return daemon.take(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False}, speaks=True)
    except ApiError as error:
        raise ConnectionRefusedError(str(error)) from error


class Attached:
    """The standard streams of a process in a container: what is sent is its input, what comes is its output."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._raw: Streamed = (
            TlsStream(taken.socket) if isinstance(taken.socket, ssl.SSLSocket) else SocketStream(taken.socket)
        )
        self._ahead = memoryview(taken.first)
        self._left = 0  # of the piece under way

    async def send(self, data: bytes | memoryview) -> None:
        await self._raw.send(data)

    async def receive(self, buffer: memoryview) -> int:
        while not self._left:
            header = await self._exactly(_HEADER)
            if not header:
                return 0
            size = int.from_bytes(header[4:], "big")
            if header[0] == _STDERR:  # why it cannot dial; then it ends, and so does the stream
                await self._exactly(size)
            else:
                self._left = size
        got = await self._read(buffer[: self._left])
        self._left -= got
        return got

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._taken.close()

    async def _read(self, buffer: memoryview) -> int:
        if not self._ahead:
            return await self._raw.receive(buffer)
        got = min(len(buffer), len(self._ahead))
        buffer[:got], self._ahead = self._ahead[:got], self._ahead[got:]
        return got

    async def _exactly(self, count: int) -> bytes:
        """So many bytes, or b"" at the end of the stream."""
        data = bytearray(count)
        view, have = memoryview(data), 0
        while have < count:
            got = await self._read(view[have:])
            if not got:
                return b""
            have += got
        return bytes(data)


class TlsStream:
    """A stream over a connected, non-blocking TLS socket."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._socket = sock

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as want:
                await self._wait(want)

    async def receive(self, buffer: memoryview) -> int:
        while True:
            try:
                return self._socket.recv_into(buffer)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as want:
                await self._wait(want)

    async def _wait(self, want: ssl.SSLError) -> None:
        fd = self._socket.fileno()
        await (readable(fd) if isinstance(want, ssl.SSLWantReadError) else writable(fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def log(api: Api, id: str) -> dict[int, bytes]:
    """What its agent said on its stdout (1) and stderr (2)."""
    return pieces(api.read(f"/containers/{id}/logs", stdout=True, stderr=True))


def pid(folder: Path) -> int:
    """The agent's process id, if its socket is in the folder; 0: out of sight, or another's."""
    try:
        return int((folder / "pid").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def note_pid(folder: Path, pid: int) -> None:
    """Note the agent's process id for `pid`; 0: its socket is not in the folder any more."""
    if pid:
        (folder / "pid").write_text(str(pid), "ascii")
    else:
        (folder / "pid").unlink(missing_ok=True)


def pieces(data: bytes) -> dict[int, bytes]:
    """What a container's log has of stdout (1) and stderr (2)."""
    found = {1: bytearray(), 2: bytearray()}
    at = 0
    while at + _HEADER <= len(data):
        size = int.from_bytes(data[at + 4 : at + _HEADER], "big")
        found.get(data[at], bytearray()).extend(data[at + _HEADER : at + _HEADER + size])
        at += _HEADER + size
    return {number: bytes(part) for number, part in found.items()}
