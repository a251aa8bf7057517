"""Commands over links that break: against an agent made of a thread, with cuts at every place."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmodal import _agent, _dual, _wire
from openmodal._agent import Agent
from openmodal._command import SPOOL_LIMIT, Command, Feed, Spool
from openmodal._link import Link, LinkLost, Links, SocketStream, Stream
from openmodal._sources import Live
from openmodal._spec import ExecSpec, OutputGap
from openmodal._wire import Code, Kind, State, Want
from openmodal.errors import (
    EngineError,
    ExecError,
    InvalidError,
    LineTooLongError,
    NotFoundError,
    OutputLostWarning,
    ProtocolError,
    SandboxTerminatedError,
    UnsupportedError,
)
from openmodal.process import LINE_LIMIT, StreamReader
from tests.unit.agents import HELLO, FakeAgent, FakeCommand

SPEC = ExecSpec(("x",))
OUT, ERR = (random.Random(seed).randbytes(20_000) for seed in (1, 2))


def _run_async(core: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(_dual.run_async(core))


@pytest.fixture(params=[_dual.run_sync, _run_async], ids=["blocking", "async"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    found: Callable[[Coroutine[Any, Any, Any]], Any] = request.param
    return found


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def execute(agent: FakeAgent, stdin: bytes | None = None, run: Run = _dual.run_sync) -> tuple[int, bytes, bytes, int]:
    """Run the agent's command as `exec` does; return code, stdout, stderr and how much of stdout was dropped."""
    out, err = Spool(), Spool()
    try:
        feed = None if stdin is None else Feed(stdin)
        pid, record = run(Command(agent, os.urandom(16)).run(SPEC, feed, {1: out, 2: err}))
    finally:
        agent.close()
    assert pid == 7
    return record.code, out.read(0, 1 << 30), err.read(0, 1 << 30), sum(gap.size for gap in out.gaps)


def test_a_command_gives_code_and_output(run: Run) -> None:
    agent = FakeAgent(FakeCommand(OUT, ERR, 5))
    assert execute(agent, run=run) == (5, OUT, ERR, 0)
    assert agent.command.starts == 1
    assert agent.command.released


def test_stdin_is_given_whole(run: Run) -> None:
    agent = FakeAgent(FakeCommand(b"x", reads=True), piece=70_000)
    data = random.Random(3).randbytes(1_000_000)
    execute(agent, data, run=run)
    assert agent.command.stdin == data
    assert agent.command.stdin_ended


def test_dropped_bytes_are_counted(run: Run) -> None:
    agent = FakeAgent(FakeCommand(OUT, forgets=1234))
    assert execute(agent, run=run) == (0, OUT[1234:], b"", 1234)


def test_at_whatever_byte_the_first_link_breaks_the_result_is_whole() -> None:
    """The first answers take 46 bytes of greeting and start, then come data: cut everywhere around that."""
    for cut in [*range(1, 60), *range(60, 120, 4), 1_030, 1_060, 5_000]:
        agent = FakeAgent(FakeCommand(OUT, ERR, 5), cuts=[cut])
        assert execute(agent) == (5, OUT, ERR, 0), cut
        assert agent.command.starts == 1, cut


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4_000), max_size=12), st.binary(max_size=6_000))
def test_however_many_links_break_nothing_is_lost_or_twice(cuts: list[int], stdin: bytes) -> None:
    agent = FakeAgent(FakeCommand(OUT, ERR, 9, reads=True), cuts=list(cuts), piece=700)
    assert execute(agent, stdin) == (9, OUT, ERR, 0)
    assert agent.command.stdin == stdin
    assert agent.command.starts == 1


def test_a_sandbox_that_ended_is_told_and_not_waited_for(run: Run) -> None:
    agent = FakeAgent(FakeCommand(OUT), cuts=[50])
    answer = agent.answer

    def die(kind: Kind, payload: bytes, out: Any) -> None:
        agent.dead = True
        answer(kind, payload, out)

    agent.answer = die  # type: ignore[method-assign]
    with pytest.raises(SandboxTerminatedError):
        execute(agent, run=run)


def test_an_agent_that_nobody_reaches_is_given_up(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """It is asked less and less often meanwhile."""
    monkeypatch.setattr(_agent, "_RECONNECT_SECONDS", 0.3)
    asked = 0

    async def connect() -> Stream:
        nonlocal asked
        asked += 1
        raise ConnectionRefusedError("nobody listens")

    async def why(error: Exception) -> None:
        """It runs."""

    with pytest.raises(EngineError, match=r"does not answer \(nobody listens\)"):
        run(Command(Agent(connect, why), bytes(16)).ask(b""))
    assert 1 < asked < 10


@pytest.mark.parametrize("held", [0.02, 1000.0], ids=["they worked", "the control"])
def test_each_break_of_links_that_worked_is_a_new_one(monkeypatch: pytest.MonkeyPatch, held: float) -> None:
    """A long command may see many: the patience that one has used up is the next one's again."""
    monkeypatch.setattr(_agent, "_RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(_agent, "_HELD_SECONDS", held)
    agent = FakeAgent(FakeCommand(OUT), cuts=[2_000, 2_000, 2_000])
    inner = agent.answer

    def slow(kind: Kind, payload: bytes, out: Any) -> None:
        time.sleep(0.03)
        inner(kind, payload, out)

    agent.answer = slow  # type: ignore[method-assign]
    if held > 1:
        with pytest.raises(EngineError, match="does not answer"):
            execute(agent)
    else:
        assert execute(agent) == (0, OUT, b"", 0)


ERRORS = {
    Code.PROTOCOL: ProtocolError,
    Code.UNKNOWN: NotFoundError,
    Code.INVALID: InvalidError,
    Code.LIMIT: ExecError,
    Code.UNSUPPORTED: UnsupportedError,
    Code.DENIED: EngineError,
    77: EngineError,
}


@pytest.mark.parametrize("code", ERRORS)
def test_the_agents_refusals_are_exceptions_with_its_sentence(code: int) -> None:
    agent = FakeAgent(FakeCommand())
    sentence = b"no, because of this"

    def refuse(kind: Kind, payload: bytes, out: Any) -> None:
        out.frame(Kind.ERROR, struct.pack("<II", code, len(sentence)) + sentence)

    agent.answer = refuse  # type: ignore[method-assign]
    with pytest.raises(ERRORS[code], match="because of this"):
        execute(agent)


def bytes_of(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<IB", len(payload) + 1, kind) + payload for kind, payload in frames)


STARTED = (Kind.STARTED, struct.pack("<IB", 7, 0))
NONSENSE: dict[str, bytes] = {
    "no hello": bytes_of([STARTED]),
    "another protocol": bytes_of([(Kind.HELLO, struct.pack("<II", 2, 0))]),
    "an empty frame": bytes_of([(Kind.HELLO, HELLO)]) + bytes(4),
    "a frame that is too long": bytes_of([(Kind.HELLO, HELLO)]) + struct.pack("<IB", _wire.MAX_FRAME + 1, Kind.STARTED),
    "a frame of 4 GB": bytes_of([(Kind.HELLO, HELLO)]) + b"\xff" * 4,
    "an answer to another question": bytes_of([(Kind.HELLO, HELLO), (Kind.OK, b"")]),
    "an unknown frame": bytes_of([(Kind.HELLO, HELLO), (0x77, b"")]),
    "a frame with bytes left over": bytes_of([(Kind.HELLO, HELLO), (Kind.STARTED, bytes(6))]),
    "data that nobody wants": bytes_of([(Kind.HELLO, HELLO), STARTED, (Kind.DATA, struct.pack("<BQ", 3, 0) + b"x")]),
    "data that came before": bytes_of(
        [
            (Kind.HELLO, HELLO),
            STARTED,
            (Kind.DATA, struct.pack("<BQ", 1, 0) + b"x"),
            (Kind.DATA, struct.pack("<BQ", 1, 0) + b"x"),
        ]
    ),
    "an exit without a record": bytes_of(
        [(Kind.HELLO, HELLO), STARTED, (Kind.PROGRESS, struct.pack("<BQ", State.EXIT, 0))]
    ),
    "an HTTP server": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_agent_that_says_nonsense_is_a_protocol_error(what: str) -> None:
    class Mad(FakeAgent):
        def _serve(self, sock: socket.socket, cut: int | None) -> None:
            with sock:
                sock.sendall(NONSENSE[what])
                while sock.recv(65536):
                    pass

    with pytest.raises(ProtocolError):
        execute(Mad(FakeCommand()))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_an_agent_sends_after_its_hello_it_is_a_protocol_error_or_a_lost_link(noise: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.sendall(bytes_of([(Kind.HELLO, HELLO)]) + noise)
        theirs.shutdown(socket.SHUT_WR)
        link = Link(SocketStream(ours))

        async def core() -> None:
            while True:
                await link.receive()

        with pytest.raises((ProtocolError, LinkLost)):
            _dual.run_sync(core())
        link.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40_000), min_size=1, max_size=8), st.integers(1, 50_000))
def test_frames_come_as_they_were_sent_however_they_are_cut(payloads: list[bytes], chunk: int) -> None:
    class Chunks:
        """A stream that gives at most `chunk` bytes at a time."""

        def __init__(self) -> None:
            self.data = bytes_of([(Kind.HELLO, HELLO), *((Kind.CHUNK, payload) for payload in payloads)])

        async def send(self, data: bytes | memoryview) -> None:
            raise AssertionError

        async def receive(self, buffer: memoryview) -> int:
            piece, self.data = self.data[: min(chunk, len(buffer))], self.data[min(chunk, len(buffer)) :]
            buffer[: len(piece)] = piece
            return len(piece)

        def close(self) -> None:
            """Nothing to close."""

    link = Link(Chunks())

    async def core() -> list[bytes]:
        return [bytes((await link.receive())[1]) for _ in payloads]

    assert _dual.run_sync(core()) == payloads
    with pytest.raises(LinkLost):
        _dual.run_sync(link.receive())


class Nothing:
    """A stream that is only counted."""

    opened: list[Nothing]

    def __init__(self) -> None:
        self.closed = False

    async def send(self, data: bytes | memoryview) -> None: ...

    async def receive(self, buffer: memoryview) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def links() -> tuple[Links, list[Nothing]]:
    opened: list[Nothing] = []

    async def connect() -> Stream:
        opened.append(Nothing())
        return opened[-1]

    return Links(connect), opened


def use(links: Links) -> Any:
    async def core() -> Link:
        async with links.lease() as link:
            return link

    return _dual.run_sync(core())


def test_links_are_reused(links: tuple[Links, list[Nothing]]) -> None:
    pool, opened = links
    assert use(pool) is use(pool)
    assert len(opened) == 1


def test_a_stream_that_is_open_already_is_used_first(links: tuple[Links, list[Nothing]]) -> None:
    opened: list[Nothing] = []

    async def connect() -> Stream:
        opened.append(Nothing())
        return opened[-1]

    first = Nothing()
    pool = Links(connect, first)
    assert use(pool) is use(pool)
    pool.close()
    assert (first.closed, opened) == (True, [])
    use(pool)
    assert len(opened) == 1


def test_a_link_is_closed_when_its_use_fails(links: tuple[Links, list[Nothing]]) -> None:
    pool, opened = links

    async def core() -> None:
        async with pool.lease():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _dual.run_sync(core())
    assert opened[0].closed
    use(pool)
    assert len(opened) == 2


def test_closing_the_pool_closes_its_idle_links(links: tuple[Links, list[Nothing]]) -> None:
    pool, opened = links
    use(pool)
    pool.close()
    assert opened[0].closed
    use(pool)
    assert not opened[1].closed


def test_threads_never_share_a_link(links: tuple[Links, list[Nothing]]) -> None:
    pool, _ = links
    busy: set[int] = set()
    wrong: list[str] = []

    async def core() -> None:
        async with pool.lease() as link:
            if id(link) in busy:
                wrong.append("shared")
            busy.add(id(link))
            await _dual.Sleep(0.0001)
            busy.discard(id(link))

    def work() -> None:
        for _ in range(50):
            _dual.run_sync(core())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_use_its_parents_links(links: tuple[Links, list[Nothing]]) -> None:
    pool, opened = links
    use(pool)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            use(pool)
            code = 0 if len(opened) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    use(pool)
    assert len(opened) == 1


def test_a_spool_keeps_little_in_memory_and_gives_all() -> None:
    spool = Spool()
    piece = os.urandom(1 << 20)
    for _ in range(SPOOL_LIMIT // len(piece) + 4):
        spool.write(memoryview(piece))
    at, count = 0, 0
    while data := spool.read(at, 300_000):
        assert data == (piece * 2)[at % len(piece) : at % len(piece) + len(data)]
        at, count = at + len(data), count + len(data)
    assert count == SPOOL_LIMIT + 4 * len(piece)


def test_an_empty_spool_gives_nothing() -> None:
    assert Spool().read(0, 10) == b""


def test_a_spool_is_read_up_to_its_gaps_also_when_it_was_pickled() -> None:
    spool = Spool(10)
    spool.write(memoryview(b"head"))
    spool.skip(OutputGap(4, 90))
    spool.write(memoryview(b"tail"))
    for one in (spool, pickle.loads(pickle.dumps(spool))):
        assert [one.read(0, 10), one.read(4, 10), one.read(8, 10)] == [b"head", b"tail", b""]
        assert one.gaps == [OutputGap(4, 90)]


def test_an_agent_that_sends_more_than_was_asked_for_is_a_protocol_error() -> None:
    spool = Spool(10)
    spool.write(memoryview(bytes(10)))
    with pytest.raises(ProtocolError, match="more than the 10 bytes"):
        spool.write(memoryview(b"x"))


def test_a_line_without_an_end_takes_a_bounded_amount_of_memory() -> None:
    class Endless(Pieces):
        given = 0

        async def chunk(self) -> bytes:
            self.given += 1 << 20
            return bytes(1 << 20)

    source = Endless()
    reader: StreamReader[bytes] = StreamReader(source, text=False)
    for read in (reader.readline, reader.__next__, reader.readline):
        with pytest.raises(LineTooLongError):
            read()
        assert source.given == LINE_LIMIT + (1 << 20), "a line that is too long is not read on"
    assert len(reader.read_some()) == source.given


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2_000), st.integers(1, 500), st.integers(), st.booleans())
def test_a_feed_offers_again_what_was_not_accepted(data: bytes, most: int, seed: int, as_file: bool) -> None:
    feed = Feed(io.BytesIO(data) if as_file else data)
    accepted, chance = bytearray(), random.Random(seed)

    async def core() -> None:
        for _ in range(20_000):
            piece, ends = await feed.piece(len(accepted))
            if chance.random() < 0.3:
                continue  # the link broke: nothing was accepted
            taken = bytes(piece[: chance.randint(0, most)])
            accepted.extend(taken)
            if ends and len(taken) == len(piece):
                assert feed.done(len(accepted))
                return
            assert not feed.done(len(accepted))

    _dual.run_sync(core())
    assert accepted == data


class Pieces:
    """A source of given pieces."""

    gaps: tuple[OutputGap, ...] = ()
    why, start = "", 0

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    async def chunk(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@given(st.text(), st.integers(1, 7))
def test_text_is_whole_however_its_bytes_are_cut(text: str, size: int) -> None:
    data = text.encode("utf-8", "replace")
    reader: StreamReader[str] = StreamReader(
        Pieces(*(data[i : i + size] for i in range(0, len(data), size))), text=True
    )
    assert reader.read() == data.decode()
    assert reader.read() == ""


@given(st.lists(st.binary(min_size=1, max_size=30)))
def test_lines_are_whole_however_they_are_cut_and_never_raise(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    lines = list(StreamReader[bytes](Pieces(*pieces), text=False))
    assert b"".join(lines) == whole
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert not any(b"\n" in line[:-1] for line in lines)
    text = list(StreamReader[str](Pieces(*pieces), text=True))
    assert "".join(text) == whole.decode("utf-8", "replace")


@pytest.mark.parametrize("face", ["blocking", "async"])
def test_the_warning_of_a_gap_names_the_line_of_the_users_program(face: str) -> None:
    source = Pieces(b"head")
    source.gaps, source.why = (OutputGap(0, 5),), "for the test"
    reader: StreamReader[str] = StreamReader(source, text=True)

    async def main() -> str:
        return await reader.read.aio()

    with pytest.warns(OutputLostWarning, match="5 bytes of output are missing here, for the test") as caught:
        asyncio.run(main()) if face == "async" else reader.read()
    assert caught[0].filename == __file__


class Stalling(Pieces):
    """A source whose next piece does not come until somebody has given up once."""

    stalled = False

    async def chunk(self) -> bytes:
        if not self.stalled and len(self.pieces) == 1:
            self.stalled = True
            await _dual.Sleep(60)
        return await super().chunk()


@pytest.mark.parametrize("method", ["read", "readline", "__anext__"])
def test_giving_up_a_read_loses_nothing(method: str) -> None:
    """Programs wait for output with a deadline and try again: what came of the line so far must still be there."""
    reader: StreamReader[str] = StreamReader(Stalling(b"first half, ", b"second half\n"), text=True)

    async def main() -> str:
        call = getattr(reader, method)
        again = call.aio if hasattr(call, "aio") else call
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(again(), 0.05)
        text: str = await again()
        return text

    assert asyncio.run(main()) == "first half, second half\n"


def test_giving_up_between_data_and_progress_loses_nothing() -> None:
    """The agent's DATA has come and its PROGRESS has not: the offset has moved on, so the bytes must not be thrown away."""
    agent = FakeAgent(FakeCommand(b"line\n"))
    stall = threading.Event()
    inner = agent.answer

    class Slow:
        def __init__(self, out: Any) -> None:
            self.out = out

        def frame(self, kind: int, payload: bytes = b"") -> None:
            if kind == Kind.PROGRESS and not stall.is_set():
                stall.wait(10)
            self.out.frame(kind, payload)

    agent.answer = lambda kind, payload, out: inner(kind, payload, Slow(out))  # type: ignore[method-assign, arg-type]
    reader: StreamReader[str] = StreamReader(Live(Command(agent, bytes(15) + b"x"), 1), text=True)

    async def main() -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read.aio(), 0.2)
        stall.set()
        return await reader.read.aio()

    assert asyncio.run(main()) == "line\n"
    agent.close()


def test_io_waits_no_longer_than_asked() -> None:
    agent = FakeAgent(FakeCommand(b""))
    before = time.monotonic()
    progress = _dual.run_sync(Command(agent, bytes(15) + b"x").io(Want.EXIT, [0, 0, 0], {}, wait=0))
    assert progress.record
    assert time.monotonic() - before < 10
    agent.close()
