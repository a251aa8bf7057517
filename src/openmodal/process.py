"""Commands in a sandbox: Process and its stdin, stdout and stderr.

A command is known to the agent by an id that we choose, and its output has offsets. So every exchange here can be repeated on
a new link when one breaks: nothing starts twice, nothing is lost or read twice. The exchanges are in `_command.py`.
"""

from __future__ import annotations

import codecs
import signal as signals
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, AnyStr, Generic, cast

from openmodal import _args, _wire
from openmodal._command import Command
from openmodal._dual import DualIterator, dual
from openmodal._sources import Source
from openmodal._spec import ExitRecord, OutputGap
from openmodal._wire import State, Want
from openmodal.errors import (
    CommandFailedError,
    ExecError,
    ExecTimeoutError,
    InvalidError,
    LineTooLongError,
    NotFoundError,
    OutputLostWarning,
    StdinClosedError,
)

LINE_LIMIT = 64 << 20
"""How long a line may be that `readline` and iteration collect in memory."""

_PIECE = 256 * 1024

_Decoder = codecs.getincrementaldecoder("utf-8")


class StreamType(Enum):
    """Where a command's stdout or stderr goes: to the caller, to where stdout goes (stderr only), or nowhere."""

    PIPE = "pipe"
    STDOUT = "stdout"
    DEVNULL = "devnull"


class StreamReader(DualIterator[AnyStr], Generic[AnyStr]):
    """What a command writes. Text is UTF-8; bytes that are not become U+FFFD. Iteration gives lines, with their newline.

    Where bytes are missing (see `max_output` of `exec` and `spawn`), a line ends, and the read that goes on behind the gap warns with an
    OutputLostWarning, unless they were not wanted: `max_output` was given.
    """

    def __init__(self, source: Source, *, text: bool) -> None:
        self._source = source
        self._decode: Callable[[bytes, bool], Any] = _Decoder("replace").decode if text else _as_it_is
        self._newline: AnyStr = cast("AnyStr", "\n" if text else b"\n")
        self._empty: AnyStr = self._newline[:0]
        self._rest: AnyStr = self._empty
        self._begin = 0  # what lies before in `_rest` was read already
        self._ended = False
        self._reading = False
        self._at = source.start or 0  # in what the command wrote: where what comes next begins
        self._begun = source.start is not None  # else a gap at the start is no loss: it was read elsewhere
        self._passed = 0  # gaps that lie before that
        self._lost = 0  # bytes missing right before `_rest`, of which nobody was told yet

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reading": False}  # it is another thread's, of this process

    @property
    def gaps(self) -> tuple[OutputGap, ...]:
        """Where bytes are missing in what the command wrote, as far as that is known: `at` which byte, and how many (`size`)."""
        return tuple(self._source.gaps)

    @property
    def dropped(self) -> int:
        """How many bytes are missing, in all gaps."""
        return sum(gap.size for gap in self._source.gaps)

    @dual
    async def read(self) -> AnyStr:
        """Return everything up to the end of the stream; at the end, an empty string."""
        pieces: list[AnyStr] = []
        with self._given_back(pieces):
            while True:
                self._tell()
                pieces.append(self._take(None))
                if self._ended:
                    return self._joined(pieces)
                await self._more()

    @dual
    async def read_some(self) -> AnyStr:
        """Return what is there, waiting for it if need be: for programs that talk; at the end, an empty string."""
        while True:
            self._tell()
            data = self._take(None)
            if data or self._ended:
                return data
            await self._more()

    @dual
    async def readline(self, limit: int = LINE_LIMIT) -> AnyStr:
        """Return the next line with its newline, the last one (and one before a gap) perhaps without; at the end, an empty string.

        Raises:
            LineTooLongError: it has more than `limit` characters (bytes with text=False). It stays, and can be read in another way.
        """
        return await self._line(_args.whole("limit", limit, 1, sys.maxsize))

    async def _next(self) -> AnyStr:
        line = await self._line(LINE_LIMIT)
        if not line:
            raise EOFError
        return line

    async def _line(self, limit: int) -> AnyStr:
        pieces: list[AnyStr] = []
        left = limit
        with self._given_back(pieces):
            while not (pieces and self._lost):
                self._tell()
                end = self._rest.find(self._newline, self._begin, self._begin + left) + 1
                if not end and len(self._rest) - self._begin > left:
                    raise LineTooLongError(
                        f"the command wrote a line of more than {limit} characters; read it with readline(limit=…) or read_some()",
                        limit,
                    )
                if self._begin < len(self._rest):
                    pieces.append(self._take(end or None))
                    left -= len(pieces[-1])
                if end or self._ended:
                    break
                await self._more()
            return self._joined(pieces)

    @contextmanager
    def _given_back(self, pieces: list[AnyStr]) -> Iterator[None]:
        """If the block is cancelled, the next read gets these pieces again."""
        try:
            yield
        except BaseException:
            self._rest, self._begin = self._joined(pieces, self._take(None)), 0
            raise

    def _take(self, end: int | None) -> AnyStr:
        """What is here up to `end`."""
        taken = self._rest[self._begin : end]
        self._begin = len(self._rest) if end is None else end
        if self._begin == len(self._rest):
            self._rest, self._begin = self._empty, 0
        return taken

    async def _more(self) -> None:
        """Have more here, when all is taken."""
        if self._reading:
            raise ExecError("this stream is being read by another thread or task; let one of them read it")
        self._reading = True
        try:
            data = await self._source.chunk()
        finally:
            self._reading = False
        cut = self._decode(b"", True) if self._pass_gaps() else self._empty
        self._rest, self._begin = self._joined([cut, self._decode(data, not data)]), 0
        self._at += len(data)
        self._ended = not data

    def _pass_gaps(self) -> bool:
        """Go on behind the gaps that lie here; whether there are any."""
        known = self._source.gaps
        before = self._passed
        while self._passed < len(known) and known[self._passed].at <= self._at:
            self._lost += known[self._passed].size if self._begun else 0
            self._at += known[self._passed].size
            self._passed += 1
        self._begun = True
        return self._passed > before

    def _tell(self) -> None:
        lost, self._lost = self._lost, 0  # first: a warning may be made an exception
        if lost and self._source.why:
            text = f"{lost} bytes of output are missing here, {self._source.why}"
            warnings.warn(text, OutputLostWarning, stacklevel=_callers_level())

    def _joined(self, pieces: list[AnyStr], *more: AnyStr) -> AnyStr:
        empty: Any = self._empty  # no checker knows that str joins str and bytes join bytes
        return cast("AnyStr", empty.join((*pieces, *more)))


def _callers_level() -> int:
    """How far above a function that warns the line of the user's program is."""
    frame, level = sys._getframe(2), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("openmodal."):
        frame, level = frame.f_back, level + 1
    return level


def _as_it_is(data: bytes, final: bool = False) -> bytes:
    return data


class StreamWriter:
    """What a command reads. `write` and `write_eof` collect; `drain` (or `close`) sends and waits until all is taken."""

    def __init__(self, command: Command | None, accepted: int = 0) -> None:
        self._command = command
        self._pending = bytearray()
        self._ends = False
        self._ended = False
        self._accepted = accepted

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Add `data` to what `drain` sends; str is sent as UTF-8.

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
        args: its argv; empty if it comes from `Sandbox.process`.
        pid: its process id inside the sandbox; 0 if it could not be executed, or if it comes from
            `Sandbox.process`.
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
        stdin: int | None,
        record: ExitRecord | None = None,
    ) -> None:
        self.args = args
        self.pid = pid
        self.stdin = StreamWriter(None if stdin is None else command, stdin or 0)
        self.stdout: StreamReader[AnyStr] = StreamReader(stdout, text=text)
        self.stderr: StreamReader[AnyStr] = StreamReader(stderr, text=text)
        self._command = command
        self._record = record

    @property
    def id(self) -> str:
        """By which `Sandbox.process` finds it, in any process of yours."""
        return self._command.id.hex()

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
        """Tell the command's terminal its new size: `rows`, `columns`. Needs `pty=True`."""
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
        return f"<Process {self.args or self.id!r} {state}>"


def timed_out(process: Process[Any]) -> ExecTimeoutError:
    """The error for a command whose timeout ended it."""
    name = process.args[0] if process.args else process.id
    return ExecTimeoutError(f"the command {name!r} was killed because its timeout expired", process)


def failed(process: Process[Any], said: bytes) -> CommandFailedError:
    """The error for a command that `check=True` is asked of; `said`: the end of what it wrote."""
    lines = said.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    why = f": {last[-300:]}" if last else ""
    return CommandFailedError(f"the command {process.args[0]!r} ended with {process.returncode}{why}", process)


__all__ = ["Process", "StreamReader", "StreamType", "StreamWriter", "failed", "timed_out"]
