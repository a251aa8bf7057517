"""How a container ends: how is kept, with what its main command said last, and it is cleared away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from openmodal import _ends
from openmodal._dual import Blocking
from openmodal._spec import EndRecord, Referenced
from openmodal._store import KEEP_ENDED_SECONDS
from openmodal.build.locks import lock_folder
from openmodal.engines.contract import MONTH
from openmodal.engines.docker import container, generations, links, networks
from openmodal.engines.docker.daemon import Api, ConflictError, MissingError
from openmodal.engines.docker.live import Live
from openmodal.errors import EngineError

_LAST_WORDS_SECONDS = 5


class Ending(Live):
    """What the verbs that end a sandbox, or see that it has ended, do at the daemon."""

    _home: str

    async def published(self) -> Mapping[str, str]:
        # What has ended unseen may be the image that somebody looks for.
        await Blocking(self._asked, self._keep_unseen)
        return await super().published()

    def _stop(self, id: str) -> None:
        if self._book.end(id) and not self._book.folder(id).exists():
            return
        with self._daemon.open() as api:
            if self._keeps(id):
                self._stop_and_keep(api, id)
                return
            found = self._found(api, id)
            if found and container.status_of(found["Config"]["Labels"] or {}) is None:
                return  # a container of that name that is none of ours
            # While it is reset it has no container, or one that has not begun, but runs.
            if found["State"]["Running"] or _is_new(found) if found else self._book.alive(id):
                end = self._last_words(api, id, found) if found and container.has_main(found) else _terminated()
                # Noted before it is removed: whoever sees its links break asks why.
                noted = self._book.write_end(id, end)
                self._clear(api, id)
                if not noted and not self._book.write_end(id, end):
                    raise self._book.not_noted(id)
            elif found or self._book.folder(id).exists():
                self._collect(api, id)

    def _stop_and_keep(self, api: Api, id: str) -> None:
        """End a sandbox whose files become an image.

        Raises:
            EngineError: they have not.
        """
        # Held until its files are kept: a reset would have others.
        with self._claimed(id):
            with contextlib.suppress(MissingError, ConflictError):  # somebody else ends it
                if (self._found(api, id) or {"State": {}})["State"].get("Paused"):
                    self._unpause(api, id)
                api.post(f"/containers/{id}/stop", t=_LAST_WORDS_SECONDS)
            end = self._kept_once(api, id)
        if end.unkept:
            raise EngineError(f"sandbox {id} has ended, but its files were not kept: {end.unkept}")

    def _last_words(self, api: Api, id: str, found: Mapping[str, Any]) -> EndRecord:
        """Have the agent of a described container end, and keep what nobody has read of its main
        command's output; how it ended."""
        with contextlib.suppress(MissingError, ConflictError):  # somebody else ends it
            if found["State"].get("Paused"):
                self._go_on(api, id)
            api.post(f"/containers/{id}/stop", t=_LAST_WORDS_SECONDS)
            end, outputs = container.end_of({}, links.log(api, id), time.time())
            self._book.write_outputs(id, outputs[1], outputs[2])
            if end.reason != "lost":
                return end
        return _terminated()

    def _collect(self, api: Api, id: str) -> EndRecord:
        """Keep how a container ended, what it said, and its files if so asked, and clear it away.
        Others may do so, too."""
        if not self._keeps(id):
            return self._kept_and_cleared(api, id)
        with self._claimed(id):
            return self._kept_once(api, id)

    def _kept_once(self, api: Api, id: str) -> EndRecord:
        """The same of a claimed sandbox: who noted its end may have died before clearing."""
        if end := self._book.end(id):
            self._clear(api, id)
            return end
        return self._kept_and_cleared(api, id)

    def _kept_and_cleared(self, api: Api, id: str) -> EndRecord:
        end, noted = _ends.ended("lost", 137, time.time(), "its container was removed by hand"), True
        if found := self._found(api, id):
            # Whoever removes it has noted more than we can.
            with contextlib.suppress(MissingError, ConflictError):
                at = datetime.fromisoformat(found["State"]["FinishedAt"]).timestamp()
                end, outputs = container.end_of(found["State"], links.log(api, id), at)
                end = self._with_owner(id, end)
                noted = self._book.write_outputs(id, outputs[1], outputs[2])
        end = self._with_image(api, id, end) if self._keeps(id) else end
        if not noted or not self._book.write_end(id, end):
            return end  # the container stays, and tells the same again
        self._clear(api, id)
        return self._book.end(id) or end

    def _keeps(self, id: str) -> bool:
        """Whether a sandbox that is to be cleared away is to become an image."""
        status = self._book.status(id)
        return bool(status and status.snapshot_on_end) and self._book.folder(id).exists()

    @contextlib.contextmanager
    def _claimed(self, id: str) -> Iterator[None]:
        """Nobody else clears the sandbox away during the block, or resets it; it counts as running."""
        folder = self._book.folder(id)
        while not (held := lock_folder(folder)) and folder.exists():
            time.sleep(0.01)
        with held or contextlib.nullcontext():
            yield

    def _with_image(self, api: Api, id: str, end: EndRecord) -> EndRecord:
        """The record, with the image that a container's files have become, or why there is none."""
        status, made = self._book.status(id), self._book.made(id, Referenced)
        try:
            if not status or not made:
                raise EngineError("what it was made of is not known here any more")
            over = time.time() + MONTH
            key, root = generations.commit(self._daemon, self._layers, id, made.root, over, None)
            generations.publish(api, self._layers, status.snapshot_on_end, root)
            self._settle()
        except (EngineError, ConnectionError) as error:
            return replace(end, unkept=" ".join(str(error).split()))
        return replace(end, snapshot=key)

    def _keep_unseen(self, api: Api) -> None:
        wanted = {**container.labels(f"{container.HOME}={self._home}"), "status": ["exited"]}
        for id in container.names(api.get("/containers/json", all=True, filters=wanted)):
            if self._keeps(id) and not self._book.alive(id):
                self._collect(api, id)

    def _let_end(self, api: Api, known: Mapping[str, Mapping[str, Any]]) -> None:
        """Those whose time is over while they are paused, and those whose owner has ended."""
        for id, item in known.items():
            if item["State"] == "running":
                self._end_unowned(api, id)
            if item["State"] == "paused" and (status := self._book.status(id)):
                self._seen(api, status, paused=True)

    def _has_begun(self, api: Api, id: str) -> bool:
        """Whether it runs after all: it may have been created, or reset, since the list."""
        alive = self._book.alive(id)  # first: whoever holds it lets it go when its container runs
        found = self._found(api, id)
        return alive or bool(found and self._runs(id, found["State"])) or self._book.alive(id)

    def _let_go(self, api: Api, found: Mapping[str, Mapping[str, Any]]) -> None:
        for id, item in found.items():
            if not container.runs(item) and self._may_collect(id, item) and not self._has_begun(api, id):
                self._collect(api, id)

    def _may_collect(self, id: str, item: Mapping[str, Any]) -> bool:
        """Ours, unless it is being created; anybody's whose time was over long ago."""
        if item["Labels"].get(container.HOME) == self._home:
            return not self._book.alive(id)
        status = container.status_of(item["Labels"])
        return status is None or status.expires + KEEP_ENDED_SECONDS < time.time()

    def _runs(self, id: str, state: Mapping[str, Any]) -> bool:
        """Whether it runs, and was not started again by hand: that agent would know nothing."""
        return bool(state["Running"]) and links.pid(self._book.folder(id)) in (0, state["Pid"])

    def _clear(self, api: Api, id: str) -> None:
        self._remove(id, api)
        folder = self._book.folder(id)
        with contextlib.suppress(FileNotFoundError):
            self._book.remove(folder)

    def _remove(self, id: str, api: Api | None = None) -> None:
        """Remove the container and its volumes; return when it is gone."""
        made = self._book.made(id, Referenced)
        with contextlib.nullcontext(api) if api else self._daemon.open() as opened:
            while True:
                try:
                    opened.delete(f"/containers/{id}", force=True, v=True)
                    break
                except MissingError:
                    break
                except ConflictError:  # somebody else is removing it
                    time.sleep(0.01)
            if made:
                networks.leave(opened, self._home, made.spec.network.shared)

    def _found(self, api: Api, id: str) -> dict[str, Any] | None:
        self._book.folder(id)  # refuses what cannot be an id
        try:
            found: dict[str, Any] = api.get(f"/containers/{id}/json")
        except MissingError:
            return None
        return found


def _is_new(found: Mapping[str, Any]) -> bool:
    return str(found["State"].get("Status")) in ("created", "configured", "initialized")


def _terminated() -> EndRecord:
    return _ends.ended("terminated", 137, time.time())
