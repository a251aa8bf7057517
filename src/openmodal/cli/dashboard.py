"""`openmodal dashboard`: the web page."""

from __future__ import annotations

import asyncio
import html
import importlib
import os
import ssl
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openmodal import __version__, _config, _files
from openmodal.cli import _listen
from openmodal.cli._session import Session, engine_options, pass_session
from openmodal.errors import InvalidError, extra

if TYPE_CHECKING:
    from openmodal.web.server import Page

PORT = 8261


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", type=int, default=PORT, show_default=True, help="The port; 0: any that is free.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A line `NAME SECRET` for each visitor.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="A certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--read-only", is_flag=True, help="Show everything, change nothing.")
@click.option("--no-browser", is_flag=True, help="Print the link only.")
@engine_options
@pass_session
def dashboard(
    session: Session,
    host: str,
    port: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    read_only: bool,
    no_browser: bool,
) -> int:
    """Show sandboxes, images and this machine on a web page, until Ctrl-C.

    The link works once, for one browser, which is then known for a week.
    """
    try:
        importlib.import_module("wsproto")  # which uvicorn speaks WebSockets with
        from openmodal.web.guard import LOOPBACK
        from openmodal.web.server import Page
        from openmodal.web.sessions import Sessions
    except ModuleNotFoundError as error:
        raise InvalidError(f"`openmodal dashboard` needs the package {error.name}; {extra('dashboard')}") from error
    tls = _listen.encryption(tls_cert, tls_key, "http/1.1")
    if not _listen.is_loopback(host) and not (tls and token_file):
        raise InvalidError(
            f"{host} is reached by others than this machine, so visitors must be known and the page encrypted; give --token-file, "
            "--tls-cert and --tls-key"
        )
    tokens = visitors(_listen.tokens(token_file)) if token_file else {}
    key = _files.key(_files.made(_config.state()) / "page.key")
    page = Page(session.engine, Sessions(key, tokens), read_only, None if tls else LOOPBACK | {host}, __version__)
    return asyncio.run(_serve(page, host, port, tls, tells=token_file is None, opens=not no_browser))


def visitors(tokens: tuple[_listen.Token, ...]) -> Mapping[str, str]:
    """Names by what is typed into the page: `NAME:SECRET`."""
    return {f"{name}:{secret}": name for name, secret in tokens}


async def _serve(page: Page, host: str, port: int, tls: ssl.SSLContext | None, *, tells: bool, opens: bool) -> int:
    """`tells`: its token is new, so nobody could know the token otherwise."""
    from openmodal.web.server import application, serving

    with _listen.listening(host, port) as listener:
        link = _listen.url(host, listener, is_encrypted=tls is not None) + "/"
        if tells:
            link += f"#token={page.sessions.once()}"
        async with serving(application(page), listener, tls):
            click.echo(link)
            click.echo(f"# the page of the {page.engine.name} engine; Ctrl-C ends it, and sandboxes run on", err=True)
            with _opened(link) if opens and _has_screen() else nullcontext():
                await _listen.until_ended()
    return 0


def _has_screen() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _opened(link: str) -> Iterator[None]:
    """Open a browser. What it is told is a file that only this user reads: others see the arguments
    of programs, and the link's token with them."""
    file = _config.state() / f"page-{os.getpid()}.html"
    _files.place(file, f'<meta http-equiv="refresh" content="0; url={html.escape(link)}">'.encode())
    try:
        webbrowser.open(file.as_uri())
        yield
    finally:
        file.unlink(missing_ok=True)
