"""`openmodal serve`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from openmodal import __version__, _config
from openmodal.cli import _listen
from openmodal.cli._session import Session
from openmodal.cli.dashboard import visitors
from openmodal.errors import InvalidError, extra

if TYPE_CHECKING:
    from openmodal.engines import Engine
    from openmodal.serve.door import Limits
    from openmodal.serve.kept import Kept

PORT = 8260
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Place:
    """Where a door is, and how clients reach it."""

    host: str
    port: int
    advertise: str | None
    tls: ssl.SSLContext | None

    def url(self, listener: socket.socket) -> str:
        """The URL for MODAL_SERVER_URL."""
        own = _listen.url(self.host, listener, is_encrypted=self.tls is not None)
        return (self.advertise or own).rstrip("/")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", type=int, help=f"The port; 0: any that is free.  [default: {PORT}]")
@click.option("--token-file", type=click.Path(path_type=Path), help="A line `ID SECRET` for each token.")
@click.option("--advertise", help="The URL that clients reach this door at, if a proxy stands before it.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="A certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--max-sandboxes", type=click.IntRange(1), default=1000, show_default=True, help="That run at a time.")
@click.option("--max-starting", type=click.IntRange(1), default=16, show_default=True, help="Created at a time.")
@click.option("--max-lifetime", type=click.FloatRange(1), default=86400.0, show_default=True, help="Seconds.")
@click.option("--max-memory", type=click.IntRange(0), default=0, help="MiB of one sandbox; 0: as the engine says.")
@click.option("--max-upload", type=click.IntRange(1), default=8192, show_default=True, help="MiB of one file.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def serve(
    session: Session,
    host: str,
    port: int | None,
    token_file: Path | None,
    advertise: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_sandboxes: int,
    max_starting: int,
    max_lifetime: float,
    max_memory: int,
    max_upload: int,
    program: tuple[str, ...],
) -> int:
    """Serve programs that say `import modal`: they run on our engines, unmodified.

    With a PROGRAM, as in `openmodal serve -- python agent.py`, it runs behind a door of its own,
    which ends with it.
    """
    try:
        from openmodal.serve.door import Limits
    except ModuleNotFoundError as error:
        raise InvalidError(f"`openmodal serve` needs the package {error.name}; {extra('serve')}") from error
    tls = _listen.encryption(tls_cert, tls_key, "h2", "http/1.1")
    _safe(host, advertise, is_encrypted=tls is not None)
    limits = Limits(
        sandboxes=max_sandboxes, starts=max_starting, lifetime=max_lifetime, memory=max_memory, upload=max_upload << 20
    )
    door = Place(host, (0 if program else PORT) if port is None else port, advertise, tls)
    return asyncio.run(
        _serve(session.engine, door, _listen.tokens(token_file), limits, program, tells=token_file is None)
    )


def _safe(host: str, advertise: str | None, *, is_encrypted: bool) -> None:
    """Refuse to serve other machines in the clear: tokens and files would be read on the way."""
    if not (_listen.is_loopback(host) or is_encrypted or (advertise or "").startswith("https://")):
        raise InvalidError(
            f"{host} is reached by others than this machine, so the door must be encrypted; give --tls-cert and --tls-key, or "
            "--advertise https://… of a proxy that does it"
        )


async def _serve(
    engine: Engine,
    place: Place,
    tokens: tuple[tuple[str, str], ...],
    limits: Limits,
    program: Sequence[str],
    *,
    tells: bool,
) -> int:
    """`tells`: its token is new, so nobody could know the token otherwise."""
    from openmodal.serve import certificate, logs
    from openmodal.serve.access import Access
    from openmodal.serve.apps import end_lost_runs
    from openmodal.serve.door import Door
    from openmodal.serve.images import Images
    from openmodal.serve.kept import Kept
    from openmodal.serve.server import serving
    from openmodal.web.server import Page
    from openmodal.web.sessions import Sessions

    if not program:  # its own words are on stderr then
        logs.begin()
    kept = Kept(_config.state() / "serve")
    collecting = asyncio.create_task(_collect(kept))
    with _listen.listening(place.host, place.port) as listener:
        url = place.url(listener)
        door = Door(engine, kept, Access(tokens, kept.key()), Images(engine, kept), url, limits)
        own = certificate.context(kept.folder, "h2", "http/1.1")
        trusted = certificate.trusted(kept.folder)
        sessions = Sessions(kept.key(), visitors(tokens))
        page = Page(engine, sessions, hosts=None if place.tls else _names(place), version=__version__)
        async with serving(door, page, listener, place.tls or own, clear=place.tls is None):
            await door.tunnels.reopen()
            looking = asyncio.create_task(end_lost_runs(door))
            if program:
                return await _run(program, _variables(url, tokens[0]) | trusted)
            _tell(url, tokens[0] if tells else None, engine.name)
            if tells:
                click.echo(f"# its web page: {url}/#token={sessions.once()}", err=True)
            click.echo(
                f"# programs that use https:// tunnels trust them by SSL_CERT_FILE={trusted['SSL_CERT_FILE']}", err=True
            )
            await _listen.until_ended()
    collecting.cancel()
    looking.cancel()
    return 0


def _names(place: Place) -> frozenset[str]:
    """What the page is called by: also what a proxy before it is called."""
    from openmodal.web.guard import LOOPBACK

    advertised = urlsplit(place.advertise or "").hostname
    return LOOPBACK | {place.host} | ({advertised} if advertised else frozenset())


async def _collect(kept: Kept) -> None:
    """Remove each day what nobody uses."""
    while True:
        try:
            await asyncio.to_thread(kept.collect)
        except OSError as error:
            click.echo(f"# what nobody uses was not removed: {error}", err=True)
        await asyncio.sleep(_DAY)


def _variables(url: str, token: tuple[str, str]) -> dict[str, str]:
    return {"MODAL_SERVER_URL": url, "MODAL_TOKEN_ID": token[0], "MODAL_TOKEN_SECRET": token[1]}


def _tell(url: str, token: tuple[str, str] | None, engine: str) -> None:
    # One of a file is in no log: of a pod, others may read that than may read its Secret.
    for name, value in (_variables(url, token) if token else {"MODAL_SERVER_URL": url}).items():
        click.echo(f"export {name}={value}")
    click.echo(f"# serving the {engine} engine; Ctrl-C ends the door, and sandboxes run on", err=True)
    sys.stdout.flush()


async def _run(program: Sequence[str], variables: dict[str, str]) -> int:
    """Run a program behind the door; it has the terminal, and its signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = await asyncio.create_subprocess_exec(*program, env={**os.environ, **variables}, preexec_fn=_heed)
    except OSError as error:
        raise InvalidError(f"{program[0]} cannot be run: {error.strerror}") from error
    # It ends with the door, which then ends with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, _passed_on, process, number)
    code = await process.wait()
    return code if code >= 0 else 128 - code


def _passed_on(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _heed() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
