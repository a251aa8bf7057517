"""The agent of a box, for all that asks it: links to it, why they broke, when to ask again."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from openmodal._dual import Sleep
from openmodal._journal import SILENT, Journal
from openmodal._link import Link, Links, Stream, Wake
from openmodal.errors import EngineError, SandboxResetError

T = TypeVar("T")

_RECONNECT_SECONDS = 30.0
_LEAST_SECONDS = 5.0  # on a busy machine, whatever the time-out
_HELD_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.16


class Agent:
    """One agent. Commands, files and connections are operations on a link to it.

    An operation says by ids and offsets where it is, so `exchange` may run it again: nothing starts
    twice, nothing is lost.
    """

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, Stream]],
        why: Callable[[Exception], Coroutine[Any, Any, None]],
        first: Stream | None = None,
        wake: Wake | None = None,
        journal: Journal = SILENT,
        *,
        looks: bool = False,
    ) -> None:
        """Nothing is opened yet.

        Args:
            connect: opens a stream to the agent; raises ConnectionError when nothing listens.
            why: a link broke: raises why the box ended; returns if it runs, so that asking again
                makes sense.
            first: a stream that is open already, and used before another is opened.
            wake: called before a stream is opened and behind whatever is sent: lets a box that is
                paused go on.
            journal: where those who use the agent note what they do.
            looks: requests do not count as use of the box: no lease is renewed, idle time goes on.
        """
        self._connect = connect
        self._why = why
        self._wake = wake
        self.journal = journal
        self._looks = looks
        self._links = Links(connect, first, wake, looks=looks)
        weakref.finalize(self, self._links.close).atexit = False

    async def exchange(
        self,
        operation: Callable[[Link], Coroutine[Any, Any, T]],
        life: Life | None = None,
        timeout: float | None = None,
    ) -> T:
        """Run an operation on a link, and again on a new one if that breaks while the box lives.

        Args:
            operation: what is done.
            life: of what it is about, which ends with the agent that knows it; None: the
                operation is all.
            timeout: of what is started, in seconds: it is tried no longer, while no agent has
                answered.

        Raises:
            EngineError: the box runs, but its agent does not answer for 30 s, or as `timeout` says.
            SandboxResetError: the box was reset meanwhile.
        """
        return await self._repeated(self._links.lease, operation, life or Life(), timeout)

    async def dedicate(self, begin: Callable[[Link], Coroutine[Any, Any, T]]) -> T:
        """As `exchange`, on a link that is then the caller's, who closes it."""
        return await self._repeated(self._links.dedicated, begin, Life())

    async def _repeated(
        self,
        take: Callable[[], AbstractAsyncContextManager[Link]],
        operation: Callable[[Link], Coroutine[Any, Any, T]],
        life: Life,
        timeout: float | None = None,
    ) -> T:
        patience = _Patience()
        while True:
            opened = 0.0
            try:
                async with take() as link:
                    opened = time.monotonic()
                    await life.check(link)
                    try:
                        return await operation(link)
                    finally:
                        life.note(link)
            except ConnectionError as error:
                await self._why(error)
                pause = patience.after(error, opened, life.patience(timeout))
            await Sleep(pause)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Link]:
        """A link for one operation that is not repeated."""
        async with self._links.lease() as link:
            yield link

    def close(self) -> None:
        """Close the links that nobody uses; the next operation opens another."""
        self._links.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied it is the same agent; links stay here."""
        made = functools.partial(type(self), looks=self._looks)
        return made, (self._connect, self._why, None, self._wake, self.journal)


class Life:
    """What one agent knows, such as a command: another that is started in its place does not."""

    def __init__(self) -> None:
        self._agent = 0
        self._is_met = False

    async def check(self, link: Link) -> None:
        """Raise SandboxResetError if the link is to another agent."""
        if self._agent and await link.meet() != self._agent:
            raise SandboxResetError("the sandbox was reset, and this belongs to the time before; start it again")

    def note(self, link: Link) -> None:
        """The agent at the other end knows it, if no other did before."""
        self._agent = self._agent or link.agent
        self._is_met = self._is_met or link.greeted

    def patience(self, timeout: float | None) -> float:
        """For how many seconds an agent that does not answer is asked. One that never has cannot
        have begun it, and who gave it a time-out waits no longer for its beginning."""
        if self._is_met or timeout is None:
            return _RECONNECT_SECONDS
        return min(_RECONNECT_SECONDS, max(_LEAST_SECONDS, timeout))


class _Patience:
    """How soon, and for how long, an agent whose links break is asked again."""

    def __init__(self) -> None:
        self._since = 0.0
        self._pause = _FIRST_PAUSE

    def after(self, error: Exception, opened: float, most: float) -> float:
        """Seconds to pause, after the link that was opened then (0: none was) has failed; for so
        many seconds at most is it asked.

        An agent that nobody reaches is asked less and less often. A link that held for a while has
        worked, so what broke it is news: a command of an hour may see any number of breaks.
        """
        now = time.monotonic()
        if opened and now - opened > _HELD_SECONDS:
            self._since = 0.0
        self._since = self._since or now
        if now > self._since + most:
            text = f"the sandbox runs but its agent does not answer ({error}); terminate it"
            raise EngineError(text) from error
        self._pause = _FIRST_PAUSE if opened else min(2 * self._pause, _LONGEST_PAUSE)
        return self._pause


__all__ = ["Agent", "Life"]
