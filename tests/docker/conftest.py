"""The Docker engine, as every test here uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)
from tests.docker.dockerd import bridge, dockerd
from tests.docker.engine import DockerUnderTest


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """The machine's daemon, or one of our own."""
    there = Daemon(os.environ["OPENMODAL_TEST_DOCKER"])
    if there.answers():
        yield there
        return
    folder = Path(os.environ["OPENMODAL_HOME"]) / "dockerd"
    with bridge(folder) as interface, dockerd(folder, interface) as daemon, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMODAL_TEST_DOCKER", daemon.host)
        yield daemon


@pytest.fixture(scope="session")
def engine(daemon: Daemon) -> DockerUnderTest:
    return DockerUnderTest(daemon)
