"""Ports of this machine that lead into a sandbox, held by a child of its supervisor."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping

from openmodal._store import Store
from openmodal.engines import asked
from openmodal.engines.embedded import launch

_SECONDS = 10.0
_AT_ONCE = 4  # descriptors that a request can bring


async def to(store: Store, id: str, listeners: Mapping[int, socket.socket]) -> None:
    """See `Engine.forward`."""
    ports = iter(listeners.items())
    while some := dict(itertools.islice(ports, _AT_ONCE)):
        line = f"forward {' '.join(map(str, some))}"
        await launch.request(store.folder(id), line, [each.fileno() for each in some.values()], _SECONDS)
    if status := store.status(id):
        store.write_status(asked.forwarded(status, listeners))
