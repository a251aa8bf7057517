"""Frames: what is encoded is decoded again, and whatever else arrives raises ProtocolError and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmodal import _wire
from openmodal._spec import ExecSpec, ExitRecord, SandboxSpec
from openmodal._wire import Entry, FileOp, Flag, Kind, State, Want
from openmodal.errors import ProtocolError

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
IDS = st.binary(min_size=16, max_size=16)
NAMES = st.binary(max_size=300).filter(lambda name: b"\0" not in name)

DECODERS: dict[str, Callable[[memoryview], object]] = {
    "hello": _wire.decode_hello,
    "started": _wire.decode_started,
    "data": _wire.decode_data,
    "progress": _wire.decode_progress,
    "error": _wire.decode_error,
    "entry": _wire.decode_entry,
}


def payload_of(frame: bytes, kind: Kind) -> memoryview:
    length, found = struct.unpack_from("<IB", frame)
    assert found == kind
    assert length == len(frame) - 4
    return memoryview(frame)[5:]


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def entry_payload(item: Entry) -> memoryview:
    return payload_of(_wire.entry(item), Kind.ENTRY)


entries = st.builds(
    Entry,
    kind=st.sampled_from("fdlo"),
    mode=U32,
    uid=U32,
    gid=U32,
    size=U64,
    mtime=U64,
    path=NAMES,
    target=NAMES,
)


@given(entries)
def test_an_entry_is_what_it_was(item: Entry) -> None:
    assert _wire.decode_entry(entry_payload(item)) == item


@given(U32, st.text(), U64)
def test_a_hello_is_what_it_was(protocol: int, version: str, number: int) -> None:
    payload = struct.pack("<I", protocol) + text(version.encode("utf-8", "replace"))
    expected = version.encode("utf-8", "replace").decode()
    assert _wire.decode_hello(memoryview(payload)) == (protocol, expected, 0), "an older agent's"
    assert _wire.decode_hello(memoryview(payload + struct.pack("<Q", number))) == (protocol, expected, number)


@given(st.sampled_from((1, 2)), U64, st.binary())
def test_data_is_what_it_was(stream: int, offset: int, data: bytes) -> None:
    found = _wire.decode_data(memoryview(struct.pack("<BQ", stream, offset) + data))
    assert (found[0], found[1], bytes(found[2])) == (stream, offset, data)


@given(U8, U64, st.booleans(), U8, st.booleans(), st.booleans(), st.tuples(U32, U32, U32), U64)
def test_a_progress_is_what_it_was(
    state: int, stdin: int, signaled: bool, code: int, late: bool, starved: bool, times: tuple[int, ...], peak: int
) -> None:
    record = struct.pack("<BBBBQQQQ", signaled, code, late, starved, *times, peak)
    payload = struct.pack("<BQ", state, stdin) + (record if state & State.EXIT else b"")
    progress = _wire.decode_progress(memoryview(payload))
    assert (progress.state, progress.stdin) == (State(state), stdin)
    if state & State.EXIT:
        began, ended, cpu = (time / 1e6 for time in times)
        assert progress.record == ExitRecord(signaled, code, late, starved, began, ended, cpu, peak)
        assert progress.record.returncode == (128 + code if signaled else code)
    else:
        assert progress.record is None


@given(U32, st.text())
def test_an_errors_sentence_shows_no_control_characters(code: int, sentence: str) -> None:
    payload = struct.pack("<I", code) + text(sentence.encode("utf-8", "replace"))
    found, shown = _wire.decode_error(memoryview(payload))
    assert found == code
    assert shown.isprintable()


def test_control_characters_are_escaped() -> None:
    payload = struct.pack("<I", 1) + text(b"a\x1b[31mb\nc\xff")
    assert _wire.decode_error(memoryview(payload)) == (1, "a\\x1b[31mb\\nc\ufffd")


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=400))
def test_anything_may_arrive_and_only_protocol_errors_come_of_it(name: str, data: bytes) -> None:
    try:
        DECODERS[name](memoryview(data))
    except ProtocolError:
        pass


COMPLETE = {
    "hello": struct.pack("<I", 1) + text(b"0.1") + bytes(8),
    "started": struct.pack("<IB", 7, 0),
    "progress": struct.pack("<BQ", State.EXIT, 0) + struct.pack("<BBBBQQQQ", 0, 0, 0, 0, 1, 2, 3, 4),
    "error": struct.pack("<I", 1) + text(b"sentence"),
    "entry": bytes(entry_payload(Entry("f", 0o644, 0, 0, 5, 6, b"path", b"target"))),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_a_frame_that_ends_early_or_late_is_refused(name: str) -> None:
    decode, whole = DECODERS[name], COMPLETE[name]
    decode(memoryview(whole))
    older = {"hello": len(whole) - 8}  # a hello without the agent's number
    for length in {*range(len(whole))} - {older.get(name)}:
        with pytest.raises(ProtocolError):
            decode(memoryview(whole[:length]))
    with pytest.raises(ProtocolError, match="too many"):
        decode(memoryview(whole + b"\0"))


@pytest.mark.parametrize("name", COMPLETE)
@given(position=st.integers(0, 100), value=U8)
def test_a_changed_byte_is_never_more_than_a_protocol_error(name: str, position: int, value: int) -> None:
    changed = bytearray(COMPLETE[name])
    changed[position % len(changed)] = value
    try:
        DECODERS[name](memoryview(changed))
    except ProtocolError:
        pass


@pytest.mark.parametrize("stream", [0, 3, 255])
def test_data_of_a_stream_that_does_not_exist_is_refused(stream: int) -> None:
    with pytest.raises(ProtocolError, match="stream"):
        _wire.decode_data(memoryview(struct.pack("<BQ", stream, 0)))


def test_data_that_ends_in_its_offset_is_refused() -> None:
    with pytest.raises(ProtocolError):
        _wire.decode_data(memoryview(b"\1\0\0\0"))


@pytest.mark.parametrize("kind", [0, ord("x"), 255])
def test_an_entry_of_an_unknown_kind_is_refused(kind: int) -> None:
    payload = bytearray(COMPLETE["entry"])
    payload[0] = kind
    with pytest.raises(ProtocolError, match="kind"):
        _wire.decode_entry(memoryview(payload))


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(IDS, st.lists(words, min_size=1), st.dictionaries(words, words), words, words, U32, U16, U16)
def test_start_says_everything_about_the_command(
    id: bytes, argv: list[str], env: dict[str, str], user: str, workdir: str, flags: int, rows: int, columns: int
) -> None:
    spec = ExecSpec(tuple(argv), tuple(env.items()), user, workdir, 1.5, flags, rows, columns)
    expected = (
        struct.pack("<16sIQ", id, flags, 1500)
        + text(user.encode())
        + text(workdir.encode())
        + struct.pack("<HH", rows, columns)
        + struct.pack("<I", len(argv))
        + b"".join(text(arg.encode()) for arg in argv)
        + struct.pack("<I", len(env))
        + b"".join(text(f"{key}={value}".encode()) for key, value in env.items())
    )
    assert payload_of(_wire.start(id, spec), Kind.START) == expected


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [(None, 0), (0.0001, 1), (0.001, 1), (1.0, 1000), (1.0001, 1001), (31_622_400.0, 31_622_400_000)],
)
def test_a_timeout_is_rounded_up_and_never_to_none(timeout: float | None, milliseconds: int) -> None:
    frame = _wire.start(bytes(16), ExecSpec(("x",), timeout=timeout))
    assert struct.unpack_from("<Q", frame, 5 + 16 + 4) == (milliseconds,)


def test_bytes_that_are_not_utf8_travel_as_surrogates() -> None:
    assert _wire.encode("a\udcff") == b"a\xff"
    assert text(b"a\xff") in _wire.start(bytes(16), ExecSpec(("a\udcff",)))


@given(IDS, U64, U64, U64, st.binary(max_size=1000), st.booleans(), U32, U32)
def test_io_says_everything_about_the_exchange(
    id: bytes, stdout: int, stderr: int, stdin: int, data: bytes, ends: bool, most: int, wait: int
) -> None:
    want = Want.STDOUT | Want.STDIN
    frame = _wire.io(id, want, stdout=stdout, stderr=stderr, stdin=stdin, data=data, ends=ends, most=most, wait=wait)
    expected = struct.pack("<16sBQQQBII", id, want, stdout, stderr, stdin, ends, most, wait) + text(data)
    assert payload_of(frame, Kind.IO) == expected


@given(IDS, U8, st.booleans(), U16, U16)
def test_kill_resize_and_release_name_the_command(id: bytes, signal: int, tree: bool, rows: int, columns: int) -> None:
    assert payload_of(_wire.kill(id, signal, tree=tree), Kind.KILL) == id + bytes((signal, tree))
    assert payload_of(_wire.resize(id, rows, columns), Kind.RESIZE) == id + struct.pack("<HH", rows, columns)
    assert payload_of(_wire.release(id), Kind.RELEASE) == id


@given(st.sampled_from(FileOp), NAMES, U32, U32, U64, NAMES)
def test_file_says_everything_about_the_operation(
    operation: FileOp, path: bytes, flags: int, mode: int, offset: int, second: bytes
) -> None:
    frame = _wire.file(operation, path, flags=flags, mode=mode, offset=offset, second=second)
    assert payload_of(frame, Kind.FILE) == struct.pack("<BIIQ", operation, flags, mode, offset) + text(path) + text(
        second
    )


def test_auth_carries_the_token() -> None:
    assert payload_of(_wire.auth("token"), Kind.AUTH) == text(b"token")


def test_setup_carries_the_sandbox() -> None:
    spec = SandboxSpec(app="a", argv=("echo", "x"), env=(("A", "b"),), timeout=1.5, workdir="/w")
    expected = text(b"token") + struct.pack("<QQ", 1500, 0) + text(b"user") + text(b"/w") + struct.pack("<I", 2)
    expected += struct.pack("<I", 2) + text(b"echo") + text(b"x") + struct.pack("<I", 1) + text(b"A=b")
    assert payload_of(_wire.setup("token", spec, "user", 2), Kind.SETUP) == expected


def test_a_lease_follows_what_older_agents_know() -> None:
    spec = SandboxSpec(app="a", lease=1.5)
    without = _wire.setup("token", SandboxSpec(app="a"), "", 0)
    assert payload_of(_wire.setup("token", spec, "", 0), Kind.SETUP) == without[5:] + struct.pack("<Q", 1500)


def test_the_numbers_are_those_of_the_protocol() -> None:
    """docs/protocol.md, section 1: changing one of them breaks every agent."""
    assert {kind.name: int(kind) for kind in Kind} == {
        "HELLO": 0x01,
        "AUTH": 0x02,
        "START": 0x10,
        "IO": 0x11,
        "KILL": 0x12,
        "RESIZE": 0x13,
        "RELEASE": 0x14,
        "PING": 0x15,
        "SHUTDOWN": 0x16,
        "SETUP": 0x17,
        "DEADLINE": 0x18,
        "COMMANDS": 0x19,
        "DIAL": 0x1A,
        "LOOK": 0x1B,
        "REST": 0x1C,
        "STARTED": 0x20,
        "DATA": 0x21,
        "PROGRESS": 0x22,
        "OK": 0x23,
        "COMMAND": 0x24,
        "ERROR": 0x2F,
        "FILE": 0x30,
        "ENTRY": 0x40,
        "CHUNK": 0x41,
        "END": 0x42,
        "HOLE": 0x43,
        "EVENT": 0x44,
    }
    assert [int(flag) for flag in Flag] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert [int(bit) for bit in Want] == [1, 2, 4, 8, 16]
    assert [int(bit) for bit in State] == [1, 2, 4, 8, 16]
    assert _wire.MAX_FRAME == 2_162_688
