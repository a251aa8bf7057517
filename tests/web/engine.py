"""An engine without sandboxes: it tells of those in a file, so that there may be thousands."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from openmodal._link import Stream
from openmodal._spec import EndRecord, Status, Usage
from openmodal.engines import PROMISES, Engine
from openmodal.errors import NotFoundError, SandboxNotRunningError

FILE = "OPENMODAL_TEST_SANDBOXES"
"""The variable that names the file: a list of statuses as JSON."""


class Listed(Engine):
    """Its sandboxes are what the file says."""

    name = "listed"

    @property
    def lacks(self) -> frozenset[str]:
        return frozenset(PROMISES) - {"usage", "ended", "pause"}

    async def list(self) -> list[Status]:
        return [status for status in _statuses() if not status.ended]

    async def ended(self) -> Sequence[Status]:
        return [status for status in _statuses() if status.ended]

    async def inspect(self, id: str) -> Status:
        for status in _statuses():
            if status.id == id:
                return status
        raise NotFoundError(f"there is no sandbox {id!r}")

    async def connect(self, id: str) -> Stream:
        raise SandboxNotRunningError(f"{id} is only told of")

    async def usage(self, id: str) -> Usage:
        return Usage(cpu=time.monotonic(), memory=100.0)

    async def pause(self, id: str) -> None:
        _change(id, paused=True)

    async def resume(self, id: str) -> None:
        _change(id, paused=False)

    async def stop(self, id: str) -> None:
        _change(id, ended=EndRecord("terminated", 137, time.time(), "it was terminated"))


def sandbox(id: str, **known: Any) -> Status:
    """A sandbox for the file."""
    now = time.time()
    given: dict[str, Any] = {
        "app": "app",
        "name": "",
        "tags": (),
        "created": now,
        "expires": now + 300,
        "image": "",
        "engine": "listed",
    }
    return Status(id, **(given | known))


def write(statuses: Sequence[Status]) -> None:
    """Have these sandboxes, and no others."""
    file = Path(os.environ[FILE])
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(statuses))
    new.rename(file)


def _statuses() -> list[Status]:
    return msgspec.json.decode(Path(os.environ[FILE]).read_bytes(), type=list[Status])


def _change(id: str, **known: Any) -> None:
    write([msgspec.structs.replace(s, **known) if s.id == id else s for s in _statuses()])


__all__ = ["FILE", "Listed", "sandbox", "write"]
