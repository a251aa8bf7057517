"""What changes while a sandbox runs: its supervisor is asked, and its control groups are read."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from openmodal import _binary
from openmodal._dual import Blocking
from openmodal._spec import Change, Info, Layered, Network, Status, Usage
from openmodal._wire import milliseconds
from openmodal.engines import groups, posture
from openmodal.engines.book import Book
from openmodal.engines.contract import Engine
from openmodal.engines.embedded import cgroup, egress, host, launch
from openmodal.engines.embedded.generations import Generations
from openmodal.engines.embedded.posture import moved
from openmodal.errors import UnsupportedError

PAUSED = "paused"  # as native/live.c calls it

_SECONDS = 30.0  # a helper of a plain user's network may take 20


class Live(Engine):
    """The verbs of the embedded engine for it."""

    _book: Book
    _generations: Generations

    async def set_timeout(self, id: str, seconds: float) -> None:
        await self._request(id, f"deadline {milliseconds(seconds)}")
        self._book.write_expires(id, seconds)
        await Blocking(self._generations.keep, id, time.time() + seconds)

    async def pause(self, id: str) -> None:
        await self._request(id, "pause")

    async def resume(self, id: str) -> None:
        if self._is_paused(id):
            await self._request(id, "resume")

    async def set_network(self, id: str, network: Network) -> None:
        folder = self._book.folder(id)
        if (folder / egress.POLICY).exists():
            with egress.rewritten(network, folder, host.gates_resolvers()):
                await self._request(id, "network on")
            return
        if network.listed:
            raise UnsupportedError(
                f"sandbox {id} was created without an allow list and cannot get one; create it with "
                "outbound_domain_allowlist=[…] or outbound_cidr_allowlist=[…], which can be changed"
            )
        if network.block:
            await self._request(id, "network off")
            return
        router = await host.router(_binary.find(self._book.state))
        machine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._request(id, " ".join(("network on", *(path for _, path in router))), (machine,))
        finally:
            os.close(machine)

    async def _reaching(self, id: str, info: Info) -> Info:
        """The same, also of a sandbox that reaches its neighbours only."""
        made = self._book.made(id, Layered)
        if info.network == "none" or not made or not made.spec.network.shared:
            return info
        return replace(info, network="neighbours") if await self._request(id, "network") == "off" else info

    async def usage(self, id: str) -> Usage:
        folder = self._book.folder(id)
        supervisor = await launch.supervisor(folder)
        written = int(await self._request(id, "written"))
        with posture.while_it_runs(id):
            found = groups.used(host.hierarchies(), f"{cgroup.PARENT}/{id}")
            received, sent = moved(supervisor)
        # Its gate sends and receives for it, as a part of the machine.
        if (folder / egress.POLICY).exists():
            return replace(found, written=written)
        return replace(found, written=written, received=received, sent=sent)

    async def diff(self, id: str) -> Sequence[Change]:
        told = os.memfd_create("diff", os.MFD_CLOEXEC)
        try:
            await self._request(id, "diff", (told,), None)
            found: Sequence[Change] = await Blocking(_changes, told)
            return found
        finally:
            os.close(told)

    def _seen(self, status: Status) -> Status:
        """The status, with what is only known while it runs."""
        return replace(status, paused=True) if self._is_paused(status.id) else status

    def _is_paused(self, id: str) -> bool:
        return self._book.has(id, PAUSED)

    async def _request(self, id: str, line: str, fds: Sequence[int] = (), timeout: float | None = _SECONDS) -> str:
        return await launch.request(self._book.folder(id), line, fds, timeout)


_KINDS: dict[str, Literal["added", "changed", "deleted"]] = {"A": "added", "C": "changed", "D": "deleted"}
_TYPES: dict[str, Literal["file", "directory", "symlink", "other"]] = {
    "f": "file",
    "d": "directory",
    "l": "symlink",
    "o": "other",
}


def _changes(fd: int) -> list[Change]:
    """What `diff` wrote (native/diff.h)."""
    found: list[Change] = []
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        for entry in file.read().split(b"\0")[:-1]:
            head, size, path = os.fsdecode(entry).split(" ", 2)
            found.append(Change(path, _KINDS[head[0]], _TYPES[head[1]], int(size)))
    return sorted(found, key=lambda change: change.path)
