"""What main commands wrote, as the client's logs: of old clients the streams of a sandbox, of all
clients those of `modal container logs`.

Nobody notes when a line was written. A line is told with the time at which its sandbox began, and
is in a range of time if its sandbox lived in that range.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from modal_proto import api_pb2 as api

from openmodal import _wire
from openmodal._command import Command
from openmodal._spec import Status
from openmodal._wire import State, Want
from openmodal.errors import NotFoundError, SandboxNotRunningError
from openmodal.serve import ids
from openmodal.serve.calls import Call, serves
from openmodal.serve.door import Door
from openmodal.serve.router import Pieces, main_output

_STREAMS = {
    1: (Want.STDOUT, State.STDOUT_END, api.FILE_DESCRIPTOR_STDOUT),
    2: (Want.STDERR, State.STDERR_END, api.FILE_DESCRIPTOR_STDERR),
}
_MOST = 8 << 20
"""Bytes of a stream that are told at once: the newest."""

_LONGEST_WAIT = 55.0


class Outputs:
    """Serves the calls about what sandboxes wrote."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @serves("SandboxGetLogs")
    async def stream(self, request: Any, call: Call) -> AsyncIterator[Any]:
        """One stream of a main command, of old clients."""
        number = 1 if request.file_descriptor == api.FILE_DESCRIPTOR_STDOUT else 2
        at, rest = int(request.last_entry_id or 0), b""
        async for begins, data in main_output(self._door, ids.sandbox(request.sandbox_id), number, at, call):
            text, rest = _decoded(rest + data)
            at = begins + len(data) - len(rest)
            item = api.TaskLogs(data=text, file_descriptor=request.file_descriptor)
            yield api.TaskLogsBatch(entry_id=str(at), items=[item])
        if rest:
            item = api.TaskLogs(data=rest.decode("utf-8", "replace"), file_descriptor=request.file_descriptor)
            yield api.TaskLogsBatch(entry_id=str(at + len(rest)), items=[item])
        yield api.TaskLogsBatch(entry_id=str(at + len(rest)), eof=True)

    @serves("AppGetLogs")
    async def follow(self, request: Any, call: Call) -> AsyncIterator[Any]:
        """Both streams of one sandbox as they come; the client asks again from where it was. The
        output of an app's run is where the program reads it."""
        if not (request.sandbox_id or request.task_id):
            yield api.TaskLogsBatch(app_done=True)
            return
        (status,) = await self._asked(request)
        at, deadline = _offsets(request.last_entry_id), time.monotonic() + min(request.timeout, _LONGEST_WAIT)
        rests, going = dict.fromkeys(_STREAMS, b""), {*_STREAMS}
        while going:
            left = max(0.0, deadline - time.monotonic())
            came, over = await self._more(status, at, left, tuple(going))
            # One that has ended is answered at once, and would keep this loop turning.
            going -= over
            for number, data in came:
                text, rests[number] = _decoded(rests[number] + data)
                if item := self._item(status, number, text, request):
                    told = [at[other] - len(rests[other]) for other in _STREAMS]
                    yield api.TaskLogsBatch(task_id=_task(status), entry_id="-".join(map(str, told)), items=[item])
            if not left:
                break
        yield api.TaskLogsBatch(task_id=_task(status), app_done=not going, eof=not going)

    @serves("AppFetchLogs")
    async def fetch(self, request: Any, call: Call) -> Any:
        """The newest lines that are kept."""
        newest: deque[Any] = deque(maxlen=request.limit or None)
        for status in await self._asked(request):
            if (moment := _moment(status, request)) is None:
                continue
            for number in _STREAMS:
                for line in (await self._kept(status, number)).splitlines(keepends=True):
                    if item := self._item(status, number, line, request):
                        item.timestamp = moment
                        item.timestamp_ns = int(moment * 1e9)
                        newest.append(api.TaskLogsBatch(task_id=_task(status), items=[item]))
        return api.AppFetchLogsResponse(batches=newest)

    @serves("AppCountLogs")
    async def count(self, request: Any, call: Call) -> Any:
        """How many lines there are in each piece of a range of time."""
        counts: dict[int, list[int]] = {}
        for status in await self._asked(request):
            if (moment := _moment(status, request)) is None:
                continue
            for number in _STREAMS:
                lines = (await self._kept(status, number)).splitlines(keepends=True)
                begins = int(moment - moment % max(1, request.bucket_secs))
                told = sum(self._item(status, number, line, request) is not None for line in lines)
                counts.setdefault(begins, [0, 0])[number - 1] += told
        buckets = []
        for begins, (stdout, stderr) in sorted(counts.items()):
            bucket = api.AppCountLogsResponse.LogBucket(stdout_logs=stdout, stderr_logs=stderr)
            bucket.bucket_start_at.FromSeconds(begins)
            buckets.append(bucket)
        return api.AppCountLogsResponse(app_id=request.app_id, buckets=buckets)

    # --------------------------------------------------------------------------------------- inside

    async def _asked(self, request: Any) -> list[Status]:
        """The sandboxes whose output is asked for: one, or those of an app that run."""
        door = self._door
        if wire := request.sandbox_id or (request.task_id and ids.sandbox_of_task(request.task_id)):
            return [await door.status(wire)]
        app, run = ids.app_and_run(request.app_id)
        running = await door.run(door.engine.list())
        return [status for status in running if status.app == app and (not run or status.run == run)]

    @staticmethod
    def _item(status: Status, number: int, text: str, request: Any) -> Any | None:
        """A piece of output; None if it is not asked for."""
        stream = _STREAMS[number][2]
        source = request.file_descriptor if hasattr(request, "file_descriptor") else request.source
        if not text or source not in (api.FILE_DESCRIPTOR_UNSPECIFIED, stream):
            return None
        if hasattr(request, "since") and request.search_text not in text:
            return None
        return api.TaskLogs(data=text, file_descriptor=stream, timestamp=status.created)

    async def _kept(self, status: Status, number: int) -> str:
        """What is there now of a stream."""
        at, whole, ended = [0, 0, 0], b"", False
        while not ended:
            came, over = await self._more(status, at, 0, (number,))
            ended = number in over
            whole = b"".join((whole, *(data for _, data in came)))[-_MOST:]
            if not came:
                break
        return whole.decode("utf-8", "replace")

    async def _more(
        self, status: Status, at: list[int], wait: float, numbers: tuple[int, ...]
    ) -> tuple[list[tuple[int, bytes]], set[int]]:
        """What came behind these offsets, which move on, and the streams that have ended."""
        door = self._door
        command = Command(door.sandbox(ids.sandbox_on_wire(status.id))._agent, _wire.MAIN)
        want = Want.PEEK
        for number in numbers:
            want |= _STREAMS[number][0]
        taken = {number: Pieces() for number in numbers}
        try:
            progress = await door.run(command.io(want, at, taken, wait=int(wait * 1000)))
            came = [(number, b"".join(taken[number].parts)) for number in numbers if taken[number].parts]
            return came, {number for number in numbers if progress.state & _STREAMS[number][1]}
        except (NotFoundError, SandboxNotRunningError):
            pass
        # It has ended, or has no main command: then it is done when it ends.
        try:
            record = await door.run(door.engine.wait(status.id, wait))
        except TimeoutError:
            return [], set()
        came = []
        for number in numbers:
            kept = await door.run(door.engine.main_output(status.id, number))
            begins = record.written[number - 1] - len(kept)
            came.append((number, kept[max(0, at[number] - begins) :]))
            at[number] = record.written[number - 1]
        return came, {*numbers}


def _task(status: Status) -> str:
    return ids.task(ids.sandbox_on_wire(status.id))


def _offsets(entry: str) -> list[int]:
    """Where a client is in both streams, by the entry that it was told last."""
    stdout, _, stderr = entry.partition("-")
    return [0, int(stdout or 0), int(stderr or 0)]


def _moment(status: Status, request: Any) -> float | None:
    """The time at which lines of a sandbox are told; None if it did not live in that range."""
    since, until = (float(time.seconds + time.nanos / 1e9) for time in (request.since, request.until))
    if status.created > (until or status.created) or (status.ended and status.ended.ended < since):
        return None
    return max(status.created, since)


def _decoded(data: bytes) -> tuple[str, bytes]:
    """What of the bytes is whole, as text, and the beginning of a character behind it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


__all__ = ["Outputs"]
