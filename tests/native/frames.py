"""A client of the agent's protocol, written from docs/protocol.md alone, so that the SDK's and the agent's idea of it are both checked."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

STDOUT, STDERR, EXIT, STDIN, PEEK = 1, 2, 4, 8, 16
PTY, WITH_STDIN, STDOUT_NULL, STDERR_NULL, STDERR_TO_STDOUT, ATTACHED = 1, 2, 4, 8, 16, 32
KEEP, LIMIT, CONNECT = 64, 128, 256
FOREVER = 0xFFFFFFFF


class Refused(Exception):
    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence


class Closed(Exception):
    pass


@dataclass
class Exit:
    killed: int
    code: int
    timed_out: int
    oom: int
    started_us: int
    ended_us: int
    cpu_us: int
    rss_kib: int


@dataclass
class Answer:
    data: dict[int, bytes] = field(default_factory=dict)
    offset: dict[int, int] = field(default_factory=dict)
    state: int = 0
    accepted: int = 0
    exit: Exit | None = None


@dataclass
class Entry:
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    path: bytes
    target: bytes


@dataclass
class Result:
    stdout: bytes
    stderr: bytes
    exit: Exit


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(raw)) + raw


def many(values: list[str | bytes]) -> bytes:
    return struct.pack("<I", len(values)) + b"".join(text(value) for value in values)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IB", len(payload) + 1, kind) + payload


def entry_frame(
    kind: str, path: str | bytes, size: int = 0, mode: int = 0o644, target: str = "", mtime: int = 0
) -> bytes:
    head = struct.pack("<BIIIQQ", ord(kind), mode, 0, 0, size, mtime)
    return frame(0x40, head + text(path) + text(target))


def _texts(raw: bytes, count: int) -> list[bytes]:
    values = []
    for _ in range(count):
        (size,) = struct.unpack_from("<I", raw)
        values.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    assert raw == b""
    return values


class Link:
    def __init__(self, to: str | socket.socket, timeout: float = 20) -> None:
        self.socket = socket.socket(socket.AF_UNIX) if isinstance(to, str) else to
        self.socket.settimeout(timeout)
        try:
            if isinstance(to, str):
                self.socket.connect(to)
        except OSError:
            self.socket.close()
            raise
        self._got = bytearray()
        kind, payload = self.receive()
        assert kind == 0x01 and struct.unpack_from("<I", payload) == (1,)
        self.version = _texts(payload[4:-8], 1)[0]

    def close(self) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def _take(self, size: int) -> bytes:
        while len(self._got) < size:
            more = self.socket.recv(1 << 20)
            if not more:
                raise Closed
            self._got += more
        taken = bytes(self._got[:size])
        del self._got[:size]
        return taken

    def receive(self) -> tuple[int, bytes]:
        (length,) = struct.unpack("<I", self._take(4))
        raw = self._take(length)
        return raw[0], raw[1:]

    def expect(self, wanted: int) -> bytes:
        kind, payload = self.receive()
        if kind == 0x2F:
            raise Refused(struct.unpack_from("<I", payload)[0], _texts(payload[4:], 1)[0].decode())
        assert kind == wanted, hex(kind)
        return payload

    # commands

    def started(self) -> tuple[int, bool]:
        pid, known = struct.unpack("<IB", self.expect(0x20))
        return pid, bool(known)

    def progress(self) -> Answer:
        answer = Answer()
        while True:
            kind, payload = self.receive()
            if kind == 0x21:
                stream, offset = struct.unpack_from("<BQ", payload)
                answer.data[stream] = payload[9:]
                answer.offset[stream] = offset
                continue
            if kind == 0x2F:
                raise Refused(struct.unpack_from("<I", payload)[0], _texts(payload[4:], 1)[0].decode())
            assert kind == 0x22, hex(kind)
            answer.state, answer.accepted = struct.unpack_from("<BQ", payload)
            if answer.state & EXIT:
                answer.exit = Exit(*struct.unpack("<BBBBQQQQ", payload[9:]))
            else:
                assert len(payload) == 9
            return answer

    def start(self, *argv: str | bytes, **options: Any) -> bytes:
        id = os.urandom(16)
        self.send(start_frame(id, *argv, **options))
        self.started()
        return id

    def io(self, id: bytes, want: int, **options: Any) -> Answer:
        self.send(io_frame(id, want, **options))
        return self.progress()

    def finish(self, id: bytes, out: int = 0, err: int = 0, want: int = STDOUT | STDERR | EXIT) -> Result:
        """Reads to the end; every offset must follow the one before."""
        got = {1: bytearray(), 2: bytearray()}
        at = {1: out, 2: err}
        while True:
            answer = self.io(id, want, out=at[1], err=at[2])
            for stream, data in answer.data.items():
                assert answer.offset[stream] == at[stream]
                got[stream] += data
                at[stream] += len(data)
            if answer.exit:
                return Result(bytes(got[1]), bytes(got[2]), answer.exit)

    def run(self, *argv: str | bytes, **options: Any) -> Result:
        id = self.start(*argv, **options)
        result = self.finish(id)
        self.send(frame(0x14, id))
        return result

    def kill(self, id: bytes, signal: int, tree: bool = False) -> None:
        self.send(frame(0x12, id + bytes([signal, tree])))
        self.expect(0x23)

    def ping(self) -> None:
        self.send(frame(0x15))
        assert self.expect(0x23) == b""

    # files

    def file(
        self,
        operation: int,
        path: str | bytes,
        second: str | bytes = "",
        flags: int = 0,
        mode: int = 0,
        offset: int = 0,
    ) -> None:
        self.send(file_frame(operation, path, second, flags, mode, offset))

    def ok(self) -> None:
        assert self.expect(0x23) == b""

    def entry(self) -> Entry:
        return parse_entry(self.expect(0x40))

    def stat(self, path: str | bytes, follow: bool = False) -> Entry:
        self.file(1, path, flags=follow)
        return self.entry()

    def until_end(self) -> list[Entry | bytes]:
        got: list[Entry | bytes] = []
        while True:
            kind, payload = self.receive()
            if kind == 0x42:
                return got
            if kind == 0x2F:
                raise Refused(struct.unpack_from("<I", payload)[0], _texts(payload[4:], 1)[0].decode())
            got.append(parse_entry(payload) if kind == 0x40 else payload)

    def read(self, path: str | bytes, offset: int = 0) -> bytes:
        self.file(5, path, offset=offset)
        head, *chunks = self.until_end()
        assert isinstance(head, Entry) and head.kind == "f"
        return b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))

    def write(self, path: str | bytes, data: bytes, parents: bool = False, mode: int = 0) -> None:
        self.file(6, path, flags=parents, mode=mode)
        for at in range(0, len(data), 1 << 20):
            self.send(frame(0x41, data[at : at + (1 << 20)]))
        self.send(frame(0x42))
        self.ok()


def parse_entry(payload: bytes) -> Entry:
    kind, mode, uid, gid, size, mtime = struct.unpack_from("<BIIIQQ", payload)
    path, target = _texts(payload[29:], 2)
    return Entry(chr(kind), mode, uid, gid, size, mtime, path, target)


def start_frame(
    id: bytes,
    *argv: str | bytes,
    flags: int = ATTACHED,
    timeout: int = 0,
    user: str = "",
    workdir: str = "",
    rows: int = 24,
    columns: int = 80,
    env: list[str | bytes] | None = None,
    keep: int | None = None,
    tail: int | None = None,
) -> bytes:
    flags |= (0 if keep is None else KEEP) | (0 if tail is None else LIMIT)
    head = struct.pack("<16sIQ", id, flags, timeout) + text(user) + text(workdir) + struct.pack("<HH", rows, columns)
    bounds = b"".join(struct.pack("<Q", bound) for bound in (keep, tail) if bound is not None)
    return frame(0x10, head + many(list(argv)) + many(env or []) + bounds)


def io_frame(
    id: bytes,
    want: int,
    out: int = 0,
    err: int = 0,
    stdin: int = 0,
    ends: bool = False,
    most: int = 1 << 20,
    wait: int = FOREVER,
    data: bytes = b"",
) -> bytes:
    return frame(0x11, struct.pack("<16sBQQQBII", id, want, out, err, stdin, ends, most, wait) + text(data))


def file_frame(
    operation: int, path: str | bytes, second: str | bytes = "", flags: int = 0, mode: int = 0, offset: int = 0
) -> bytes:
    return frame(0x30, struct.pack("<BIIQ", operation, flags, mode, offset) + text(path) + text(second))
