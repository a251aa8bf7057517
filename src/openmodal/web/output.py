"""What a command of a sandbox writes, as Server-Sent Events, live.

Nothing is taken from whoever reads it, and nothing is used: to look on renews no lease.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Mapping

import msgspec

from openmodal import _wire
from openmodal._command import Command, Spool
from openmodal._dual import run_async
from openmodal._wire import Progress, Want
from openmodal.errors import Error, NotFoundError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.web.feed import ALIVE

_PEEK = Want.STDOUT | Want.STDERR | Want.EXIT | Want.PEEK
_WAIT_MS = 10_000


async def output(sandbox: Sandbox, id: bytes) -> AsyncIterator[bytes]:
    """What is kept of its output and what comes, then how it ended.

    What its program has read is not there any more; the events tell how many bytes are missing.
    """
    writing = _Writing(sandbox, id)
    try:
        while True:
            progress, events = await writing.next()
            for event in events:
                yield event
            if progress.record and not events:
                yield _event({"ended": msgspec.to_builtins(progress.record), "code": progress.record.returncode})
                return
            if not events:
                yield ALIVE
    except NotFoundError:
        yield _event({"none": "Its output is not kept: the program that ran it has read it."})
    except SandboxNotRunningError as error:
        for event in await writing.kept():
            yield event
        yield _event({"none": str(error)})
    except Error as error:
        yield _event({"none": str(error)})


class _Writing:
    """The two streams of a command, as far as they were looked at."""

    def __init__(self, sandbox: Sandbox, id: bytes) -> None:
        self._sandbox = sandbox
        self._command = Command(sandbox._watcher, id)
        self._offsets = [0, 0, 0]
        # A character may come in two pieces.
        self._decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in (1, 2)}

    async def next(self) -> tuple[Progress, list[bytes]]:
        """What has come, or nothing after some seconds."""
        spools = {1: Spool(), 2: Spool()}
        progress = await run_async(self._command.io(_PEEK, self._offsets, spools, wait=_WAIT_MS))
        return progress, [
            self._piece(stream, spool.read(0, spool.size), sum(gap.size for gap in spool.gaps))
            for stream, spool in spools.items()
            if spool.size or spool.gaps
        ]

    async def kept(self) -> list[bytes]:
        """What is behind that, of a main command whose sandbox has ended."""
        if self._command.id != _wire.MAIN:
            return []
        found = []
        for stream in (1, 2):
            piece = await self._sandbox.logs.aio(stream, self._offsets[stream])
            if piece.data:
                found.append(self._piece(stream, piece.data, piece.at - self._offsets[stream]))
        return found

    def _piece(self, stream: int, data: bytes, missing: int) -> bytes:
        return _event({"stream": stream, "text": self._decoders[stream].decode(data), "missing": missing})


def _event(value: Mapping[str, object]) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)


__all__ = ["output"]
