"""Rows that change, as Server-Sent Events.

Each change has a number. A page that lost its connection says the last one that it saw, by
`Last-Event-ID` or `?after=`, and gets those after it; if that is too long ago, or of another
process, all rows. Nobody looks while nobody watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import StreamingResponse

from openmodal.errors import Error

Rows = Mapping[str, Mapping[str, Any]]
"""What is shown, by id, in the order that it is shown in."""

_REMEMBERED = 256
_HEARTBEAT = 15.0


ALIVE = b": all is well\n\n"
"""An event of nothing, so that nobody takes the connection for a dead one."""


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer of events. No proxy holds them back."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


class Feed:
    """What `look` finds, again and again while somebody watches."""

    def __init__(self, look: Callable[[], Awaitable[Rows]], period: float = 1.0) -> None:
        self._look = look
        self._period = period
        self._name = secrets.token_hex(4)
        self._number = 0
        self._rows: dict[str, bytes] = {}
        self._error = ""
        self._past: deque[tuple[int, bytes]] = deque(maxlen=_REMEMBERED)
        self._changed = asyncio.Event()
        self._sooner = asyncio.Event()
        self._looked = asyncio.Event()
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None

    def look_now(self) -> None:
        """Do not wait for the next look: something was just changed."""
        self._sooner.set()

    def response(self, request: Request) -> StreamingResponse:
        """The answer to a page that watches."""
        last = request.headers.get("last-event-id") or request.query_params.get("after", "")
        return streamed(self.watch(last))

    async def watch(self, last: str = "") -> AsyncIterator[bytes]:
        """Events for ever: what came after the last one, or all."""
        with self._watched():
            seen = self._position(last)
            if seen is None:
                await self._looked.wait()
                yield self._everything()
                seen = self._number
            while True:
                changed = self._changed
                for number, event in list(self._past):
                    if number > seen:
                        yield event
                        seen = number
                if seen < self._number:  # it was too slow, and what it missed is forgotten
                    yield self._everything()
                    seen = self._number
                assert self._looking
                if self._looking.done():
                    self._looking.result()  # a mistake of ours, which ends the answer and is told
                if changed.is_set():
                    continue
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        await changed.wait()
                except TimeoutError:
                    yield ALIVE

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._watchers += 1
        if self._looking is None:
            self._looked.clear()
            self._looking = asyncio.get_running_loop().create_task(self._look_again_and_again())
            self._looking.add_done_callback(self._wake)
        try:
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def _wake(self, looking: asyncio.Task[None]) -> None:
        """The looks have ended: whoever waits is to find out why."""
        self._looked.set()
        self._tell()

    def _tell(self) -> None:
        """Wake all that wait for a change; whoever waits from now on waits for the next one."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _look_again_and_again(self) -> None:
        while True:
            self._sooner.clear()
            try:
                rows = {id: msgspec.json.encode(row) for id, row in (await self._look()).items()}
                self._note(rows, "")
            except (Error, OSError) as error:
                self._note(self._rows, str(error))
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period):
                    await self._sooner.wait()

    def _note(self, rows: dict[str, bytes], error: str) -> None:
        changed = [row for id, row in rows.items() if self._rows.get(id) != row]
        gone = [id for id in self._rows if id not in rows]
        if not changed and not gone and error == self._error:
            return
        self._rows, self._error = rows, error
        self._number += 1
        said = b'{"changed":[%s],"gone":%s,"error":%s}' % (b",".join(changed), _json(gone), _json(error))
        self._past.append((self._number, self._event(said)))
        self._tell()

    def _everything(self) -> bytes:
        return self._event(b'{"all":[%s],"error":%s}' % (b",".join(self._rows.values()), _json(self._error)))

    def _event(self, data: bytes) -> bytes:
        return b"id: %s-%d\ndata: %s\n\n" % (self._name.encode(), self._number, data)

    def _position(self, last: str) -> int | None:
        """The number of the last event that a page saw; None if it is to get all rows."""
        name, _, number = last.partition("-")
        if name != self._name or not number.isdecimal() or int(number) > self._number:
            return None
        oldest = self._past[0][0] if self._past else self._number + 1
        return int(number) if int(number) >= oldest - 1 else None


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


__all__ = ["Feed", "Rows"]
