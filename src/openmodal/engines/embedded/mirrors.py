"""Package mirrors and proxies of this machine that steps of images may reach although they are
private.

A step has a sandbox's network: the internet, and nothing private. Many machines get their packages
from a mirror or through a proxy in a private network, or on the machine. So the addresses and ports
in URLs of this machine's own configuration are let through. A recipe's commands do not count: a
Dockerfile may be a stranger's. Looks only; changes nothing.
"""

from __future__ import annotations

import functools
import re
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from openmodal import _config
from openmodal.engines import machine
from openmodal.engines.embedded import network

_URL = re.compile(r"\b(https?)://(?:[^\s/@\"']*@)?([a-z0-9._-]+)(?::(\d{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_COMMENT = ("#", ";", "//")

_SYSTEM = ("apt/sources.list", "apt/sources.list.d/*", "apt/apt.conf", "apt/apt.conf.d/*", "pip.conf")
_HOME = (".config/pip/pip.conf", ".pip/pip.conf", ".config/uv/uv.toml", ".npmrc")

_LOOPBACK = IPv4Network("127.0.0.0/8")
_KEPT_SECONDS = 60  # a build has many steps, and a name server may be slow


def private() -> tuple[str, ...]:
    """What steps may reach besides the internet ("10.0.0.5:3141"), never link-local."""
    period = int(time.monotonic() / _KEPT_SECONDS)
    named = {(host, port) for text in _configuration() for host, port in urls(text)}
    own = network.own_addresses()
    found = {(address, port) for host, port in named for address in _addresses(host, period)}
    return tuple(sorted(f"{address}:{port}" for address, port in found if _needs_a_gate(IPv4Address(address), own)))


def urls(text: str) -> set[tuple[str, int]]:
    """Host and port of each URL of the web in a configuration, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(_COMMENT))
    return {
        (host.lower(), int(port or _PORTS[scheme.lower()]))
        for scheme, host, port in _URL.findall(lines)
        if int(port or 1) in range(1, 1 << 16)
    }


def _configuration() -> list[str]:
    return [*_config.package_sources(), *_texts(Path("/etc"), _SYSTEM), *_texts(Path.home(), _HOME)]


def _texts(folder: Path, patterns: Iterable[str]) -> list[str]:
    texts: list[str] = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with suppress(OSError):
            texts.append(path.read_text("utf-8", "replace"))
    return texts


@functools.lru_cache(maxsize=256)
def _addresses(host: str, period: int) -> frozenset[str]:
    """The IPv4 addresses of a host, or none. `period` makes the cache forget."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(str(address[4][0]) for address in found)


def _needs_a_gate(address: IPv4Address, own: Iterable[str]) -> bool:
    """Whether a sandbox's network refuses an address that a mirror may have."""
    if address in _LOOPBACK:
        return True
    if _within(address, network.NEVER):
        return False
    return str(address) in own or _within(address, machine.DENIED)


def _within(address: IPv4Address, networks: Iterable[str]) -> bool:
    return any(address in IPv4Network(text) for text in networks)
