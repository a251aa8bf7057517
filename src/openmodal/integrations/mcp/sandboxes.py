"""The sandboxes of one MCP server: made within its operator's limits, and found by their ids.

A server sees no sandbox but its own. What a server over stdio made ends with it, however it ends;
what a server over HTTP made stays until its timeout, and is there again after a restart.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmodal.app import App
from openmodal.engines import Engine
from openmodal.errors import Error, InvalidError, NotFoundError
from openmodal.image import Image
from openmodal.integrations import ends_with_us
from openmodal.interpreter import Interpreter
from openmodal.process import Process
from openmodal.sandbox import Sandbox
from openmodal.tunnel import Forward

APP = App("mcp")

LEASE = 120.0
"""Seconds, on engines that do not see that a server was killed: how long its sandboxes outlive it."""


@dataclass(frozen=True)
class Limits:
    """What the operator allows; no tool can change it.

    Attributes:
        image: of sandboxes for which no other is asked.
        sandboxes: how many run at a time.
        lifetime: seconds that each lives at most.
        block_network: whether none has a network. Then, and with a list of domains in `options`, no
            image but `image` is used, and nothing is installed in it.
        local: the folder of this machine below which files are copied; None: none are.
        options: further arguments of `Sandbox.create`.
    """

    image: Image
    sandboxes: int = 16
    lifetime: float = 3600.0
    block_network: bool = False
    local: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Room:
    """A sandbox, and what of it stays from one call to the next."""

    sandbox: Sandbox
    forwards: dict[int, Forward] = field(default_factory=dict)
    interpreter: Interpreter | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sandboxes:
    """Those of one server."""

    def __init__(self, engine: Engine, limits: Limits, *, stay: bool) -> None:
        """`stay`: whether they outlive this process."""
        self.limits = limits
        self._engine = engine
        self._tags = {"server": "http" if stay else secrets.token_hex(8)}
        self._end = {} if stay else ends_with_us({**limits.options, "engine": engine}, LEASE)
        self._rooms: dict[str, Room] = {}
        self._starting = 0
        self._defaults: dict[str, Room] = {}
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._processes: dict[str, tuple[str, Process[str]]] = {}

    async def create(
        self,
        image: str = "",
        apt_packages: Sequence[str] = (),
        pip_packages: Sequence[str] = (),
        timeout: float | None = None,
        network: bool = True,
    ) -> Room:
        """Create a sandbox within the limits.

        Raises:
            InvalidError: it would be beyond them.
        """
        made_of = self._image(image, apt_packages, pip_packages)
        options: dict[str, Any] = {**self.limits.options, **self._end}
        if self.limits.block_network or not network:
            options = {name: value for name, value in options.items() if not name.startswith("outbound_")}
            options["block_network"] = True
        seconds = min(timeout or self.limits.lifetime, self.limits.lifetime)
        await self._have_place()
        self._starting += 1
        try:
            sandbox = await Sandbox.create.aio(
                app=APP, image=made_of, tags=self._tags, timeout=seconds, engine=self._engine, **options
            )
            self._rooms[sandbox.id] = Room(sandbox)
        finally:
            self._starting -= 1
        return self._rooms[sandbox.id]

    async def get(self, id: str, session: str) -> Room:
        """The sandbox of that id; "": the session's own, which is made when it is first needed.

        Raises:
            NotFoundError: this server has none of that id.
        """
        if id:
            return self._rooms.get(id) or await self._found(id)
        async with self._making[session]:
            if session not in self._defaults:
                self._defaults[session] = await self.create()
            return self._defaults[session]

    async def running(self) -> list[Sandbox]:
        """Those that run; what is kept of others is forgotten."""
        before = set(self._rooms)
        found = await Sandbox.list.aio(app=APP, tags=self._tags, engine=self._engine)
        for id in before.difference(sandbox.id for sandbox in found):
            self.forget(id)
        for sandbox in found:
            self._rooms.setdefault(sandbox.id, Room(sandbox))
        return found

    def forget(self, id: str) -> None:
        """Keep nothing of a sandbox that has ended."""
        self._rooms.pop(id, None)
        self._defaults = {session: room for session, room in self._defaults.items() if room.sandbox.id != id}
        self._processes = {name: kept for name, kept in self._processes.items() if kept[0] != id}

    def keep_process(self, room: Room, process: Process[str]) -> str:
        """Keep a command that runs on, and return by what `process` finds it."""
        name = process.id[:12]
        self._processes[name] = (room.sandbox.id, process)
        return name

    def process(self, name: str) -> Process[str]:
        """The command of that name.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self._processes:
            raise NotFoundError(
                f"there is no process {name!r}; exec_command with background=true gives one, and it is gone "
                "when its sandbox has ended"
            )
        return self._processes[name][1]

    async def renew(self) -> None:
        """Keep leases for as long as this runs."""
        while "lease" in self._end:
            await asyncio.sleep(LEASE / 4)
            for room in [*self._rooms.values()]:
                with suppress(Error, OSError):
                    await room.sandbox.renew.aio()

    async def close(self) -> None:
        """End all of them."""
        running = await self.running()
        await asyncio.gather(*(sandbox.terminate.aio() for sandbox in running))

    async def _found(self, id: str) -> Room:
        await self.running()
        if id not in self._rooms:
            raise NotFoundError(f"this server has no running sandbox {id!r}; list_sandboxes tells which it has")
        return self._rooms[id]

    async def _have_place(self) -> None:
        if len(self._rooms) + self._starting >= self.limits.sandboxes:
            await self.running()
        if len(self._rooms) + self._starting >= self.limits.sandboxes:
            raise InvalidError(
                f"{self.limits.sandboxes} sandboxes run already, which is the limit of this server; "
                "end one with terminate_sandbox"
            )

    def _image(self, image: str, apt_packages: Sequence[str], pip_packages: Sequence[str]) -> Image:
        # A package is installed by a build, and no allow list holds for the network of a build.
        is_limited = self.limits.block_network or "outbound_domain_allowlist" in self.limits.options
        if is_limited and (image or apt_packages or pip_packages):
            raise InvalidError(
                "the operator of this server has limited the network, so no image is fetched and no package "
                "installed; leave out image, apt_packages and pip_packages"
            )
        made = Image.from_registry(image) if image else self.limits.image
        return made.apt_install(*apt_packages).pip_install(*pip_packages)


__all__ = ["APP", "Limits", "Room", "Sandboxes"]
