"""Ports of this machine that lead into a sandbox, held by a child of its supervisor."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping

from openmodal.engines.book import Book
from openmodal.engines.embedded import launch

_SECONDS = 10.0
_AT_ONCE = 4  # descriptors that a request can bring


async def to(book: Book, id: str, listeners: Mapping[int, socket.socket]) -> None:
    """See `Engine.forward`."""
    ports = iter(listeners.items())
    while some := dict(itertools.islice(ports, _AT_ONCE)):
        line = f"forward {' '.join(map(str, some))}"
        await launch.request(book.folder(id), line, [each.fileno() for each in some.values()], _SECONDS)
    book.write_tunnels(id, listeners)
