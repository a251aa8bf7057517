"""`openmodal sandbox list`, `inspect`, `top` and `commands`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.cli._types import SANDBOX

if TYPE_CHECKING:
    from openmodal import Sandbox
    from openmodal._spec import CommandStatus, Status, Usage

_PERIOD = 2.0  # seconds between two looks


@click.command("list")
@click.option("--app", help="Only those of this app.")
@click.option("--all", "-a", "everything", is_flag=True, help="Those that ended, too: of the last day.")
@click.option("--quiet", "-q", is_flag=True, help="Print the ids only.")
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@json_option
@engine_options
@pass_session
def list_(session: Session, app: str | None, everything: bool, quiet: bool, watch: bool, as_json: bool) -> None:
    """Show the running sandboxes, oldest first."""
    from openmodal import Sandbox

    if sum((quiet, watch, as_json)) > 1:
        raise click.UsageError("--quiet, --watch and --json exclude each other; leave all but one out")

    def found() -> list[Status]:
        listed = Sandbox.list(app=app, ended=True, engine=session.engine) if everything else []
        listed += Sandbox.list(app=app, engine=session.engine)
        return [sandbox.last_status for sandbox in listed if sandbox.last_status]

    if as_json:
        _output.emit([described(status) for status in found()])
    elif quiet:
        for status in found():
            click.echo(status.id)
    elif watch:
        _output.watch(_COLUMNS, lambda: _rows(found()), _PERIOD)
    else:
        _output.table(_COLUMNS, _rows(found()), empty=_none(session, app))


_COLUMNS = ("ID", "NAME", "AGE", "ENDS IN", "TAGS")


def _rows(found: Iterable[Status]) -> list[Sequence[str]]:
    now = time.time()
    return [
        (
            status.id,
            status.name,
            _output.duration(now - status.created),
            status.ended.text if status.ended else _output.duration(status.expires - now) + ", paused" * status.paused,
            " ".join(f"{key}={value}" for key, value in status.tags),
        )
        for status in found
    ]


def _none(session: Session, app: str | None) -> str:
    """What is said if nothing was found: also whether something was left out."""
    from openmodal import Sandbox

    others = len(Sandbox.list(engine=session.engine)) if app else 0
    if not others:
        return "No sandbox is running."
    return f"No sandbox of the app {app!r} is running; without --app there {'is' if others == 1 else 'are'} {others}."


def described(status: Status) -> dict[str, object]:
    """A sandbox as JSON has it."""
    from msgspec import to_builtins

    return {
        "id": status.id,
        "app": status.app,
        "name": status.name or None,
        "tags": dict(status.tags),
        "created": status.created,
        "expires": status.expires,
        "image": status.image,
        "engine": status.engine,
        "runtime": status.runtime,
        "run": status.run or None,
        "paused": status.paused,
        "tunnels": {str(port): local for port, local in status.tunnels},
        "ended": to_builtins(status.ended),
    }


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=SANDBOX)
@engine_options
@pass_session
def inspect(session: Session, ids: tuple[str, ...]) -> None:
    """Print all that is known of sandboxes, as JSON: a list, in the order of the IDs."""
    _output.emit([_inspected(session.sandbox(id)) for id in ids])


def _inspected(sandbox: Sandbox) -> dict[str, object]:
    status = sandbox.status()
    known = described(status)
    if not status.ended:
        known |= {"usage": _told(sandbox.usage), "held": _told(sandbox.info)}
    return known


def _told(question: Callable[[], object]) -> object:
    """What an engine tells; None if it cannot, or if the sandbox has ended meanwhile."""
    from msgspec import to_builtins

    from openmodal.errors import SandboxNotRunningError, UnsupportedError

    try:
        return to_builtins(question())
    except (SandboxNotRunningError, UnsupportedError):
        return None


@click.command()
@click.option("--once", is_flag=True, help="Print it once; so it does in a pipe.")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=SANDBOX)
@engine_options
@pass_session
def top(session: Session, ids: tuple[str, ...], once: bool) -> None:
    """Show what the running sandboxes, or those of the IDs, use now, until Ctrl-C."""
    columns = ("ID", "NAME", "CPU", "MEMORY", "PROCESSES", "WRITTEN", "AGE", "LAST COMMAND")
    meter = _Meter(session, ids)
    if sys.stdout.isatty() and not once:
        _output.watch(columns, meter.rows, _PERIOD)
        return
    meter.rows()
    time.sleep(_PERIOD / 4)  # shares of CPU are told between two looks
    _output.table(columns, meter.rows(), empty="None of these is running." if ids else "No sandbox is running.")


@dataclass(frozen=True)
class _Look:
    """What a look at a sandbox has found."""

    at: float
    status: Status
    usage: Usage
    last: CommandStatus | None


class _Meter:
    """Looks at sandboxes again and again."""

    def __init__(self, session: Session, ids: Sequence[str]) -> None:
        self._session = session
        self._chosen = [session.sandbox(id) for id in ids]
        self._before: dict[str, _Look] = {}

    def rows(self) -> list[Sequence[str]]:
        """A row for each that runs."""
        from openmodal import Sandbox

        with ThreadPoolExecutor(8) as pool:
            looks = [*filter(None, pool.map(_look, self._chosen or Sandbox.list(engine=self._session.engine)))]
        rows = [_row(look, self._before.get(look.status.id)) for look in looks]
        self._before = {look.status.id: look for look in looks}
        return rows


def _look(sandbox: Sandbox) -> _Look | None:
    from openmodal.errors import SandboxNotRunningError

    try:
        usage, status = sandbox.usage(), sandbox.status()
        # To ask for its commands would let one that is paused go on.
        commands = [] if status.paused else sandbox.commands()
        return _Look(time.time(), status, usage, commands[-1] if commands else None)
    except SandboxNotRunningError:
        return None


def _row(look: _Look, before: _Look | None) -> Sequence[str]:
    usage, status = look.usage, look.status
    share = ""
    if before and before.usage.cpu is not None and usage.cpu is not None:
        share = f"{100 * (usage.cpu - before.usage.cpu) / (look.at - before.at):.0f} %"
    return (
        status.id,
        status.name,
        share,
        "" if usage.memory is None else _output.size(usage.memory * 2**20),
        "" if usage.processes is None else str(usage.processes),
        "" if usage.written is None else _output.size(usage.written),
        _output.duration(look.at - status.created),
        shlex.join(look.last.argv)[:60] if look.last else "",
    )


@click.command()
@click.argument("id", type=SANDBOX)
@json_option
@engine_options
@pass_session
def commands(session: Session, id: str, as_json: bool) -> None:
    """Show the commands of the sandbox ID, in the order of their starts.

    Those that run, and those that ended and whose output is kept.
    """
    from msgspec.structs import asdict

    found = session.sandbox(id).commands()
    if as_json:
        described = [{**asdict(command), "returncode": command.returncode} for command in found]
        _output.emit([{key: value for key, value in each.items() if key != "record"} for each in described])
        return
    now = time.time()
    _output.table(
        ("ID", "PID", "USER", "AGE", "EXIT", "COMMAND"),
        (
            (
                command.id,
                str(command.pid),
                command.user,
                _output.duration(now - command.started),
                "" if command.returncode is None else str(command.returncode),
                shlex.join(command.argv) + (" …" if command.cut else ""),
            )
            for command in found
        ),
        empty="No command runs in it.",
    )
