"""What changes while a container runs: the daemon pauses it, takes it off its networks and counts
what it uses, its agent keeps its lifetime.

A paused agent cannot end its sandbox. So whoever looks at a sandbox that is paused after its
lifetime lets it go on, and its agent ends it at once. A file `paused` in the sandbox's folder is
there from before the pause until after it: who finds none need not ask the daemon.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import filterfalse
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from openmodal import _binary
from openmodal._command import move_deadline
from openmodal._dual import Blocking
from openmodal._files import text
from openmodal._spec import Network, Status, Usage
from openmodal.build.locks import lock_folder
from openmodal.engines.book import Book
from openmodal.engines.contract import PROMISES
from openmodal.engines.docker import container, posture
from openmodal.engines.docker.daemon import Api, ApiError, ConflictError, Daemon, MissingError
from openmodal.engines.docker.host import Host, no_pause
from openmodal.engines.docker.networks import is_ours
from openmodal.engines.docker.owners import Owned, start_beside
from openmodal.errors import EngineError, UnsupportedError

_CUT = "cut"  # a file with the networks that the container is to have again
_PAUSED = "paused"
_PAUSE_SECONDS = 10.0
_POLL = 0.003


class Live(Owned):
    """The verbs of the Docker engine for it."""

    _book: Book
    _daemon: Daemon

    async def set_timeout(self, id: str, seconds: float) -> None:
        with await self._mine(id, "the end"):
            await Blocking(self._asked, self._unpause, id)
            await move_deadline(await self.connect(id), seconds)
            self._book.write_expires(id, seconds)

    async def pause(self, id: str) -> None:
        with await self._mine(id, "the pause"):
            await Blocking(self._asked, self._pause, id)

    async def resume(self, id: str) -> None:
        if self._mark(id).exists():
            await Blocking(self._asked, self._go_on, id, True)

    async def set_network(self, id: str, network: Network) -> None:
        if network.listed:
            raise UnsupportedError(
                f"sandbox {id} cannot get an allow list: the docker engine {PROMISES['network_lists'].refusal}"
            )
        with await self._mine(id, "the network"):
            try:
                await Blocking(self._asked, self._block if network.block else self._unblock, id)
            except (MissingError, FileNotFoundError) as error:
                raise ConnectionResetError(f"the sandbox {id} has ended") from error

    async def usage(self, id: str) -> Usage:
        usage: Usage = await Blocking(self._asked, _usage, id)
        return usage

    async def _pause_when_idle(self, id: str) -> None:
        """Start the child that does so (native/pauser.c), before the agent begins."""
        door = await self.door(id)
        if not door:
            raise no_pause()
        words = ["pause", str(door.agent), self._daemon.path, id]
        if await Blocking(start_beside, _binary.find(self._layers.path), door, words):
            raise EngineError(f"sandbox {id} cannot be paused when it is idle: no socket can be made in its folder")

    def _mark(self, id: str) -> Path:
        return self._book.folder(id) / _PAUSED

    def _pause(self, api: Api, id: str) -> None:
        try:
            self._mark(id).touch()
            _freeze(api, id)
        except (MissingError, FileNotFoundError) as error:
            raise ConnectionResetError(f"the sandbox {id} has ended") from error
        except ApiError as error:
            if not _is_paused(api, id):
                self._mark(id).unlink(missing_ok=True)
                if isinstance(error, ConflictError):
                    raise ConnectionResetError(f"the sandbox {id} has ended") from error
                raise

    def _unpause(self, api: Api, id: str) -> None:
        """For who holds the sandbox's lock."""
        _thaw(api, id)
        self._mark(id).unlink(missing_ok=True)

    def _go_on(self, api: Api, id: str, waits: bool = False) -> None:
        """For others. If somebody is pausing it at the moment, that one needs the mark; `waits`:
        until it is paused, for what was sent to it must not wait for ever."""
        while not (held := lock_folder(self._book.folder(id))):
            if not waits:
                _thaw(api, id)
            if not waits or not self._mark(id).exists():
                return
            time.sleep(_POLL)
        with held:
            self._unpause(api, id)

    def _block(self, api: Api, id: str) -> None:
        """Take it off its networks, and note them. The firewall of its network namespace stays."""
        found = _described(api, id)
        networks = [] if _began_alone(found) else [*filterfalse(is_ours, found["NetworkSettings"]["Networks"])]
        if not networks:
            return
        note = self._book.folder(id) / _CUT
        if found["HostConfig"].get("Runtime") in container.GVISOR:
            raise UnsupportedError("the network of a sandbox with runtime='gvisor' cannot be changed while it runs")
        self._unpause(api, id)
        note.write_text("\n".join({*networks, *text(note).split()}), "utf-8")
        host = Host.lately(self._daemon)
        host.hang_up(found, self._layers)
        self._cut_off(api, id)
        host.hang_up(found, self._layers)  # what was connected meanwhile

    def _cut_off(self, api: Api, id: str) -> None:
        """Take a container off the networks that are noted, also one that has not begun."""
        for name in text(self._book.folder(id) / _CUT).split():
            with suppress(MissingError):
                api.post(f"/networks/{name}/disconnect", {"Container": id, "Force": True})

    def _unblock(self, api: Api, id: str) -> None:
        note = self._book.folder(id) / _CUT
        if _began_alone(found := _described(api, id)):
            raise UnsupportedError(
                f"sandbox {id} was created with block_network=True, so it has no firewall and cannot get a network; "
                "create it with a network, and block that then"
            )
        self._unpause(api, id)
        for name in text(note).split():
            if name not in found["NetworkSettings"]["Networks"]:
                api.post(f"/networks/{name}/connect", {"Container": id})
        note.unlink(missing_ok=True)

    def _seen(self, api: Api, status: Status, *, paused: bool) -> Status:
        """The status, with what is only known while it runs."""
        if paused and (status.expires < time.time() or self._lost_owner(status.id)):
            self._go_on(api, status.id)
        elif paused:
            return replace(status, paused=True)
        return status


def _freeze(api: Api, id: str) -> None:
    over = time.monotonic() + _PAUSE_SECONDS
    while True:
        try:
            api.post(f"/containers/{id}/pause")
            return
        except ApiError as error:
            # runc gives up after some hundred looks, which on a busy machine is before a process
            # that computes had its turn to stop.
            if "unable to freeze" not in error.message or time.monotonic() > over:
                raise


def _thaw(api: Api, id: str) -> None:
    try:
        api.post(f"/containers/{id}/unpause")
    except MissingError:
        pass
    except ApiError:  # it goes on already, which daemons tell in several ways
        if _is_paused(api, id):
            raise


def _described(api: Api, id: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = api.get(f"/containers/{id}/json")
    except MissingError as error:
        raise ConnectionResetError(f"the sandbox {id} has ended") from error
    return found


def _began_alone(found: Mapping[str, Any]) -> bool:
    mode = str(found["HostConfig"]["NetworkMode"])
    return mode == "none" or is_ours(mode)


def _is_paused(api: Api, id: str) -> bool:
    with suppress(MissingError):
        return bool(api.get(f"/containers/{id}/json")["State"].get("Paused"))
    return False


def _usage(api: Api, id: str) -> Usage:
    try:
        found = api.get(f"/containers/{id}/json", size=True)
        if not found["State"]["Running"]:  # of which the daemon tells nothing but zeros
            raise ConnectionResetError(f"the sandbox {id} has ended")
        used = posture.used(found) or usage_of(api.get(f"/containers/{id}/stats", stream=False))
    except (MissingError, ConflictError) as error:
        raise ConnectionResetError(f"the sandbox {id} has ended") from error
    return replace(used, written=found.get("SizeRw"))


def usage_of(stats: Mapping[str, Any]) -> Usage:
    """What a daemon's statistics say, or those of Podman's service."""
    memory, networks = stats.get("memory_stats") or {}, (stats.get("networks") or {}).values()
    details = memory.get("stats") or {}
    idle = details.get("total_inactive_file", details.get("inactive_file", 0))
    now, peak = memory.get("usage"), memory.get("max_usage")
    cpu = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    return Usage(
        cpu=None if cpu is None else cpu / 1e9,
        memory=None if now is None else max(0, now - idle) / 2**20,
        memory_peak=peak / 2**20 if peak else None,
        processes=(stats.get("pids_stats") or {}).get("current"),
        received=sum(int(network["rx_bytes"]) for network in networks),
        sent=sum(int(network["tx_bytes"]) for network in networks),
    )
