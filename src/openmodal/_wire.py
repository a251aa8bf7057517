"""Frames between the SDK and an agent: bytes to values and back. Pure: no I/O, no state. Source:
docs/protocol.md, section 1.

What arrives is hostile: every decoder checks lengths and raises ProtocolError, never anything else.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from openmodal._spec import CommandStatus, ExecSpec, ExitRecord, SandboxSpec
from openmodal.errors import ProtocolError

PROTOCOL = 1
MAX_DATA = 1 << 20
MAX_FRAME = (2 << 20) + (1 << 16)  # a command with all the arguments and variables that Linux takes
MAIN = bytes(16)
FOREVER = 0xFFFFFFFF


class Kind(IntEnum):
    HELLO = 0x01
    AUTH = 0x02
    START = 0x10
    IO = 0x11
    KILL = 0x12
    RESIZE = 0x13
    RELEASE = 0x14
    PING = 0x15
    SHUTDOWN = 0x16
    SETUP = 0x17
    DEADLINE = 0x18
    COMMANDS = 0x19
    DIAL = 0x1A
    LOOK = 0x1B
    REST = 0x1C
    STARTED = 0x20
    DATA = 0x21
    PROGRESS = 0x22
    OK = 0x23
    COMMAND = 0x24
    ERROR = 0x2F
    FILE = 0x30
    ENTRY = 0x40
    CHUNK = 0x41
    END = 0x42
    HOLE = 0x43
    EVENT = 0x44


class Flag(IntFlag):
    """How a command starts."""

    PTY = 1
    STDIN = 2
    STDOUT_NULL = 4
    STDERR_NULL = 8
    STDERR_TO_STDOUT = 16
    ATTACHED = 32
    KEEP = 64
    LIMIT = 128
    CONNECT = 256


class Want(IntFlag):
    """What an IO asks for."""

    STDOUT = 1
    STDERR = 2
    EXIT = 4
    STDIN = 8
    PEEK = 16


class State(IntFlag):
    """What a PROGRESS says."""

    STDOUT_END = 1
    STDERR_END = 2
    EXIT = 4
    STDIN_CLOSED = 8
    NO_OUTPUT = 16


class Code(IntEnum):
    """What an ERROR says; 0x100 and more are 0x100 + errno."""

    PROTOCOL = 1
    UNKNOWN = 2
    INVALID = 3
    LIMIT = 4
    UNSUPPORTED = 5
    DENIED = 6
    LATER = 7
    ERRNO = 0x100


class FileOp(IntEnum):
    STAT = 1
    LIST = 2
    MKDIR = 3
    REMOVE = 4
    READ = 5
    WRITE = 6
    PULL = 7
    PUSH = 8
    RENAME = 9
    CHMOD = 10
    CHOWN = 11
    HOLES = 12
    WATCH = 13


class Change(IntEnum):
    """What an EVENT says."""

    CREATED = 1
    MODIFIED = 2
    DELETED = 3
    MOVED = 4
    OVERFLOW = 5


class Entry(NamedTuple):
    """A file, folder, link or other thing; `kind` is "f", "d", "l" or "o", `mtime` in nanoseconds."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    path: bytes
    target: bytes


class Event(NamedTuple):
    """Something that changed in a folder that is watched; `target` is where it was moved to."""

    change: Change
    is_folder: bool
    path: bytes
    target: bytes


class Progress(NamedTuple):
    """The answer to an IO. `state` is bits of `State`; `record` is there when it has EXIT."""

    state: int
    stdin: int
    record: ExitRecord | None


_AS_USER = 0x100

_HEAD = struct.Struct("<IB")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_START = struct.Struct("<16sIQ")
_SIZE = struct.Struct("<HH")
_IO = struct.Struct("<16sBQQQBIII")
_STARTED = struct.Struct("<IB")
_DATA = struct.Struct("<BQ")
_PROGRESS = struct.Struct("<BQ")
_COMMAND = struct.Struct("<IQ")
_COUNT = struct.Struct("<BI")
_RECORD = struct.Struct("<BBBBQQQQ")
_FILE = struct.Struct("<BIIQ")
_ENTRY = struct.Struct("<BIIIQQ")
_EVENT = struct.Struct("<BB")


def _text(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _list(values: list[bytes]) -> bytes:
    return _U32.pack(len(values)) + b"".join(map(_text, values))


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return _HEAD.pack(len(payload) + 1, kind) + payload


def auth(token: str) -> bytes:
    return frame(Kind.AUTH, _text(token.encode()))


def setup(token: str, spec: SandboxSpec, user: str, main_flags: int) -> bytes:
    """What an agent becomes a sandbox by: secrets travel here, where no engine's records show them."""
    return frame(
        Kind.SETUP,
        _text(token.encode())
        + struct.pack("<QQ", milliseconds(spec.timeout), milliseconds(spec.idle_timeout))
        + _text(encode(user))
        + _text(encode(spec.workdir))
        + _U32.pack(main_flags)
        + _list([encode(arg) for arg in spec.argv])
        + _list([encode(f"{name}={value}") for name, value in spec.env])
        + (_U64.pack(milliseconds(spec.lease)) if spec.lease else b""),
    )


def milliseconds(seconds: float | None) -> int:
    """Rounded up, so that nothing ends too early, or never: 0 means without end."""
    return max(int(seconds * 1000 + 0.999), 1) if seconds else 0


def encode(value: str) -> bytes:
    """Text for the other side; surrogates stand for bytes that are not UTF-8, as everywhere in Python's os."""
    return value.encode("utf-8", "surrogateescape")


def decode(value: bytes) -> str:
    """Text of the other side; bytes that are not UTF-8 are surrogates."""
    return value.decode("utf-8", "surrogateescape")


# Computed once: an enum's `|` costs more than all the rest of a frame.
_EXIT = int(State.EXIT)
_KEPT = (0, int(Flag.KEEP), int(Flag.KEEP | Flag.LIMIT))


def start(command: bytes, spec: ExecSpec) -> bytes:
    sizes = spec.output or ((spec.keep,) if spec.keep else ())
    flags = _KEPT[len(sizes)]
    env = [encode(f"{name}={value}") for name, value in spec.env]
    return frame(
        Kind.START,
        _START.pack(command, spec.flags | flags, milliseconds(spec.timeout))
        + _text(encode(spec.user))
        + _text(encode(spec.workdir))
        + _SIZE.pack(spec.rows, spec.columns)
        + _list([encode(arg) for arg in spec.argv])
        + _list(env)
        + b"".join(map(_U64.pack, sizes)),
    )


def io(
    command: bytes,
    want: Want,
    *,
    stdout: int = 0,
    stderr: int = 0,
    stdin: int = 0,
    data: bytes | memoryview = b"",
    ends: bool = False,
    most: int = MAX_DATA,
    wait: int = FOREVER,
) -> bytes:
    """Return an IO frame; `wait` in ms."""
    head = _IO.pack(command, want, stdout, stderr, stdin, ends, most, wait, len(data))
    return b"".join((_HEAD.pack(1 + len(head) + len(data), Kind.IO), head, data))


def kill(command: bytes, signal: int, *, tree: bool) -> bytes:
    return frame(Kind.KILL, struct.pack("<16sBB", command, signal, tree))


def resize(command: bytes, rows: int, columns: int) -> bytes:
    return frame(Kind.RESIZE, command + _SIZE.pack(rows, columns))


def deadline(wait: int) -> bytes:
    """A sandbox whose agent keeps its lifetime is to end so many milliseconds from now."""
    return frame(Kind.DEADLINE, _U64.pack(wait))


def release(command: bytes) -> bytes:
    return frame(Kind.RELEASE, command)


def file(
    operation: FileOp,
    path: bytes,
    *,
    flags: int = 0,
    mode: int = 0,
    offset: int = 0,
    second: bytes = b"",
    user: bytes = b"",
) -> bytes:
    """Return a FILE frame; `user` empty: the sandbox's default one."""
    head = _FILE.pack(operation, flags | (_AS_USER if user else 0), mode, offset)
    return frame(Kind.FILE, head + _text(path) + _text(second) + (_text(user) if user else b""))


def entry(item: Entry) -> bytes:
    head = _ENTRY.pack(ord(item.kind), item.mode, item.uid, item.gid, item.size, item.mtime)
    return frame(Kind.ENTRY, head + _text(item.path) + _text(item.target))


def hole(size: int) -> bytes:
    return frame(Kind.HOLE, _U64.pack(size))


class _Reader:
    """Takes a payload apart from front to back."""

    __slots__ = ("at", "payload")

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload
        self.at = 0

    def take(self, count: int) -> memoryview:
        piece = self.payload[self.at : self.at + count]
        if len(piece) != count:
            raise ProtocolError("the agent sent a frame that ends in the middle of a field")
        self.at += count
        return piece

    def struct(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    def text(self) -> bytes:
        return bytes(self.take(_U32.unpack(self.take(4))[0]))

    def done(self) -> None:
        if self.at != len(self.payload):
            raise ProtocolError(f"the agent sent a frame with {len(self.payload) - self.at} bytes too many")


def decode_hello(payload: memoryview) -> tuple[int, str, int]:
    """Return the agent's protocol, version and number; 0: it has none, for it is older."""
    reader = _Reader(payload)
    (protocol,) = reader.struct(_U32)
    version = reader.text().decode("utf-8", "replace")
    (number,) = reader.struct(_U64) if reader.at < len(payload) else (0,)
    reader.done()
    return protocol, version, number


def decode_started(payload: memoryview) -> int:
    """Return the command's process id inside the sandbox, 0 if it could not be executed."""
    reader = _Reader(payload)
    pid, _ = reader.struct(_STARTED)
    reader.done()
    return pid


def decode_hole(payload: memoryview) -> int:
    """Return how many bytes of a file have no content."""
    reader = _Reader(payload)
    (size,) = reader.struct(_U64)
    reader.done()
    return int(size)


def decode_data(payload: memoryview) -> tuple[int, int, memoryview]:
    """Return the stream's number (1, 2), the first byte's offset, and the bytes, which are not copied."""
    reader = _Reader(payload)
    stream, offset = reader.struct(_DATA)
    if stream not in (1, 2):
        raise ProtocolError(f"the agent sent data of stream {stream}")
    return stream, offset, payload[_DATA.size :]


def decode_progress(payload: memoryview) -> Progress:
    reader = _Reader(payload)
    state, stdin = reader.struct(_PROGRESS)
    record = _decode_record(reader) if state & _EXIT else None
    reader.done()
    return Progress(state, stdin, record)


def decode_command(payload: memoryview) -> CommandStatus:
    """A command of a list."""
    reader = _Reader(payload)
    id = bytes(reader.take(len(MAIN))).hex()
    pid, started = reader.struct(_COMMAND)
    user = decode(reader.text()) or "root"
    cut, count = reader.struct(_COUNT)
    argv = tuple(decode(reader.text()) for _ in range(count))
    (ended,) = reader.take(1)
    record = _decode_record(reader) if ended else None
    reader.done()
    return CommandStatus(id, argv, bool(cut), pid, started / 1e6, user, record)


def _decode_record(reader: _Reader) -> ExitRecord:
    signaled, code, timed_out, memory_out, began, ended, cpu, peak = reader.struct(_RECORD)
    return ExitRecord(
        signaled=bool(signaled),
        code=code,
        timed_out=bool(timed_out),
        out_of_memory=bool(memory_out),
        started=began / 1e6,
        ended=ended / 1e6,
        cpu=cpu / 1e6,
        memory=peak,
    )


def decode_error(payload: memoryview) -> tuple[int, str]:
    """Return the code and the sentence, which is shown to users: control characters are escaped."""
    reader = _Reader(payload)
    (code,) = reader.struct(_U32)
    text = reader.text().decode("utf-8", "replace")
    reader.done()
    return code, "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def decode_entry(payload: memoryview) -> Entry:
    reader = _Reader(payload)
    kind, mode, uid, gid, size, mtime = reader.struct(_ENTRY)
    path, target = reader.text(), reader.text()
    reader.done()
    if chr(kind) not in "fdlo":
        raise ProtocolError(f"the agent sent an entry of kind {kind}")
    return Entry(chr(kind), mode, uid, gid, size, mtime, path, target)


def decode_event(payload: memoryview) -> Event:
    reader = _Reader(payload)
    what, is_folder = reader.struct(_EVENT)
    path, target = reader.text(), reader.text()
    reader.done()
    if what not in Change.__members__.values():
        raise ProtocolError(f"the agent sent an event of kind {what}")
    return Event(Change(what), bool(is_folder), path, target)
