"""What was done with a sandbox: its journal, with what its agent knows and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from openmodal import _wire
from openmodal._command import listed
from openmodal._dual import Blocking, dual, within
from openmodal._journal import Event, plain
from openmodal._spec import CommandStatus, Status
from openmodal.errors import SandboxNotRunningError, UnsupportedError
from openmodal.sandbox.handle import Handle

_MAIN = _wire.MAIN.hex()
_PATIENCE = 5.0
"""Seconds that the agent has to answer: the sandbox may be pausing."""


class Timeline(Handle):
    """Looking back."""

    @dual
    async def timeline(self) -> list[Event]:
        """Tell what was done with it, the oldest first: commands and how they ended, files that
        were read and written, checkpoints, resets, its end. Works for a day after its end, too.

        What a program did on another machine is not told, nor what the sandbox did by itself. Of
        more than some thousand calls, the newest are told.

        Raises:
            NotFoundError: it ended long ago.
        """
        status = await self._look()
        events: list[Event] = await Blocking(self._journal.events)
        return merged(events, await self._running(status), status)

    async def _running(self, status: Status) -> list[CommandStatus]:
        """What its agent knows of commands. This counts as no use: a paused sandbox stays paused."""
        if status.ended or status.paused:
            return []
        try:
            return await within(_PATIENCE, listed(self._watcher))
        except (SandboxNotRunningError, UnsupportedError, TimeoutError):
            return []


def merged(events: Sequence[Event], commands: Iterable[CommandStatus], status: Status) -> list[Event]:
    """What is known of a sandbox, in the order of time."""
    exits = {event.command: event for event in events if event.call == "exit"}
    known = {command.id: command for command in commands}
    found = [_completed(event, exits, known) for event in events if event.call != "exit"]
    seen = {event.command for event in found}
    found += [_of_command(command) for id, command in known.items() if id not in seen]
    if not any(event.call == "create" for event in found) and status.created:
        found.append(Event(status.created, "create"))
    if end := status.ended:
        found.append(Event(end.ended, "end", detail=end.text))
    return sorted(found, key=lambda event: event.at)


def _completed(event: Event, exits: dict[str, Event], known: dict[str, CommandStatus]) -> Event:
    """A command that was started, with its end if anybody has seen that."""
    if event.call != "spawn":
        return event
    record = exits[event.command].record if event.command in exits else None
    if not record and (command := known.get(event.command)):
        record = command.record
    return replace(event, record=record, seconds=record.ended - record.started if record else None)


def _of_command(command: CommandStatus) -> Event:
    """A command that the journal does not have: one that `exec` runs just now, or another's."""
    record = command.record
    return Event(
        command.started,
        "main" if command.id == _MAIN else "exec",
        record.ended - record.started if record else None,
        command=command.id,
        argv=tuple(map(plain, command.argv)),
        cut=command.cut,
        record=record,
    )


__all__ = ["Event", "Timeline", "merged"]
