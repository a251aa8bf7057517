"""Commands that a model starts and comes back to."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from agents.sandbox.errors import PtySessionNotFoundError
from agents.sandbox.session.pty_types import (
    PTY_PROCESSES_MAX,
    PtyExecUpdate,
    allocate_pty_process_id,
    truncate_text_by_tokens,
)

from openmodal.errors import Error, StdinClosedError
from openmodal.process import Process


class Running:
    """A session's commands that have not ended, by the numbers that the model is told."""

    def __init__(self) -> None:
        self._processes: dict[int, Process[str]] = {}
        self._talking: set[int] = set()

    async def add(self, process: Process[str], *, talks: bool) -> int:
        """Keep a command, in place of the oldest if there are too many; one that `talks` may be
        typed to."""
        while len(self._processes) >= PTY_PROCESSES_MAX:
            await self._processes.pop(next(iter(self._processes))).kill.aio()
        number: int = allocate_pty_process_id(set(self._processes))
        self._processes[number] = process
        if talks:
            self._talking.add(number)
        else:
            with suppress(StdinClosedError):  # it has ended already
                await process.stdin.close.aio()
        return number

    async def write(self, number: int, text: str) -> None:
        """Type something to a command."""
        process = self._process(number)
        if text and number not in self._talking:
            raise RuntimeError("stdin is not available for this process")  # the SDK looks for this text
        if text:
            with suppress(StdinClosedError):  # it has ended, which the update tells
                process.stdin.write(text)
                await process.stdin.drain.aio()

    async def update(self, number: int, seconds: float, tokens: int | None) -> PtyExecUpdate:
        """What a command writes within so many seconds, and how it ended if it did."""
        process, pieces = self._process(number), list[str]()
        # Its descendants may hold its output open. Then the last of it is told one update later.
        over = await process.poll.aio() is not None
        with suppress(TimeoutError):  # also an ExecTimeoutError
            async with asyncio.timeout(seconds):
                while piece := await process.stdout.read_some.aio():
                    pieces.append(piece)
                over = True
                await process.wait.aio()
        code = process.returncode if over else None
        if code is not None:
            del self._processes[number]
        text, count = truncate_text_by_tokens("".join(pieces), tokens)
        return PtyExecUpdate(number if code is None else None, text.encode(), code, count)

    async def end(self) -> None:
        """Kill all of them."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            with suppress(Error):  # the sandbox may have ended
                await process.kill.aio()

    def _process(self, number: int) -> Process[str]:
        if number not in self._processes:
            raise PtySessionNotFoundError(session_id=number)
        return self._processes[number]
