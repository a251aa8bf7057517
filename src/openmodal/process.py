"""Commands in a sandbox: Process and its stdin, stdout and stderr.

A command is known to the agent by an id that we choose, and its output has offsets. So every exchange here can be repeated on
a new link when one breaks: nothing starts twice, nothing is lost or read twice. The exchanges are in `_command.py`.
"""

from __future__ import annotations

import codecs
import signal as signals
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, AnyStr, Generic, Protocol, cast

from openmodal import _args, _wire
from openmodal._command import Command, Spool
from openmodal._dual import DualIterator, dual
from openmodal._spec import ExitRecord
from openmodal._wire import State, Want
from openmodal.errors import (
    ExecError,
    ExecTimeoutError,
    InvalidError,
    NotFoundError,
    OutputLostWarning,
    StdinClosedError,
)

_PIECE = 256 * 1024


class StreamType(Enum):
    """Where a command's stdout or stderr goes: to the caller, to where stdout goes (stderr only), or nowhere."""

    PIPE = "pipe"
    STDOUT = "stdout"
    DEVNULL = "devnull"


class Source(Protocol):
    """Where a StreamReader's bytes come from."""

    @property
    def dropped(self) -> int: ...

    async def chunk(self) -> bytes:
        """Return some bytes, or b"" at the end."""
        ...


class Kept:
    """The output of a finished command: here already, also after its sandbox is gone."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._at = 0

    @property
    def dropped(self) -> int:
        return self._spool.dropped

    async def chunk(self) -> bytes:
        data = self._spool.read(self._at, _PIECE)
        self._at += len(data)
        return data


class Live:
    """The output of a running command, taken from its agent piece by piece."""

    def __init__(self, command: Command, stream: int) -> None:
        self._command = command
        self._stream = stream
        self._offsets = [0, 0, 0]
        self._dropped = 0
        self._piece = Spool()

    @property
    def dropped(self) -> int:
        return self._dropped + self._piece.dropped

    async def chunk(self) -> bytes:
        # Who gives up in the middle and reads again finds in the piece what had come: the offset has moved on already.
        await self._command.io(Want(self._stream), self._offsets, {self._stream: self._piece})
        piece, self._piece = self._piece, Spool()
        self._dropped += piece.dropped
        return piece.read(0, 2 * _wire.MAX_DATA)


class StreamReader(DualIterator[AnyStr], Generic[AnyStr]):
    """What a command writes. Text is UTF-8; bytes that are not become U+FFFD. Iteration gives lines, with their newline."""

    def __init__(self, source: Source, *, text: bool) -> None:
        self._source = source
        self._decode: Callable[[bytes, bool], Any] = (
            codecs.getincrementaldecoder("utf-8")("replace").decode if text else _as_it_is
        )
        self._newline: AnyStr = cast("AnyStr", "\n" if text else b"\n")
        self._empty: AnyStr = self._newline[:0]
        self._rest: AnyStr = self._empty
        self._ended = False
        self._reading = False
        self._told = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reading": False}  # it is another thread's, of this process

    @property
    def dropped(self) -> int:
        """How many bytes were lost because nobody read while the command wrote more than is kept, see `keep` of `spawn`.

        The read that comes to the gap warns, with an OutputLostWarning, and goes on behind it.
        """
        return self._source.dropped

    @dual
    async def read(self) -> AnyStr:
        """Return everything up to the end of the stream; at the end, an empty string."""
        return self._joined(await self._gather(lambda piece: False))

    @dual
    async def read_some(self) -> AnyStr:
        """Return what is there, waiting for it if need be: for programs that talk; at the end, an empty string."""
        data = self._take_rest()
        while not data and not self._ended:
            data = await self._more()
        return data

    @dual
    async def readline(self) -> AnyStr:
        """Return the next line with its newline, the last one perhaps without; at the end, an empty string."""
        return await self._line()

    async def _next(self) -> AnyStr:
        line = await self._line()
        if not line:
            raise EOFError
        return line

    async def _line(self) -> AnyStr:
        pieces: list[AnyStr] = await self._gather(lambda piece: self._newline in piece)
        line, newline, rest = pieces[-1].partition(self._newline)
        self._rest = rest
        return self._joined(pieces[:-1], line, newline)

    async def _gather(self, is_last: Callable[[AnyStr], bool]) -> list[AnyStr]:
        """Take pieces up to the one that is the last, or to the end. Who gives up and reads again loses nothing."""
        pieces: list[AnyStr] = [self._take_rest()]
        try:
            while not self._ended and not is_last(pieces[-1]):
                pieces.append(await self._more())
        except BaseException:
            self._rest = self._joined(pieces, self._rest)
            raise
        return pieces

    async def _more(self) -> AnyStr:
        if self._reading:
            raise ExecError("this stream is being read by another thread or task; let one of them read it")
        self._reading = True
        try:
            data = await self._source.chunk()
        finally:
            self._reading = False
        self._ended = not data
        piece = cast("AnyStr", self._decode(data, self._ended))
        if self._source.dropped > self._told:
            self._warn(piece)
        return piece

    def _warn(self, piece: AnyStr) -> None:
        lost, self._told = self._source.dropped - self._told, self._source.dropped
        self._rest = piece  # a warning may be made an exception: then the next read gives what came
        warnings.warn(
            f"{lost} bytes of output were lost here, because nobody read while the command wrote more than is kept; read sooner, or "
            "keep more: spawn(…, keep=MiB)",
            OutputLostWarning,
            stacklevel=2,
        )
        self._rest = self._empty

    def _joined(self, pieces: list[AnyStr], *more: AnyStr) -> AnyStr:
        empty: Any = self._empty  # no checker knows that str joins str and bytes join bytes
        return cast("AnyStr", empty.join((*pieces, *more)))

    def _take_rest(self) -> AnyStr:
        rest, self._rest = self._rest, self._empty
        return rest


def _as_it_is(data: bytes, final: bool = False) -> bytes:
    return data


class StreamWriter:
    """What a command reads. `write` and `write_eof` collect; `drain` (or `close`) sends and waits until all is taken."""

    def __init__(self, command: Command | None) -> None:
        self._command = command
        self._pending = bytearray()
        self._ends = False
        self._ended = False
        self._accepted = 0

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Add to what `drain` sends.

        Raises:
            StdinClosedError: after `write_eof` or `close`, or when the command has exited.
            InvalidError: the command was started without a stdin.
        """
        self._check()
        if self._ends:
            raise StdinClosedError("the command's stdin was closed by write_eof() or close()")
        self._pending += data.encode() if isinstance(data, str) else data

    def write_eof(self) -> None:
        """Say that nothing more comes; `drain` sends that too."""
        self._check()
        self._ends = True

    @dual
    async def drain(self) -> None:
        """Send what was written and wait until the command's pipe has taken it.

        Raises:
            StdinClosedError: the command has exited or closed its stdin.
        """
        await self._drain()

    @dual
    async def close(self) -> None:
        """Send what was written, and the end of the stream. Does nothing when it is closed already."""
        if self._command and not self._ended:
            self._ends = True
            await self._drain()

    async def _drain(self) -> None:
        command = self._check()
        while self._pending or (self._ends and not self._ended):
            piece = bytes(self._pending[:_PIECE])
            last = self._ends and len(piece) == len(self._pending)
            offsets = [self._accepted, 0, 0]
            progress = await command.io(Want.STDIN, offsets, {}, data=piece, ends=last)
            taken = progress.stdin - self._accepted
            del self._pending[:taken]
            self._accepted = progress.stdin
            self._ended = last and taken == len(piece)
            # A command that read its last line and left has taken all: only what it did not take is an error.
            if progress.state & State.STDIN_CLOSED and self._pending:
                self._pending.clear()
                raise StdinClosedError("the command has exited or closed its stdin, so it cannot be written to")

    async def _flush(self) -> None:
        """Send what the user forgot to drain, before waiting for the command; a command that reads no more is no error."""
        if self._command and (self._pending or self._ends):
            try:
                await self._drain()
            except StdinClosedError:
                self._ended = True

    def _check(self) -> Command:
        if not self._command:
            raise InvalidError("this command has no stdin to write to; start it with spawn(), or give exec(stdin=…)")
        return self._command


class Process(Generic[AnyStr]):
    """A command in a sandbox: finished, when it comes from `exec`; perhaps running, when it comes from `spawn`.

    It can be pickled: a finished one with its output, another as a handle that goes on where this one is.

    Attributes:
        args: its argv.
        pid: its process id inside the sandbox; 0 if it could not be executed.
        stdin, stdout, stderr: its streams.
    """

    def __init__(
        self,
        command: Command,
        args: tuple[str, ...],
        *,
        pid: int,
        stdout: Source,
        stderr: Source,
        text: bool,
        stdin: bool,
        record: ExitRecord | None = None,
    ) -> None:
        self.args = args
        self.pid = pid
        self.stdin = StreamWriter(command if stdin else None)
        self.stdout: StreamReader[AnyStr] = StreamReader(stdout, text=text)
        self.stderr: StreamReader[AnyStr] = StreamReader(stderr, text=text)
        self._command = command
        self._record = record

    @property
    def returncode(self) -> int | None:
        """The exit code, 128 + n for signal n, or None while it is not known to have ended (see `poll` and `wait`)."""
        return self._record.returncode if self._record else None

    @property
    def timed_out(self) -> bool:
        """Whether its timeout ended it."""
        return bool(self._record and self._record.timed_out)

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed it, or one of its descendants, for the sandbox's memory limit.

        The kernel tells only that something in the sandbox was killed: of several commands that ran meanwhile, these are told: who died or
        failed, and who exited well and had a process that held an eighth of the memory.
        """
        return bool(self._record and self._record.out_of_memory)

    @property
    def record(self) -> ExitRecord | None:
        """How it ended: exit code or signal, times, CPU time and peak memory."""
        return self._record

    @dual
    async def wait(self) -> int:
        """Wait until the command has ended and return its exit code.

        Raises:
            ExecTimeoutError: its timeout ended it.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox ended first.
        """
        await self.stdin._flush()
        if not self._record:
            await self._ask(_wire.FOREVER)
        record = cast("ExitRecord", self._record)
        if record.timed_out:
            raise timed_out(self)
        return record.returncode

    @dual
    async def poll(self) -> int | None:
        """Return the exit code, or None if the command still runs."""
        if not self._record:
            await self._ask(0)
        return self.returncode

    @dual
    async def kill(self) -> None:
        """Kill the command and every descendant of it. Does nothing if it has ended."""
        await self._signal(signals.SIGKILL, tree=True)

    @dual
    async def send_signal(self, signal: int) -> None:
        """Send a signal to the command's own process. Does nothing if it has ended."""
        await self._signal(_args.whole("signal", signal, 1, 64), tree=False)

    @dual
    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size. Needs pty=True."""
        rows, columns = _args.whole("rows", rows, 1, 65535), _args.whole("columns", columns, 1, 65535)
        await self._command.ask(_wire.resize(self._command.id, rows, columns))

    async def _signal(self, signal: int, *, tree: bool) -> None:
        if not self._record:
            try:
                await self._command.ask(_wire.kill(self._command.id, signal, tree=tree))
            except NotFoundError:  # it has ended, and we have not heard of it yet
                pass

    async def _ask(self, wait: int) -> None:
        progress = await self._command.io(Want.EXIT, [0, 0, 0], {}, wait=wait)
        self._record = progress.record

    def __repr__(self) -> str:
        state = "running" if self._record is None else f"returncode {self.returncode}"
        return f"<Process {self.args!r} {state}>"


def timed_out(process: Process[Any]) -> ExecTimeoutError:
    """The error for a command whose timeout ended it."""
    return ExecTimeoutError(f"the command {process.args[0]!r} was killed because its timeout expired", process)


__all__ = ["Process", "StreamReader", "StreamType", "StreamWriter", "timed_out"]
