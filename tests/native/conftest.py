"""The agent as a plain process: `openmodal-agent init` over a unix socket, no sandbox around it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native.frames import Link

NATIVE = Path(__file__).resolve().parents[2] / "native"


def make(*targets: str) -> None:
    """Make the native program, or these targets. One at a time: the workers of pytest -n all come here first."""
    subprocess.run(["flock", NATIVE / "Makefile", "make", "-s", "-C", NATIVE, *targets], check=True)


@pytest.fixture(scope="session")
def program() -> Path:
    """The native program; OPENMODAL_TEST_AGENT names one that was made elsewhere."""
    given = os.environ.get("OPENMODAL_TEST_AGENT")
    if given:
        return Path(given)
    make()
    return NATIVE / "build" / "openmodal-agent"


class Agent:
    def __init__(self, program: Path, path: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.path = str(path)
        self._links: list[Link] = []
        command = [str(program), "init", "--listen", self.path, *options]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 10
        while not path.exists() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)

    def link(self, timeout: float = 20) -> Link:
        self._links.append(Link(self.path, timeout))
        return self._links[-1]

    def stop(self) -> int:
        for link in self._links:
            link.close()
        if self.process.poll() is None:
            self.process.terminate()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        return self.process.wait(300)


Start = Callable[..., Agent]


@pytest.fixture
def start(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    agents: list[Agent] = []
    folder = tmp_path_factory.mktemp("agent")

    def start(*options: str, env: dict[str, str] | None = None) -> Agent:
        agents.append(Agent(program, folder / f"agent{len(agents)}.sock", *options, env=env))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


@pytest.fixture
def agent(start: Start) -> Agent:
    return start()


@pytest.fixture
def link(agent: Agent) -> Link:
    return agent.link()
