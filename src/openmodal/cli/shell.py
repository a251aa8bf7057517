"""`openmodal shell`, `openmodal sandbox shell`: a terminal in a sandbox."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from openmodal.cli._session import Session, build_options, engine_options, pass_session
from openmodal.cli._types import DURATION, SANDBOX
from openmodal.cli.create import sandbox_options
from openmodal.cli.image import named
from openmodal.cli.sandbox import words

if TYPE_CHECKING:
    from openmodal import Sandbox

_NOT_FOUND = 127
_BEST_SHELL = "command -v bash >/dev/null && exec bash; exec sh"


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--timeout", type=DURATION, default=8 * 3600.0, metavar="TIME", help="Its longest life: 90, 1h; 8 hours.")
@sandbox_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@build_options
@engine_options
@pass_session
def shell(session: Session, /, image: str | None, command: tuple[str, ...], **options: Any) -> int:
    """Open a terminal in a new sandbox, which ends when you leave it.

    COMMAND runs in place of a shell. The exit code is the command's.
    """
    from openmodal import App, Sandbox
    from openmodal.cli import _output
    from openmodal.errors import InvalidError, NotFoundError

    with Sandbox.create(
        app=App("shell"), image=named(image, session.engine), engine=session.engine, **options
    ) as sandbox:
        code = enter(sandbox, command)
    if code == _NOT_FOUND and len(command) == 1:
        with contextlib.suppress(NotFoundError, InvalidError):
            id = session.sandbox(command[0]).id
            _output.tell(f"`openmodal sandbox shell {command[0]}` opens a terminal in the sandbox {id}")
    return code


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("id", type=SANDBOX)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--user", "-u", help="Who you are there: name, uid, name:group or uid:gid.")
@click.option("--workdir", "-w", metavar="PATH", help="Where the shell starts.")
@engine_options
@pass_session
def attach(session: Session, /, id: str, command: tuple[str, ...], **options: Any) -> int:
    """Open a terminal in the sandbox ID. Leaving it leaves the sandbox running."""
    return enter(session.sandbox(id), command, **options)


def enter(sandbox: Sandbox, command: tuple[str, ...], **options: Any) -> int:
    """Run a command, or the best shell there is, on this terminal; on plain pipes if there is none."""
    from openmodal.cli import _terminal

    pty = sys.stdin.isatty() and sys.stdout.isatty()
    env = {"TERM": os.environ.get("TERM", "xterm")} if pty else {}
    argv = words(command) or ("/bin/sh", "-c", _BEST_SHELL)
    process = sandbox.spawn(*argv, text=False, pty=pty, env=env, **options)
    return _terminal.attach(process, stdin=True, pty=pty)
