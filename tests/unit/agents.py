"""An agent made of a thread: speaks docs/protocol.md over a socket pair, and can cut links where a test wants."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field

from openmodal._agent import Agent
from openmodal._link import SocketStream
from openmodal._wire import Kind, State, Want
from openmodal.errors import SandboxTerminatedError

HELLO = struct.pack("<I", 1) + struct.pack("<I", 4) + b"fake"


@dataclass
class FakeCommand:
    """What the agent knows of a command: its output is there from the start, it exits when it is read and stdin is ended."""

    stdout: bytes = b""
    stderr: bytes = b""
    code: int = 0
    forgets: int = 0  # so many bytes of stdout are lost before the first is read
    reads: bool = False
    stdin: bytearray = field(default_factory=bytearray)
    stdin_ended: bool = False
    starts: int = 0
    released: bool = False


class FakeAgent(Agent):
    """Serves one kind of command on any number of links."""

    def __init__(self, command: FakeCommand, cuts: list[int] | None = None, piece: int = 1000) -> None:
        self.command = command
        self.cuts = cuts or []  # each link is cut after so many bytes that the agent sends; then none
        self.piece = piece
        self.dead = False
        self.known: set[bytes] = set()
        self.threads: list[threading.Thread] = []
        super().__init__(self._open, self._tell)

    async def _open(self) -> SocketStream:
        if self.dead:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        cut = self.cuts.pop(0) if self.cuts else None
        thread = threading.Thread(target=self._serve, args=(theirs, cut), daemon=True)
        thread.start()
        self.threads.append(thread)
        return SocketStream(ours)

    async def _tell(self, error: Exception) -> None:
        if self.dead:
            raise SandboxTerminatedError("it was terminated") from error

    def close(self) -> None:
        super().close()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()

    def _serve(self, sock: socket.socket, cut: int | None) -> None:
        with sock, contextlib.suppress(_Cut, OSError, EOFError):
            out = _Out(sock, cut)
            out.frame(Kind.HELLO, HELLO)
            while True:
                length, kind = struct.unpack("<IB", _exactly(sock, 5))
                self.answer(Kind(kind), _exactly(sock, length - 1), out)

    def answer(self, kind: Kind, payload: bytes, out: _Out) -> None:
        command = self.command
        if kind == Kind.START:
            known = payload[:16] in self.known
            self.known.add(payload[:16])
            command.starts += not known
            out.frame(Kind.STARTED, struct.pack("<IB", 7, known))
        elif kind == Kind.IO:
            self._io(payload, out)
        elif kind == Kind.RELEASE:
            command.released = True
        else:
            out.frame(Kind.OK)

    def _io(self, payload: bytes, out: _Out) -> None:
        _, want, stdout, stderr, stdin, ends, _, _, length = struct.unpack_from("<16sBQQQBIII", payload)
        data = payload[-length:] if length else b""
        command = self.command
        if want & Want.STDIN:
            fresh = data[max(0, len(command.stdin) - stdin) :][: self.piece]
            command.stdin += fresh
            command.stdin_ended = command.stdin_ended or (ends and len(command.stdin) == stdin + len(data))
        state, sent = State(0), False
        for stream, offset, whole, forgets in (
            (1, stdout, command.stdout, command.forgets),
            (2, stderr, command.stderr, 0),
        ):
            offset = max(offset, forgets)
            piece = whole[offset : offset + self.piece]
            if want & stream and piece:
                out.frame(Kind.DATA, struct.pack("<BQ", stream, offset) + piece)
                sent = True
            if offset + len(piece) >= len(whole):
                state |= State(stream)
        over = not sent and (command.stdin_ended or not command.reads)
        record = b""
        if want & Want.EXIT and over:
            state |= State.EXIT
            record = struct.pack("<BBBBQQQQ", 0, command.code, 0, 0, 1, 2, 3, 4)
        out.frame(Kind.PROGRESS, struct.pack("<BQ", state, len(command.stdin)) + record)


class _Cut(Exception):
    pass


class _Out:
    def __init__(self, sock: socket.socket, cut: int | None) -> None:
        self.sock = sock
        self.left = cut

    def frame(self, kind: int, payload: bytes = b"") -> None:
        data = struct.pack("<IB", len(payload) + 1, kind) + payload
        if self.left is None:
            self.sock.sendall(data)
            return
        self.sock.sendall(data[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            raise _Cut


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = sock.recv(count - len(data))
        if not got:
            raise EOFError
        data += got
    return data


__all__ = ["HELLO", "FakeAgent", "FakeCommand"]
