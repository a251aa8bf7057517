"""`openmodal mcp`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import click

from openmodal.cli import _ending, _listen
from openmodal.cli._session import Session, engine_options, pass_session
from openmodal.cli._types import DURATION, MEBIBYTES
from openmodal.cli.image import image_option, named
from openmodal.errors import InvalidError, extra

HOST = "127.0.0.1"
SHORTEST_TOKEN = 16


@click.command()
@click.option("--http", metavar="[HOST:]PORT", help="Serve streamable HTTP there; left out: stdio, for one client.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A file with the token that clients must give.")
@click.option("--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="A web page that may ask; repeatable.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="A certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@image_option
@click.option("--max-sandboxes", type=click.IntRange(1), default=16, show_default=True, help="That run at a time.")
@click.option("--max-lifetime", type=DURATION, default=3600.0, metavar="TIME", help="Of one sandbox; an hour.")
@click.option("--cpu", type=float, metavar="CORES", help="How many cores a sandbox may use.")
@click.option("--memory", type=MEBIBYTES, metavar="SIZE", help="How much memory a sandbox may use: 512, 2g.")
@click.option("--disk", type=MEBIBYTES, metavar="SIZE", help="How much disk a sandbox may use: 512, 10g.")
@click.option("--runtime", type=click.Choice(("native", "gvisor")), help="What runs a sandbox's processes.")
@click.option("--block-network", is_flag=True, help="No network for any sandbox, and no other image.")
@click.option("--allow-domain", "domains", multiple=True, metavar="NAME", help="Only these are reached; repeatable.")
@click.option("--allow-local", "folder", type=click.Path(path_type=Path), help="A folder for upload and download.")
@engine_options
@pass_session
def mcp(
    session: Session,
    /,
    http: str | None,
    token_file: Path | None,
    origins: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    image: str | None,
    max_sandboxes: int,
    max_lifetime: float,
    block_network: bool,
    domains: tuple[str, ...],
    folder: Path | None,
    **resources: Any,
) -> None:
    """Give chat clients sandboxes as tools, over the Model Context Protocol.

    The limits are those of these options: no model can change them.
    """
    from openmodal import Image

    try:
        from openmodal.integrations.mcp import server
        from openmodal.integrations.mcp.sandboxes import Limits
    except ModuleNotFoundError as error:
        raise InvalidError(f"`openmodal mcp` needs the package {error.name}; {extra('mcp')}") from error
    options = {name: value for name, value in resources.items() if value is not None}
    if domains:
        options["outbound_domain_allowlist"] = domains
    limits = Limits(
        image=named(image, session.engine) or Image.debian_slim(),
        sandboxes=max_sandboxes,
        lifetime=max_lifetime,
        block_network=block_network,
        local=_allowed(folder),
        options=options,
    )
    if http is None:
        _end_at_once()
        asyncio.run(server.serve_stdio(session.engine, limits))
        return
    host, port = _address(http)
    token, tls = _token(token_file), _listen.encryption(tls_cert, tls_key)
    _safe(host, has_token=token is not None, is_encrypted=tls is not None)
    with _listen.listening(host, port) as listener:
        click.echo(f"{_listen.url(host, listener, is_encrypted=tls is not None)}/mcp")
        click.echo("# Ctrl-C ends the server; its sandboxes run on until their timeouts", err=True)
        sys.stdout.flush()
        asyncio.run(server.serve_http(session.engine, limits, listener, token=token, origins=origins, tls=tls))


def _end_at_once() -> None:
    """A thread reads stdin, and would hold Ctrl-C and SIGTERM up until the next line. The sandboxes
    end with this process anyway."""
    for number in (signal.SIGINT, *_ending.heeded()):
        signal.signal(number, signal.SIG_DFL)


def _allowed(folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise InvalidError(f"--allow-local must be a folder that is there, not {folder}")
    return folder and folder.resolve()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"{text!r} is not [HOST:]PORT; write 8000, or 127.0.0.1:8000")
    return host.strip("[]") or HOST, int(port)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    token = _listen.text_of(file, "ascii").strip()
    if len(token) < SHORTEST_TOKEN or len(token.split()) != 1:
        raise InvalidError(
            f"the token file {file} must have one word of {SHORTEST_TOKEN} characters or more; "
            "`openssl rand -hex 16` makes one"
        )
    return token


def _safe(host: str, *, has_token: bool, is_encrypted: bool) -> None:
    """Refuse to serve other machines without a token, or in the clear."""
    if not _listen.is_loopback(host) and not (has_token and is_encrypted):
        raise InvalidError(
            f"{host} is reached by others than this machine, who could run commands; give --token-file, --tls-cert "
            f"and --tls-key, or serve at {HOST} behind a proxy that asks for a password"
        )
