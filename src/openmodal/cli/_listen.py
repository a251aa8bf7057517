"""What `openmodal serve`, `dashboard` and `mcp` share: address, encryption, tokens, their end."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import signal
import socket
import ssl
from pathlib import Path

from openmodal.errors import InvalidError, reason

Token = tuple[str, str]
"""An id and a secret."""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def encryption(certificate: Path | None, key: Path | None, *protocols: str) -> ssl.SSLContext | None:
    """What --tls-cert and --tls-key say; None if they say nothing."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidError("--tls-cert and --tls-key belong together; give both")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(
            f"the certificate {certificate} with the key {key} cannot be used: {reason(error)}"
        ) from error
    context.set_alpn_protocols(protocols)
    return context


def text_of(file: Path, encoding: str) -> str:
    """What is in a token file."""
    try:
        return file.read_text(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"the token file {file} cannot be read: {reason(error)}; check the path") from error


def tokens(file: Path | None) -> tuple[Token, ...]:
    """The tokens of a file; without one, a new one."""
    if file is None:
        return (("ak-" + secrets.token_hex(8), "as-" + secrets.token_hex(16)),)
    lines = [line.split() for line in text_of(file, "utf-8").splitlines() if line.strip()]
    if not lines or any(len(line) != 2 for line in lines):
        raise InvalidError(f"each line of the token file {file} must be an id and a secret: `ak-1 as-2`")
    return tuple((id, secret) for id, secret in lines)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: any that is free."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidError(
            f"port {port} of {host} cannot be used: {error.strerror}; --port 0 takes one that is free"
        ) from error


def url(host: str, listener: socket.socket, *, is_encrypted: bool) -> str:
    """The URL of what is served at a socket."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if is_encrypted else 'http'}://{name}:{listener.getsockname()[1]}"


async def until_ended() -> None:
    """Return at Ctrl-C or SIGTERM."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
