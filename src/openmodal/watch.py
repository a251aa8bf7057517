"""Watch: the changes of files in a sandbox, as they happen."""

from __future__ import annotations

import math
import time
import weakref
from dataclasses import dataclass
from typing import Any, Literal, cast

from openmodal import _wire
from openmodal._agent import Agent
from openmodal._command import file_refusal
from openmodal._dual import DualContext, DualIterator, dual, within
from openmodal._link import Link, LinkLost
from openmodal._wire import Kind


@dataclass(frozen=True, slots=True)
class FileEvent:
    """Something that changed.

    Attributes:
        kind: "created", "modified" (content, or owner, mode and times), "deleted", "moved", or
            "overflow": changes were lost, so look at all of it again.
        path: what changed, beginning as the path that is watched.
        is_dir: whether it is a folder.
        new_path: where it was moved to; "" for other kinds. What was moved out of what is watched
            is "deleted", and what was moved into it "created".
    """

    kind: Literal["created", "modified", "deleted", "moved", "overflow"]
    path: str
    is_dir: bool = False
    new_path: str = ""


class Watch(DualIterator[FileEvent], DualContext):
    """The changes of a file or folder, in the order in which they happened; a `with` block ends it.

    The iteration ends when nothing happened for the watch's `timeout`, and after the event that the
    file or folder itself was deleted. Who reads too slowly loses changes, and gets an "overflow"
    for them. What is made in a new folder at once may come twice.
    """

    def __init__(self, agent: Agent, request: bytes, path: str, timeout: float | None) -> None:
        self._agent = agent
        self._request = request
        self._path = path
        self._timeout = timeout
        self._closed = False
        self._link: Link | None = None
        self._closer: weakref.finalize[Any, Any] | None = None

    async def _open(self) -> None:
        if self._link is None:
            self._link = await self._agent.dedicate(self._begin)
            self._closer = weakref.finalize(self, self._link.close)
            self._closer.atexit = False

    async def _begin(self, link: Link) -> Link:
        await link.send(self._request)
        kind, payload = await link.expect(Kind.OK)
        if kind == Kind.ERROR:
            raise file_refusal(payload, self._path)
        return link

    @dual
    async def close(self) -> None:
        """End it; what has not been read is lost."""
        await self._close()

    async def _close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        self._link = None
        if self._closer:
            self._closer()

    async def _next(self) -> FileEvent:
        while not self._closed:
            await self._open()
            patience = math.inf if self._timeout is None else self._timeout
            deadline = time.monotonic() + patience
            try:
                kind, payload = await within(patience, cast("Link", self._link).expect(Kind.EVENT, Kind.END))
            except LinkLost:  # also where the wait was over: a link cannot tell
                if time.monotonic() >= deadline:
                    break
                self._drop()
                await self._open()
                return FileEvent("overflow", self._path)  # nobody knows what was missed
            if kind != Kind.EVENT:
                break
            return self._event(_wire.decode_event(payload))
        await self._close()
        raise EOFError

    def _event(self, event: _wire.Event) -> FileEvent:
        return FileEvent(
            kind=_KINDS[event.change],
            path=self._whole(event.path),
            is_dir=event.is_folder,
            new_path=self._whole(event.target) if event.target else "",
        )

    def _whole(self, path: bytes) -> str:
        return f"{self._path.rstrip('/')}/{path.decode('utf-8', 'surrogateescape')}" if path else self._path

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied it is another watch of the same, which begins when it is read."""
        return type(self), (self._agent, self._request, self._path, self._timeout), {"_closed": self._closed}

    def __repr__(self) -> str:
        return f"<Watch of {self._path}{' (closed)' if self._closed else ''}>"


_KINDS: dict[_wire.Change, Literal["created", "modified", "deleted", "moved", "overflow"]] = {
    _wire.Change.CREATED: "created",
    _wire.Change.MODIFIED: "modified",
    _wire.Change.DELETED: "deleted",
    _wire.Change.MOVED: "moved",
    _wire.Change.OVERFLOW: "overflow",
}

__all__ = ["FileEvent", "Watch"]
