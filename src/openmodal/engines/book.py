"""The book of an engine: what every engine keeps of its sandboxes in one way. Their ids, their
names, what they are, and how they ended.

The files are in the state folder (_store.py). An engine whose sandboxes have no folder there, as on
a cluster, keeps only the ends in it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from openmodal._dual import Blocking, Sleep
from openmodal._spec import EndRecord, SandboxSpec, Status
from openmodal._store import Store
from openmodal.build.locks import lock, try_lock
from openmodal.engines import asked
from openmodal.engines.contract import Engine, IdTakenError
from openmodal.errors import AlreadyExistsError, EngineError, NotFoundError, disk_full_named

_PAUSE = 0.01


class Book(Store):
    """The sandboxes of one engine and one state folder."""

    def __init__(self, state: Path, engine: Engine, *, brief: bool = False) -> None:
        super().__init__(state, brief=brief)
        self._engine = engine

    @asynccontextmanager
    async def naming(self, spec: SandboxSpec) -> AsyncIterator[None]:
        """Hold the names of the state folder while a new sandbox takes those that its maker chose.

        Raises:
            IdTakenError: there is or was a sandbox of that id.
            AlreadyExistsError: a running sandbox of the app has the name.
        """
        if not spec.name and not spec.id:
            yield
            return
        # Never waited for in the kernel: another task of this thread may hold it.
        while not (held := try_lock(self.state / "names.lock")):
            await Sleep(_PAUSE)
        with held:
            self.check_id(spec.id)
            for id in self.ids() if spec.name else ():
                other = self.status(id)
                if other and (other.app, other.name) == (spec.app, spec.name) and await runs(self._engine, id):
                    raise taken(spec, id)
            yield

    def check_id(self, id: str) -> None:
        """Refuse an id that its maker chose, if there is or was a sandbox of that id.

        Raises:
            IdTakenError: there is.
        """
        if id and (self.folder(id).exists() or self.end(id)):
            raise IdTakenError(id)

    def as_ended(self, id: str, end: EndRecord, status: Status | None = None) -> Status:
        """What can still be said of a sandbox after its end; `status`: what it was, if known."""
        status = status or self.status(id)
        return replace(status or Status(id, id.rpartition("-")[0], "", (), 0.0, 0.0, "", self._engine.name), ended=end)

    def ends(self) -> list[Status]:
        """The sandboxes that ended lately, the oldest end first; boxes of builds are none."""
        known = [(id, self.end(id)) for id in self.ended_ids()]
        found = [self.as_ended(id, end) for id, end in known if end]
        return sorted((s for s in found if not s.build), key=lambda s: s.ended.ended if s.ended else 0.0)

    def write_tags(self, id: str, tags: tuple[tuple[str, str], ...]) -> bool:
        """Replace the tags of a sandbox that has a folder here; False if it has none."""
        return self._change(id, lambda status: replace(status, tags=tags))

    def write_tunnels(self, id: str, listeners: Mapping[int, socket.socket]) -> bool:
        """Note which listeners lead to a sandbox; False if it has no folder here, or has ended."""
        return self._change(id, lambda status: asked.forwarded(status, listeners))

    def write_expires(self, id: str, seconds: float) -> bool:
        """Note that a sandbox ends so many seconds from now; False if it has no folder here."""
        return self._change(id, lambda status: replace(status, expires=time.time() + seconds))

    def _change(self, id: str, change: Callable[[Status], Status]) -> bool:
        """Change what is noted of a sandbox, one writer after the other: each changes a part."""
        place = self.folder(id) / "status.lock"
        # Without a folder it has ended, perhaps just now.
        with contextlib.suppress(FileNotFoundError), disk_full_named(self.state), lock(place):
            if status := self.status(id):
                self.write_status(change(status))
                return True
        return False

    async def now_and_then(self, tidy: Callable[[], object]) -> None:
        """Tidy up at one creation of 256: not everybody runs `gc`, which tells what cannot be
        removed.

        To be awaited before there is anything of the sandbox: whoever fails or is interrupted here
        leaves nothing.
        """
        if os.urandom(1) == b"\0":
            with contextlib.suppress(EngineError, OSError):
                await Blocking(tidy)


def new_id(spec: SandboxSpec) -> str:
    """The id of a new sandbox."""
    return spec.id or f"{spec.app}-{os.urandom(4).hex()}"


async def runs(engine: Engine, id: str) -> bool:
    """Whether a sandbox runs, or is being created."""
    try:
        return (await engine.inspect(id)).ended is None
    except NotFoundError:
        return False


def taken(spec: SandboxSpec, id: str) -> AlreadyExistsError:
    """The refusal of a name that a running sandbox has."""
    return AlreadyExistsError(
        f"sandbox {id} of app {spec.app!r} has the name {spec.name!r}; terminate it or choose another name"
    )


def unknown(id: str) -> NotFoundError:
    """What is raised when there is no sandbox of an id, and none ended lately."""
    return NotFoundError(f"there is no sandbox {id!r}; `openmodal sandbox list` shows those that run")
