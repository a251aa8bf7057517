"""The engine of these tests, for other processes too: they know the daemon's address from a variable, not from DOCKER_HOST."""

from __future__ import annotations

import os

from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker


class DockerUnderTest(Docker):
    """The Docker engine with the tests' daemon."""

    def __init__(self, daemon: Daemon | None = None) -> None:
        super().__init__(daemon=daemon or Daemon(os.environ["OPENMODAL_TEST_DOCKER"]))
