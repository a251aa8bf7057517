"""The exchanges with an agent about one command. Each may be repeated on a new link: ids and offsets make that safe."""

from __future__ import annotations

import contextlib
import io
import signal
import weakref
from collections.abc import Callable, Coroutine, Mapping
from typing import IO, Any, Protocol, TypeVar, cast

from openmodal import _wire
from openmodal._agent import Agent, Life
from openmodal._dual import Blocking, within
from openmodal._link import Link, Stream
from openmodal._spec import CommandStatus, ExecSpec, ExitRecord, OutputGap
from openmodal._wire import Code, FileOp, Kind, Progress, State, Want
from openmodal.errors import (
    EngineError,
    Error,
    ExecError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    UnsupportedError,
    file_error,
)

T = TypeVar("T")

SPOOL_LIMIT = 16 << 20
"""Output beyond so many bytes per stream goes to a temporary file."""

_PIECE = 256 * 1024
_KILL_SECONDS = 5.0


class Sink(Protocol):
    """Takes a stream's bytes in order."""

    def skip(self, gap: OutputGap) -> object:
        """Bytes are missing before what is written next."""
        ...

    def write(self, data: memoryview) -> object:
        """Take bytes that are valid during the call only."""
        ...


class Spool:
    """Bytes kept in memory and, beyond SPOOL_LIMIT, in a temporary file without a name, which goes
    when we go.

    Attributes:
        size: how many bytes were written.
        gaps: where some were missing.
    """

    def __init__(self, most: int | None = None) -> None:
        """`most`: how many bytes may come; None: any number."""
        self.size = 0
        self.gaps: list[OutputGap] = []
        self._most = most
        self._after: list[int] = []  # how many bytes were written before each gap
        self._file: IO[bytes] = io.BytesIO()
        self._spilled = False

    def skip(self, gap: OutputGap) -> None:
        self.gaps.append(gap)
        self._after.append(self.size)

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        if self._most is not None and self.size > self._most:
            raise ProtocolError(f"the agent sent more than the {self._most} bytes of output that were asked for")
        if not self._spilled and self.size > SPOOL_LIMIT:
            self._spill()
        self._put(data)

    def read(self, at: int, most: int) -> bytes:
        """Return bytes from `at` on, up to the next gap. Not to be mixed with `write`."""
        self._file.seek(at)
        return self._file.read(min((most, *(end - at for end in self._after if end > at))))

    def end(self) -> bytes:
        """The newest bytes, some thousands."""
        return self.read(max(0, self.size - 4096), 4096)

    def __reduce__(self) -> tuple[Any, ...]:
        at = self._file.tell()
        self._file.seek(0)
        whole = self._file.read()
        self._file.seek(at)
        return _spool, (whole, self._most, self.gaps, self._after)

    def _put(self, data: memoryview) -> None:
        while data:  # a file that is nearly full takes a part
            data = data[self._file.write(data) :]

    def _spill(self) -> None:
        import tempfile  # few outputs are that long

        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed with us)
        weakref.finalize(self, file.close).atexit = False
        memory, self._file, self._spilled = cast("io.BytesIO", self._file), cast("IO[bytes]", file), True
        self._put(memory.getbuffer())


def _spool(whole: bytes, most: int | None, gaps: list[OutputGap], after: list[int]) -> Spool:
    """A spool that was pickled."""
    made = Spool(most)
    made.write(memoryview(whole))
    made.gaps, made._after = gaps, after
    return made


class Feed:
    """Stdin from bytes or a file, by offset: what was not accepted is offered again. A command that closes it is fed no more."""

    def __init__(self, source: bytes | IO[Any]) -> None:
        self._file = None if isinstance(source, bytes) else source
        self._held = source if isinstance(source, bytes) else b""
        self._base = 0
        self._last = isinstance(source, bytes)
        self._offered = False

    async def piece(self, offset: int) -> tuple[memoryview, bool]:
        """Return some bytes from `offset` on, and whether the stream ends behind them."""
        while offset >= self._base + len(self._held) and not self._last:
            self._base += len(self._held)
            self._held = await Blocking(self._read)
            self._last = not self._held
        begin = offset - self._base
        end = min(begin + _PIECE, len(self._held))
        self._offered = self._last and end == len(self._held)
        return memoryview(self._held)[begin:end], self._offered

    def on_new_link(self) -> None:
        """What was offered on the old one may be lost; the end has no offset that would tell, so it is offered again."""
        self._offered = False

    def done(self, offset: int) -> bool:
        """Whether everything was accepted up to `offset`, and the end with it: the agent takes both at once."""
        return self._offered and offset >= self._base + len(self._held)

    def _read(self) -> bytes:
        assert self._file is not None
        data: str | bytes = self._file.read(_PIECE)
        return data.encode() if isinstance(data, str) else data


class Command:
    """One command as its agent knows it."""

    def __init__(self, agent: Agent, id: bytes) -> None:
        self.agent = agent
        self.id = id
        self.life = Life()
        self._noted = False

    async def start(self, spec: ExecSpec) -> int:
        """Start it, once; return its process id in the sandbox (0: it could not be executed; its
        record tells).

        Who is interrupted has no handle to it, so it is killed.
        """
        request = _wire.start(self.id, spec)
        with self.agent.journal.call("spawn", command=self.id.hex(), argv=spec.argv):
            started = self.agent.exchange(lambda link: _start(link, request), self.life, spec.timeout)
            return await self._or_killed(started)

    async def run(self, spec: ExecSpec, feed: Feed | None, sinks: Mapping[int, Sink]) -> tuple[int, ExitRecord]:
        """Start it and take its output until it has ended; return its process id and its record. Killed if interrupted."""
        request = _wire.start(self.id, spec)
        offsets = [0, 0, 0]

        async def operation(link: Link) -> tuple[int, ExitRecord]:
            if feed:
                feed.on_new_link()
            # START and the first IO go together: a command that ends soon costs one round trip.
            pid = await _start(link, request, await _next_io(self.id, offsets, feed))
            while not (record := (await _progress(link, offsets, sinks)).record):
                await link.send(await _next_io(self.id, offsets, feed))
            await link.post(_wire.release(self.id))
            return pid, record

        return await self._or_killed(self.agent.exchange(operation, self.life, spec.timeout))

    async def _or_killed(self, core: Coroutine[Any, Any, T]) -> T:
        """Kill the command with all its descendants if the core ends by anything but its result or
        what the sandbox says.

        That is Ctrl-C, a task's cancellation, a full disk here, a stdin that cannot be read. It
        takes some seconds at most.
        """
        try:
            return await core
        # It never ran, or its sandbox ended; a coroutine that is being closed may wait for nothing.
        except (Error, GeneratorExit):
            raise
        except BaseException:
            with contextlib.suppress(Error, OSError):
                await within(_KILL_SECONDS, self.end())
            raise

    async def end(self) -> None:
        """Kill it with all its descendants, and forget it."""
        await self.agent.exchange(self._kill, self.life)

    async def forget(self) -> None:
        """Have the agent forget what it keeps of it, once it has ended."""

        async def operation(link: Link) -> None:
            await link.post(_wire.release(self.id))

        await self.agent.exchange(operation, self.life)

    async def _kill(self, link: Link) -> None:
        await link.send(_wire.kill(self.id, signal.SIGKILL, tree=True))
        await link.expect(Kind.OK)
        await link.post(_wire.release(self.id))

    async def io(
        self,
        want: Want,
        offsets: list[int],
        sinks: Mapping[int, Sink],
        *,
        data: bytes = b"",
        ends: bool = False,
        most: int = _wire.MAX_DATA,
        wait: int = _wire.FOREVER,
    ) -> Progress:
        """One exchange of bytes; `offsets` (of stdin, stdout, stderr) move on. `wait` in ms; `most`
        bytes come."""

        async def operation(link: Link) -> Progress:
            stdin, stdout, stderr = offsets
            await link.send(
                _wire.io(
                    self.id, want, stdout=stdout, stderr=stderr, stdin=stdin, data=data, ends=ends, most=most, wait=wait
                )
            )
            return await _progress(link, offsets, sinks)

        progress = await self.agent.exchange(operation, self.life)
        self._note(progress.record)
        return progress

    def _note(self, record: ExitRecord | None) -> None:
        """Note how it ended, once; a main command's end is the sandbox's."""
        if record and not self._noted and self.id != _wire.MAIN:
            self._noted = True
            self.agent.journal.note("exit", at=record.ended, command=self.id.hex(), record=record)

    async def ask(self, request: bytes) -> None:
        """Send a request whose answer is OK."""

        async def operation(link: Link) -> None:
            await link.send(request)
            kind, payload = await link.expect(Kind.OK)
            if kind == Kind.ERROR:
                raise refusal(payload)

        await self.agent.exchange(operation, self.life)


async def listed(agent: Agent) -> list[CommandStatus]:
    """The commands that an agent knows, in the order in which it was asked to start them."""

    async def operation(link: Link) -> list[CommandStatus]:
        found: list[CommandStatus] = []
        await link.send(_wire.frame(Kind.COMMANDS))
        while True:
            kind, payload = await link.expect(Kind.COMMAND, Kind.OK)
            if kind == Kind.ERROR:
                raise refusal(payload)
            if kind == Kind.OK:
                return found[::-1]
            found.append(_wire.decode_command(payload))

    return await agent.exchange(operation)


_ALL = Want.STDOUT | Want.STDERR | Want.EXIT


async def _next_io(id: bytes, offsets: list[int], feed: Feed | None) -> bytes:
    """The IO that asks for output and exit, and offers stdin as long as there is some."""
    stdin, stdout, stderr = offsets
    if feed is None or feed.done(stdin):
        return _wire.io(id, _ALL, stdout=stdout, stderr=stderr, stdin=stdin)
    data, ends = await feed.piece(stdin)
    return _wire.io(id, _ALL | Want.STDIN, stdout=stdout, stderr=stderr, stdin=stdin, data=data, ends=ends)


async def _start(link: Link, request: bytes, *more: bytes) -> int:
    """Send START and what follows it, and return the process id.

    Who is interrupted meanwhile waits for the answer all the same: a KILL goes over another link,
    and must not overtake it.
    """
    try:
        await link.send(request, *more)
        return await _started(link)
    except (Error, ConnectionError, GeneratorExit):
        raise
    except BaseException:
        with contextlib.suppress(Error, OSError):
            await within(_KILL_SECONDS, _started(link))
        raise


async def _started(link: Link) -> int:
    kind, payload = await link.expect(Kind.STARTED)
    if kind == Kind.ERROR:
        raise refusal(payload)
    return _wire.decode_started(payload)


async def _progress(link: Link, offsets: list[int], sinks: Mapping[int, Sink]) -> Progress:
    while True:
        kind, payload = await link.expect(Kind.PROGRESS, Kind.DATA)
        if kind == Kind.ERROR:
            raise refusal(payload)
        if kind == Kind.PROGRESS:
            progress = _wire.decode_progress(payload)
            offsets[0] = progress.stdin
            return progress
        stream, offset, data = _wire.decode_data(payload)
        if stream not in sinks or offset < offsets[stream]:
            raise ProtocolError(f"the agent sent bytes of stream {stream} that were not asked for")
        if offset > offsets[stream]:
            sinks[stream].skip(OutputGap(offsets[stream], offset - offsets[stream]))
            offsets[stream] = offset
        sinks[stream].write(data)
        offsets[stream] = offset + len(data)


async def contents(link: Link, refused: Callable[[memoryview], Exception], most: int) -> bytes:
    """The answer to a READ of at most so many bytes of a file."""
    parts: list[bytes] = []
    left = most
    while True:
        kind, payload = await link.expect(Kind.ENTRY, Kind.CHUNK, Kind.END)
        if kind == Kind.ERROR:
            raise refused(payload)
        if kind == Kind.END:
            return b"".join(parts)
        if kind == Kind.CHUNK:
            parts.append(bytes(payload))
            left -= len(payload)
        if left < 0:
            raise ProtocolError(
                f"the agent sent more than the {most} bytes of a file that were asked for; if it is older than this SDK, it cannot "
                "read a part: create a new sandbox"
            )


class KernelError(EngineError):
    """What the sandbox's kernel refused; `errno` tells how."""

    def __init__(self, text: str, errno: int) -> None:
        super().__init__(text)
        self.errno = errno


_REFUSALS: dict[int, type[Error]] = {
    Code.PROTOCOL: ProtocolError,
    Code.UNKNOWN: NotFoundError,
    Code.INVALID: InvalidError,
    Code.LIMIT: ExecError,
    Code.UNSUPPORTED: UnsupportedError,
}


async def move_deadline(stream: Stream, seconds: float) -> None:
    """Tell an agent that keeps its sandbox's lifetime that it ends so many seconds from now. The
    stream is closed.

    Raises:
        UnsupportedError: the agent is of a version that cannot.
    """
    link = Link(stream)
    try:
        await link.send(_wire.deadline(_wire.milliseconds(seconds)))
        kind, payload = await link.expect(Kind.OK)
    finally:
        link.close()
    if kind == Kind.ERROR:
        raise refusal(payload)


def refusal(payload: memoryview) -> Error:
    """The exception for an agent's ERROR about a command."""
    code, text = _wire.decode_error(payload)
    if code > Code.ERRNO:
        return KernelError(text, code - Code.ERRNO)
    return _REFUSALS.get(code, EngineError)(text)


def file_refusal(payload: memoryview, path: str) -> Exception:
    """The exception for an agent's ERROR about a file."""
    code, _ = _wire.decode_error(payload)
    return file_error(code - Code.ERRNO, path) if code > Code.ERRNO else refusal(payload)


async def takes_holes(link: Link) -> bool:
    """Whether the agent takes HOLE frames: one that is older than this SDK would close the link."""
    await link.send(_wire.file(FileOp.HOLES, b"/"))
    kind, payload = await link.expect(Kind.OK)
    if kind == Kind.OK:
        return True
    if isinstance(error := refusal(payload), UnsupportedError):
        return False
    raise error


__all__ = [
    "SPOOL_LIMIT",
    "Command",
    "Feed",
    "Sink",
    "Spool",
    "State",
    "contents",
    "file_refusal",
    "listed",
    "refusal",
    "takes_holes",
]
