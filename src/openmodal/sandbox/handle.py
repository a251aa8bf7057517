"""A handle: the id of a sandbox, its engine, its agent. What a sandbox can do is built on it."""

from __future__ import annotations

import functools
import os
import time

from openmodal._agent import Agent
from openmodal._command import Command
from openmodal._dual import DualContext
from openmodal._journal import Journal
from openmodal._link import Stream
from openmodal._spec import EndRecord, SandboxSpec, Status
from openmodal.engines import Engine
from openmodal.errors import (
    NotFoundError,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
)


class Handle(DualContext):
    """What all rooms of `Sandbox` share: the id, some connections, and what was seen last."""

    def __init__(self, id: str, engine: Engine, first: Stream | None = None) -> None:
        self._id = id
        self._engine = engine
        resume = getattr(engine, "resume", None)  # an engine of others may never have heard of it
        wake = functools.partial(resume, id) if resume else None
        place = getattr(engine, "journal", None)
        self._journal = Journal(functools.partial(place, id) if place else None)
        self._agent = Agent(functools.partial(engine.connect, id), self._why, first, wake, self._journal)
        self._observer = Agent(functools.partial(engine.connect, id), self._why, None, wake, looks=True)
        self._status: Status | None = None
        self._end: EndRecord | None = None

    @property
    def id(self) -> str:
        """`<app name>-<8 hexadecimal digits>`."""
        return self._id

    @functools.cached_property
    def _watcher(self) -> Agent:
        """The agent, for looking only: this counts as no use of the sandbox, does not wake a paused
        one (`_observer` does, to be answered), and is not in the journal."""
        return Agent(functools.partial(self._engine.connect, self._id), self._why, looks=True)

    def _renew(self) -> None:
        """Forget what belongs to the agent that was there before a reset."""
        self._agent.close()
        self._observer.close()

    def _note_creation(self, at: float, spec: SandboxSpec, detail: str = "") -> None:
        seconds = round(time.time() - at, 6)
        self._journal.note("create", at=at, seconds=seconds, argv=spec.argv, detail=detail)

    def _only_look(self) -> None:
        """Let nothing that is asked through this object from now on count as use of the sandbox."""
        self._agent.close()
        self._agent = self._observer
        self._renew()

    def _new_command(self) -> Command:
        return Command(self._agent, os.urandom(16))

    async def _look(self) -> Status:
        self._status = await self._engine.inspect(self._id)
        self._end = self._status.ended
        return self._status

    async def _why(self, error: Exception) -> None:
        """Raise why the sandbox ended; return if it runs."""
        try:
            await self._look()
        except NotFoundError:
            raise SandboxNotRunningError(f"sandbox {self._id} does not exist any more; create a new one") from None
        if self._end:
            raise ended(self._id, self._end) from None  # how its connection broke tells nobody more


_KINDS: dict[str, type[SandboxNotRunningError]] = {
    "idle": SandboxTimeoutError,
    "lease": SandboxTimeoutError,
    "owner": SandboxTerminatedError,
    "terminated": SandboxTerminatedError,
    "timeout": SandboxTimeoutError,
}


def ended(id: str, end: EndRecord) -> SandboxNotRunningError:
    """The exception that tells how a sandbox ended."""
    return _KINDS.get(end.reason, SandboxNotRunningError)(f"sandbox {id} is not running: {end.text}")
