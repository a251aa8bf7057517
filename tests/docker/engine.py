"""The engine of these tests, for other processes too: they know the daemon's address from a variable, not from DOCKER_HOST."""

from __future__ import annotations

import os

from msgspec.structs import replace

from openmodal._spec import Root, SandboxSpec
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker


class DockerUnderTest(Docker):
    """The Docker engine with the tests' daemon."""

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon=daemon or Daemon(os.environ["OPENMODAL_TEST_DOCKER"]))


class DockerInGvisor(DockerUnderTest):
    """The same with `runtime="gvisor"`, whatever the caller says."""

    @property
    def lacks(self) -> frozenset[str]:
        """What docs/engines.md says of gVisor."""
        network = {"idle_pause", "network_change", "network_outbound", "network_shared", "owner"}
        return super().lacks | {"cgroup", "cpu_time", "holes", "init", "memory_offender", "proc", *network}

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        return await super().create(replace(spec, runtime="gvisor"), root)
