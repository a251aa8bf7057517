"""Where the bytes of a StreamReader come from: a finished command, a running one, or the main command."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from openmodal._command import Command, Spool
from openmodal._spec import OutputGap
from openmodal._wire import Want
from openmodal.errors import InvalidError, NotFoundError, SandboxNotRunningError

_PIECE = 256 * 1024


class Source(Protocol):
    """Where a StreamReader's bytes come from."""

    @property
    def gaps(self) -> Sequence[OutputGap]:
        """Where bytes are missing, as far as that is known."""
        ...

    @property
    def why(self) -> str:
        """Why they are missing, and what to do about it; "" if they were not wanted."""
        ...

    @property
    def start(self) -> int | None:
        """Where reading begins in what the command wrote; None: at the first byte that comes."""
        ...

    async def chunk(self) -> bytes:
        """Return some bytes, up to the next gap at most, or b"" at the end."""
        ...


class Kept:
    """The output of a finished command: here already, also after its sandbox is gone."""

    def __init__(self, spool: Spool, why: str = "") -> None:
        self.why = why
        self.start = 0
        self._spool = spool
        self._at = 0

    @property
    def gaps(self) -> Sequence[OutputGap]:
        return self._spool.gaps

    async def chunk(self) -> bytes:
        data = self._spool.read(self._at, _PIECE)
        self._at += len(data)
        return data


class Live:
    """The output of a running command, taken from its agent piece by piece.

    It begins at `start`; None: at the first byte that is kept.
    """

    def __init__(self, command: Command, stream: int, why: str = "", start: int | None = 0) -> None:
        self.why = why
        self.start = start
        self.gaps: list[OutputGap] = []
        self._command = command
        self._stream = stream
        self._offsets = [0, 0, 0]
        self._offsets[stream] = start or 0
        self._piece = Kept(Spool())

    async def chunk(self) -> bytes:
        # If a read is cancelled, the bytes received so far stay in `_piece`: the offset has moved
        # past them.
        if data := await self._piece.chunk():
            return data
        spool = Spool()
        self._piece = Kept(spool)
        try:
            await self._command.io(Want(self._stream), self._offsets, {self._stream: spool})
        finally:
            self.gaps += spool.gaps
        return await self._piece.chunk()


class Main(Live):
    """The main command's output: live, and after the sandbox's end what its engine kept."""

    def __init__(
        self, command: Command, stream: int, kept: Callable[[int], Coroutine[Any, Any, tuple[bytes, int]]]
    ) -> None:
        """`kept`: what is kept of a stream after the end, the newest, and how many bytes were written to it (0: that is not known)."""
        super().__init__(
            command,
            stream,
            "because the main command wrote more than is kept after its sandbox's end, or another read them before; read sooner",
        )
        self._kept = kept
        self._over = False

    async def chunk(self) -> bytes:
        if self._over:
            return b""
        try:
            return await super().chunk()
        except SandboxNotRunningError:
            if data := await self._piece.chunk():  # what came before the link broke
                return data
            self._over = True
            return await self._rest()
        except NotFoundError:
            raise InvalidError("this sandbox has no main command; read the streams of exec() or spawn()") from None

    async def _rest(self) -> bytes:
        """What is kept from where this reader is."""
        at = self._offsets[self._stream]
        kept, written = await self._kept(self._stream)
        begin = max(written - len(kept), 0)
        if begin > at:
            self.gaps.append(OutputGap(at, begin - at))
        return kept[max(at - begin, 0) :]


__all__ = ["Kept", "Live", "Main", "Source"]
