"""This machine: what it has left, its pools, what `doctor` says, and what crashes left behind."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from openmodal import _config, _files, housekeeping
from openmodal.pool import Pool
from openmodal.sandbox import Sandbox
from openmodal.web.feed import Feed, Rows

if TYPE_CHECKING:
    from openmodal.web.server import Page

_PERIOD = 2.0


class Machine:
    """The feeds `machine` and `pools`, doctor and gc."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._cpu = (0, 0)
        self._feeds = {"machine": Feed(self.look, _PERIOD), "pools": Feed(self.look_at_pools, _PERIOD)}

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """What they say (GET); gc is done by POST."""
        return [
            Route("/doctor", self._doctor),
            Route("/gc", self._check),
            Route("/gc", self._collect, methods=["POST"]),
        ]

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """The machine is one row."""
        return self._feeds

    async def look(self) -> Rows:
        """What the machine has, and what of it is used."""
        running = await Sandbox.list.aio(engine=self._page.engine)
        apps = Counter(sandbox.last_status.app for sandbox in running if sandbox.last_status)
        disk = shutil.disk_usage(_config.state())
        row: dict[str, Any] = {
            "id": "machine",
            "name": os.uname().nodename,
            "kernel": os.uname().release,
            "cpus": os.cpu_count(),
            "busy": self._busy(),
            "load": os.getloadavg()[0],
            "memory": _memory(),
            "pressure": {what: _pressure(what) for what in ("cpu", "memory", "io")},
            "disk": {"total": disk.total, "used": disk.total - disk.free, "at": str(_config.state())},
            "apps": dict(apps.most_common()),
        }
        return {"machine": row}

    async def look_at_pools(self) -> Rows:
        """Sandboxes kept ready."""
        if "pools" in self._page.lacks:
            return {}
        pools = await Pool.list.aio(engine=self._page.engine)
        return {pool.name: msgspec.to_builtins(pool) | {"id": pool.name} for pool in pools}

    def _busy(self) -> float | None:
        """The share of all CPUs' time that was used since the last look."""
        now = _cpu_time()
        before, self._cpu = self._cpu, now
        passed = now[1] - before[1]
        return round((now[0] - before[0]) / passed, 3) if before[1] and passed > 0 else None

    async def _doctor(self, request: Request) -> Response:
        checks = await housekeeping.doctor.aio(engine=self._page.engine.name)
        return JSONResponse([msgspec.to_builtins(check) for check in checks])

    async def _check(self, request: Request) -> Response:
        return await self._gc(check=True)

    async def _collect(self, request: Request) -> Response:
        return await self._gc(check=False)

    async def _gc(self, *, check: bool) -> Response:
        found = await housekeeping.gc.aio(check=check, engine=self._page.engine)
        return JSONResponse({"found": list(found.removed), "failed": list(found.failed)})


def _cpu_time() -> tuple[int, int]:
    """Ticks of all CPUs that were used, and all ticks (proc(5))."""
    ticks = [int(number) for number in _files.text("/proc/stat").partition("\n")[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _memory() -> dict[str, int]:
    """Bytes."""
    lines = dict(line.split(":", 1) for line in _files.text("/proc/meminfo").splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {"total": total, "used": total - available}


def _pressure(what: str) -> float | None:
    """The percentage of the last 10 seconds in which something waited; None if the kernel tells not."""
    try:
        some = _files.text(f"/proc/pressure/{what}").partition("\n")[0]
    except OSError:  # psi=0 on the kernel's command line
        return None
    return float(some.split("avg10=")[1].split()[0]) if "avg10=" in some else None


__all__ = ["Machine"]
