"""A box for one step of an image: a sandbox's network and private mirrors, most of the memory, and it dies with the process that builds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openmodal import _binary, _config, _wire
from openmodal._agent import Agent
from openmodal._command import Command
from openmodal._dual import Blocking
from openmodal._spec import ExecSpec, Network, OutputGap, Status
from openmodal._wire import FileOp, Flag
from openmodal.build import RunRequest
from openmodal.engines import machine
from openmodal.engines.asked import Limits
from openmodal.engines.embedded import cgroup, egress, host, launch, mirrors, network, plan
from openmodal.errors import DiskFullError, EngineError

if TYPE_CHECKING:
    from openmodal.engines.embedded.engine import Embedded

TIMEOUT = 4 * 3600.0

MOST_ON_DISK = 64 << 30
"""What a step may write: more than any layer, for a recipe is the user's own. On a disk that is nearly full a GiB is enough to end it."""

_INTERNET = Network(cidrs=("0.0.0.0/0",), domains=("*",))


class Booth:
    """One step."""

    def __init__(self, engine: Embedded, request: RunRequest) -> None:
        self._engine = engine
        self._request = request
        self._id = f"build-{os.urandom(4).hex()}"
        self._agent = Agent(lambda: engine.connect(self._id), self._why)

    async def run(self) -> int:
        """Run the step and return its exit code."""
        request, engine = self._request, self._engine
        now = time.time()
        status = Status(self._id, "build", "", (), now, now + TIMEOUT, "", "embedded", build=True)
        lowers, env = host.over_trust(engine.layers, request.layers, request.env)
        with engine.store.new(status) as folder:
            net, servers = await self._net(folder)
            await launch.start(_binary.find(engine.store.state), self._box(folder, lowers, env, net, servers))
        try:
            await self._tell_of_network()
            if request.workdir:
                mkdir = _wire.file(FileOp.MKDIR, _wire.encode(request.workdir), flags=1)
                await Command(self._agent, _wire.MAIN).ask(mkdir)
            hidden = tuple(request.secrets.variables.items())
            spec = ExecSpec(request.argv, hidden, request.user, request.workdir, flags=Flag.ATTACHED)
            sink = _Output(request)
            _, record = await Command(self._agent, os.urandom(16)).run(spec, None, {1: sink, 2: sink})
            return record.returncode
        finally:
            self._agent.close()
            await engine.stop(self._id)
            engine.store.forget(self._id)

    async def _why(self, error: Exception) -> None:
        end = await self._engine.wait(self._id)
        if end.reason == "disk":
            raise DiskFullError(_filled(self._engine.store.state)) from error
        raise EngineError(f"the box of a build step ended ({end.reason}): {end.text or error}") from error

    async def _net(self, folder: Path) -> tuple[plan.Lines, Sequence[str]]:
        """What the step reaches, and its name servers: the internet, as a sandbox does. Where mirrors are private, through a gate."""
        if private := await Blocking(mirrors.private):
            lines = egress.prepare(_INTERNET, folder, folder / "egress.log", machine.own_resolvers(), private)
            return [*lines, *host.in_machines_network()], host.resolvers(_INTERNET)
        lines = await host.net(_binary.find(self._engine.store.state), degraded=_may_lack_network())
        return lines, host.resolvers(Network())

    async def _tell_of_network(self) -> None:
        """A step's failure is often that of its network: say in its output that it has none."""
        if _may_lack_network() and (await self._engine.info(self._id)).network == "none":
            self._request.output(b"this step has no network, as OPENMODAL_ALLOW_DEGRADED allows\n")

    def _box(
        self, folder: Path, lowers: Sequence[str], env: Mapping[str, str], net: plan.Lines, servers: Sequence[str]
    ) -> plan.Box:
        request = self._request
        limits = Limits(memory=host.most_of_memory(), cpu=0, pids=8192)
        return plan.Box(
            id=self._id,
            folder=folder,
            lowers=lowers,
            upper=request.upper,
            work=request.work,
            record=str(self._engine.store.ended / self._id),
            keep=True,
            ids=host.ids(),
            net=net,
            servers=network.resolv_conf(servers),
            timeout=TIMEOUT,
            limits=limits,
            groups=host.groups(self._id, limits, degraded=True),  # a recipe is the user's own
            env=tuple(env.items()),
            binds=request.binds,
            guard=MOST_ON_DISK,
            sockets=cgroup.most_in_sockets(limits.memory),
            counted=[source for source, _ in request.binds],
            owner=os.getpid(),
        )


def _filled(state: Path) -> str:
    return (
        f"was ended before it filled the disk of {state} (disk), where it had more than {MOST_ON_DISK >> 30} GiB, or the most of all "
        "with hardly any left; free some space, run `openmodal image prune`, or set OPENMODAL_HOME to a folder on a larger disk"
    )


def _may_lack_network() -> bool:
    return "network" in _config.allow_degraded()


class _Output:
    """Passes a step's output on."""

    def __init__(self, request: RunRequest) -> None:
        self._write = request.output

    def skip(self, gap: OutputGap) -> None:
        """There is none: all is asked for."""

    def write(self, data: memoryview) -> None:
        self._write(bytes(data))
