"""`openmodal sandbox …`: exec, logs, forward, stop."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TextIO

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, pass_session, yes_option
from openmodal.cli._types import DURATION, SANDBOX

if TYPE_CHECKING:
    from openmodal import Sandbox
    from openmodal.process import StreamReader


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


def words(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command that may stand behind `--`."""
    return command[1:] if command[:1] == ("--",) else command


@click.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("--interactive", "-i", is_flag=True, help="Pass standard input on.")
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal.")
@click.option("--workdir", "-w", metavar="PATH", help="Where it starts.")
@click.option("--user", "-u", help="Who runs it: name, uid, name:group or uid:gid.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Kill it then: 90, 5m, 1h.")
@env_option
@click.argument("id", type=SANDBOX)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@engine_options
@pass_session
def exec_(session: Session, /, id: str, command: tuple[str, ...], interactive: bool, tty: bool, **options: Any) -> int:
    """Run COMMAND in the sandbox ID and exit with its exit code.

    There is no shell around it; for one, write: openmodal sandbox exec ID sh -c '...'
    """
    from openmodal.cli import _terminal
    from openmodal.errors import ExecTimeoutError

    if tty and not sys.stdin.isatty():
        raise click.UsageError("--tty needs a terminal, and standard input is none; use --interactive alone")
    if command[0].startswith("-") and command[0] != "--":
        raise click.UsageError(f"options stand before the ID: openmodal exec {command[0]} ... {id} COMMAND")
    sandbox = session.sandbox(id)
    process = sandbox.spawn(*words(command), text=False, pty=tty, **options)
    if not (interactive or tty):
        process.stdin.close()
    try:
        return _terminal.attach(process, stdin=interactive or tty, pty=tty)
    except ExecTimeoutError as error:
        _output.tell(f"Error: {error}")
        return 124


@click.command()
@click.option("--follow", "-f", is_flag=True, help="It follows in any case.")
@click.argument("id", type=SANDBOX)
@engine_options
@pass_session
def logs(session: Session, id: str, follow: bool) -> None:
    """Show what the main command of the sandbox ID prints, until it ends.

    The main command is what Sandbox.create(...) was given. Output is kept until somebody reads it,
    and what nobody has read for a day after the sandbox has ended. Looking does not count as use of
    the sandbox: idle time goes on.
    """
    sandbox = session.sandbox(id)
    sandbox._only_look()
    errors = threading.Thread(target=_print_errors, args=(sandbox,), daemon=True)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        # Before the first word on stdout: a server may have all its words on stderr.
        errors.start()
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


def _print_errors(sandbox: Sandbox) -> None:
    from openmodal.errors import Error

    # Such as that it has no main command: reading stdout says so, too.
    with contextlib.suppress(Error):
        _print(sandbox.stderr, sys.stderr)


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
@click.argument("id", type=SANDBOX)
@click.argument("ports", metavar="[LOCAL:]PORT", callback=_two_ports)
@engine_options
@pass_session
def forward(session: Session, id: str, ports: tuple[int, int]) -> int:
    """Let a port of this machine lead to PORT of the sandbox ID, until that ends or Ctrl-C."""
    local, port = ports
    sandbox = session.sandbox(id)
    with sandbox.forward(port, local_port=local) as tunnel:
        click.echo(tunnel.url)
        sandbox.wait(raise_on_termination=False)
    return 0


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=SANDBOX)
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
    named = [session.sandbox(id) for id in ids]
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
