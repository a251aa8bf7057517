"""`openmodal sandbox …`: list, exec, commands, logs, forward, stop."""

from __future__ import annotations

import shlex
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TextIO

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from openmodal._spec import Status
    from openmodal.process import StreamReader


@click.command("list")
@click.option("--app", help="Only those of this app.")
@json_option
@engine_options
@pass_session
def list_(session: Session, app: str | None, as_json: bool) -> None:
    """Show the running sandboxes, oldest first."""
    from openmodal import Sandbox

    listed = Sandbox.list(app=app, engine=session.engine)
    found = [sandbox.last_status for sandbox in listed if sandbox.last_status]
    if as_json:
        _output.emit([_described(status) for status in found])
        return
    now = time.time()
    _output.table(
        ("ID", "NAME", "AGE", "ENDS IN", "TAGS"),
        (
            (
                status.id,
                status.name,
                _output.duration(now - status.created),
                _output.duration(status.expires - now),
                " ".join(f"{key}={value}" for key, value in status.tags),
            )
            for status in found
        ),
        empty="No sandbox is running.",
    )


def _described(status: Status) -> dict[str, object]:
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
    }


def assignments(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=value options as a dict; a NAME alone takes this process's value, as with docker and podman."""
    import os

    pairs: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals and name not in os.environ:
            raise click.BadParameter(f"{text!r} has no value and is not set here; write {text}=value")
        pairs[name] = value if equals else os.environ[name]
    return pairs


env_option = click.option(
    "--env", "-e", multiple=True, metavar="NAME=VALUE", callback=assignments, help="Set a variable; may be repeated."
)


@click.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("--interactive", "-i", is_flag=True, help="Pass standard input on.")
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal.")
@click.option("--workdir", "-w", metavar="PATH", help="Where it starts.")
@click.option("--user", "-u", help="Who runs it: name, uid, name:group or uid:gid.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it then.")
@env_option
@click.argument("id")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@engine_options
@pass_session
def exec_(session: Session, /, id: str, command: tuple[str, ...], interactive: bool, tty: bool, **options: Any) -> int:
    """Run COMMAND in the sandbox ID and exit with its exit code.

    There is no shell around it; for one, write: openmodal sandbox exec ID sh -c '...'
    """
    from openmodal import Sandbox
    from openmodal.cli import _terminal
    from openmodal.errors import ExecTimeoutError

    if tty and not sys.stdin.isatty():
        raise click.UsageError("--tty needs a terminal, and standard input is none; use --interactive alone")
    sandbox = Sandbox.from_id(id, engine=session.engine)
    argv = command[1:] if command[0] == "--" else command
    process = sandbox.spawn(*argv, text=False, pty=tty, **options)
    if not (interactive or tty):
        process.stdin.close()
    try:
        return _terminal.attach(process, stdin=interactive or tty, pty=tty)
    except ExecTimeoutError as error:
        _output.tell(f"Error: {error}")
        return 124


@click.command()
@click.argument("id")
@json_option
@engine_options
@pass_session
def commands(session: Session, id: str, as_json: bool) -> None:
    """Show the commands of the sandbox ID, in the order of their starts.

    Those that run, and those that ended and whose output is kept.
    """
    from msgspec.structs import asdict

    from openmodal import Sandbox

    found = Sandbox.from_id(id, engine=session.engine).commands()
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


@click.command()
@click.argument("id")
@engine_options
@pass_session
def logs(session: Session, id: str) -> None:
    """Show what the main command of the sandbox ID prints, until it ends.

    The main command is what Sandbox.create(...) was given. Output is kept until somebody reads it,
    and what nobody has read for a day after the sandbox has ended.
    """
    from openmodal import Sandbox

    sandbox = Sandbox.from_id(id, engine=session.engine)
    errors = threading.Thread(target=_print, args=(sandbox.stderr, sys.stderr), daemon=True)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        first = sandbox.stdout.read_some()  # here, where an exception is seen: there may be no main command
        errors.start()
        sys.stdout.write(_output.encodable(first, sys.stdout))
        _print(sandbox.stdout, sys.stdout)
        errors.join()


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning without a line of ours, which tells a user of commands nothing."""
    _output.tell(f"Warning: {message}")


def _print(reader: StreamReader[str], to: TextIO) -> None:
    while text := reader.read_some():
        to.write(_output.encodable(text, to))
        to.flush()


def _two_ports(_ctx: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, int]:
    """[LOCAL:]PORT as two numbers; 0: any local port."""
    local, colon, port = text.rpartition(":")
    if not port.isdecimal() or (colon and not local.isdecimal()):
        raise click.BadParameter(
            f"{text!r} is not [LOCAL:]PORT; write 8000, or 9000:8000 for port 9000 of this machine"
        )
    return int(local or 0), int(port)


@click.command()
@click.argument("id")
@click.argument("ports", metavar="[LOCAL:]PORT", callback=_two_ports)
@engine_options
@pass_session
def forward(session: Session, id: str, ports: tuple[int, int]) -> int:
    """Let a port of this machine lead to PORT of the sandbox ID, until that ends or Ctrl-C."""
    from openmodal import Sandbox

    local, port = ports
    sandbox = Sandbox.from_id(id, engine=session.engine)
    with sandbox.forward(port, local_port=local) as tunnel:
        click.echo(tunnel.url)
        sandbox.wait(raise_on_termination=False)
    return 0


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--app", help="All of this app.")
@click.option("--all", "everything", is_flag=True, help="All that run.")
@yes_option
@engine_options
@pass_session
def stop(session: Session, ids: tuple[str, ...], app: str | None, everything: bool, yes: bool) -> int:
    """End sandboxes: nothing of them is left afterwards. Prints the id of each that was ended.

    Those that are not named one by one are shown, and a terminal is asked.
    """
    from openmodal import Sandbox

    if not ids and not app and not everything:
        raise click.UsageError("say which: IDs, --app NAME, or --all")
    # Unknown ids are found before anything is ended.
    named = [Sandbox.from_id(id, engine=session.engine) for id in ids]
    listed = Sandbox.list(app=None if everything else app, engine=session.engine) if app or everything else []
    chosen = {sandbox.id: sandbox for sandbox in (*named, *listed)}
    if (app or everything) and not _output.agreed([*chosen], f"End {_output.count(len(chosen), 'sandbox')}?", yes=yes):
        return 1

    def end(sandbox: Sandbox) -> str:
        sandbox.terminate()
        return sandbox.id

    with ThreadPoolExecutor(8) as pool:
        for id in pool.map(end, chosen.values()):
            click.echo(id)
    return 0
