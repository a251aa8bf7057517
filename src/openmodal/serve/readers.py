"""Who reads the output of commands now, and which commands nobody needs any more.

It is this door's alone and may be lost: then output is kept for longer than it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_KNOWN = 10_000
"""Commands that are remembered, of all sandboxes: those that were used last."""

_BEGIN = 0.1
"""Seconds for which a client that waits for a command may begin to read what the command wrote."""

_FINISH = 0.5
"""Seconds for which the end of a command is not told while it is still read."""

_PATIENCE = 30.0
"""Seconds after the last use of a finished command that it is forgotten: a client whose connection
broke at the very end has asked again by then."""


@dataclass
class _Reads:
    """What became of the two streams of a command."""

    sandbox: str
    now: int = 0
    whole: set[int] = field(default_factory=set[int])
    told: bool = False
    used: float = field(default_factory=time.monotonic)

    @property
    def begun(self) -> bool:
        return bool(self.now or self.whole)


class Readers:
    """The commands that this door was asked about, by the client's ids."""

    def __init__(self) -> None:
        self._reads: OrderedDict[str, _Reads] = OrderedDict()
        self._look = 0.0

    @asynccontextmanager
    async def reading(self, sandbox: str, command: str, number: int) -> AsyncIterator[None]:
        """A stream is read to its end, as long as the block."""
        reads = self._used(sandbox, command)
        reads.now += 1
        try:
            yield
            reads.whole.add(number)
        finally:
            reads.now -= 1
            reads.used = time.monotonic()

    async def printed(self, sandbox: str, command: str) -> None:
        """Return when what a command wrote was taken: a client that prints it in the background
        ends when it learns that the command has ended. It may ask for that first, and read then."""
        reads = self._used(sandbox, command)
        await _until(lambda: reads.begun, _BEGIN)
        await _until(lambda: not reads.now, _FINISH)

    def begun(self, sandbox: str, command: str) -> bool:
        """Whether the client reads, or has read, what a command wrote."""
        return self._used(sandbox, command).begun

    def told(self, sandbox: str, command: str) -> None:
        """The client knows how a command ended."""
        self._used(sandbox, command).told = True

    def needless(self) -> list[tuple[str, str]]:
        """Sandboxes and commands of theirs of which the client has had all; they are forgotten
        here. It looks each few seconds only."""
        now = time.monotonic()
        if now < self._look:
            return []
        self._look = now + _PATIENCE / 4
        found = [
            (reads.sandbox, command)
            for command, reads in self._reads.items()
            if reads.told and reads.whole == {1, 2} and not reads.now and reads.used < now - _PATIENCE
        ]
        for _, command in found:
            del self._reads[command]
        return found

    def _used(self, sandbox: str, command: str) -> _Reads:
        reads = self._reads.setdefault(command, _Reads(sandbox))
        self._reads.move_to_end(command)
        reads.used = time.monotonic()
        while len(self._reads) > _KNOWN:
            self._reads.popitem(last=False)
        return reads


async def _until(holds: Callable[[], bool], most: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most):
            while not holds():
                await asyncio.sleep(0.002)


__all__ = ["Readers"]
