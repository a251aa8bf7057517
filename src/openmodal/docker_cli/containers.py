"""Containers: sandboxes as docker sees them. Those that ended are known for a day."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from openmodal import Sandbox, _wire
from openmodal._spec import Status
from openmodal.docker_cli import names, record
from openmodal.docker_cli.failures import Failure, daemon_says, no_such_container
from openmodal.docker_cli.record import Record
from openmodal.errors import InvalidError, NotFoundError, SandboxNotRunningError, UnsupportedError
from openmodal.process import Process

_MAIN = _wire.MAIN.hex()
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Container(msgspec.Struct, frozen=True):
    """A sandbox, how it is, and what was asked for."""

    sandbox: Sandbox
    status: Status
    record: Record

    @property
    def id(self) -> str:
        return self.status.id

    @property
    def name(self) -> str:
        return self.record.name or self.status.name or self.id[:12]

    @property
    def labels(self) -> dict[str, str]:
        return self.record.labels or {k: v for k, v in self.status.tags if not k.startswith("docker.")}

    @property
    def state(self) -> str:
        """created, running, paused or exited."""
        if self.status.ended:
            return "exited"
        return "created" if self.record.waits else "paused" if self.status.paused else "running"

    @property
    def exit_code(self) -> int:
        """0 while it runs."""
        if self.record.exit_code is not None:
            return self.record.exit_code
        return self.status.ended.returncode if self.status.ended else 0

    def note(self, **changes: object) -> None:
        """Remember something else of it, unless it has just ended or is another machine's."""
        try:
            self.sandbox.set_tags(replace(self.record, **changes).tags())
        except (SandboxNotRunningError, NotFoundError, UnsupportedError):
            pass

    def main(self) -> Process[bytes] | None:
        """Its main command; None: it has ended, or there is none."""
        try:
            if not self.record.foreground:
                return self.sandbox.process(_MAIN, text=False)
            running = [command for command in self.sandbox.commands() if command.record is None]
            return self.sandbox.process(running[0].id, text=False) if running else None
        except (InvalidError, NotFoundError, SandboxNotRunningError):
            return None


def of(sandbox: Sandbox) -> Container | None:
    """The container that a sandbox is; None: it was removed."""
    status = sandbox.last_status or sandbox.status()
    found = record.of(status.tags) or Record(image=status.image)
    hidden = found.removed or (found.auto_remove and status.ended is not None)
    return None if hidden else Container(sandbox, status, found)


def running() -> list[Container]:
    """Those that run, the newest first."""
    return [found for sandbox in reversed(Sandbox.list()) if (found := of(sandbox))]


def ended() -> list[Container]:
    """Those of docker's that have ended, the newest end first; of one name the newest only, for it
    was free when that was made."""
    try:
        listed = Sandbox.list(ended=True)
    except UnsupportedError:  # this engine does not list them
        return []
    found: dict[str, Container | None] = {}
    for sandbox in reversed(listed):
        remembered = record.of(sandbox.last_status.tags) if sandbox.last_status else None
        if remembered:
            found.setdefault(remembered.name or sandbox.id, of(sandbox))
    return [container for container in found.values() if container]


def find(word: str) -> Container:
    """The container of that id or name, or whose id begins so; one that runs before one that has
    ended.

    Raises:
        Failure: there is none, or several may be meant.
    """
    if _ID.fullmatch(word):
        try:
            if found := of(Sandbox.from_id(word)):
                return found
        except NotFoundError:
            pass
    name = names.shortened(word.removeprefix("/"))
    for listed in (running, ended):
        every = listed()
        named = [each for each in every if name in (each.name, each.status.name)]
        meant = named or [each for each in every if word and each.id.startswith(word)]
        if len(meant) > 1 and not named:
            raise Failure(f"Multiple IDs found with provided prefix: {word}")
        if meant:
            return meant[0]
    raise no_such_container(word)


def find_running(word: str) -> Container:
    """The same, which has to run."""
    found = find(word)
    if found.status.ended:
        raise daemon_says(f"container {found.id} is not running: {found.status.ended.text}")
    return found


def signal_number(text: str) -> int:
    """9, KILL, SIGKILL."""
    if text.isdecimal():
        return int(text)
    try:
        return int(signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"])
    except KeyError:
        raise daemon_says(f"Invalid signal: {text}") from None


def stop(container: Container, number: int, seconds: float) -> None:
    """Send its main command a signal, and end it if it has not ended after so many seconds."""
    main = container.main()
    if main:
        try:
            main.send_signal(number)
            container.sandbox.wait(raise_on_termination=False, timeout=seconds)
        except (TimeoutError, SandboxNotRunningError):
            pass
    container.sandbox.terminate()


def each(words: list[str], do: Callable[[str], str]) -> int:
    """Do something with each of several; what fails for one does not keep it from the others."""
    import sys

    code = 0
    for word in words:
        try:
            print(do(word), flush=True)
        except Failure as failure:
            print(failure, file=sys.stderr)
            code = 1
    return code


def ago(seconds: float) -> str:
    """How long, as docker writes it: 5 seconds, About a minute, 3 hours."""
    seconds = max(0, int(seconds))
    if seconds < 1:
        return "Less than a second"
    for unit, length, one in (("hour", 3600, "About an hour"), ("minute", 60, "About a minute")):
        count = seconds // length
        if count == 1:
            return one
        if count and not (unit == "hour" and count >= 48):
            return f"{count} {unit}s"
        if count:
            return f"{count // 24} days"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def utc(seconds: float, *, nanoseconds: bool = False) -> str:
    """A time of the Unix clock, as inspect (RFC 3339) or ps writes it."""
    parts = time.gmtime(seconds)
    if nanoseconds:
        return time.strftime("%Y-%m-%dT%H:%M:%S", parts) + f".{int(seconds % 1 * 1e9):09}Z"
    return time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", parts)
