"""Sandboxes to attack: as they are, and with their controls taken away, to show that the attack would work without them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal.app import App
from openmodal.engines import load
from openmodal.engines.embedded import Embedded
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import busybox, creating, engine_name, image, outbound
from tests.native.conftest import NATIVE, make
from tests.security.attack import ALL_CONTROLS, Weakened, compiled

__all__ = ["busybox", "engine_name", "image", "outbound"]


def pytest_itemcollected(item: pytest.Item) -> None:
    for marker in ("embedded", "root"):
        item.add_marker(marker)


@pytest.fixture(scope="session")
def engine() -> Embedded:
    found = load("embedded")
    assert isinstance(found, Embedded)
    return found


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attacker's tool, compiled."""
    return compiled("probe.c", tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def armed(engine: Embedded, image: Image, probe: Path) -> Image:
    """The image of these tests: busybox and the attacker's tool."""
    recipe = image.add_local_file(str(probe), "/bin/probe").run_commands("chmod 755 /bin/probe")
    recipe.build(engine=engine)
    return recipe


@pytest.fixture(scope="session")
def weak_program() -> Path:
    """The native program with the switch that leaves controls out."""
    make("weak")
    return NATIVE / "build" / "openmodal-agent-weak"


Weaken = Callable[..., Sandbox]


@pytest.fixture
def weaken(weak_program: Path, armed: Image) -> Iterator[Weaken]:
    """Make a sandbox without some controls, for one test. See `Weakened`."""
    made: list[Sandbox] = []

    def make(*controls: str, **changes: object) -> Sandbox:
        made.append(_sandbox(Weakened(weak_program, controls, **changes), armed))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.terminate()


@pytest.fixture(scope="module")
def inside(engine: Embedded, armed: Image) -> Iterator[Sandbox]:
    """A sandbox as users get it, for all tests of a file."""
    with _sandbox(engine, armed) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def bare(weak_program: Path, armed: Image) -> Iterator[Sandbox]:
    """A sandbox without any control but its namespaces: root in it is root of the machine. Only for what does no harm."""
    with _sandbox(Weakened(weak_program, ALL_CONTROLS), armed) as sandbox:
        yield sandbox


@pytest.fixture
def create(engine: Embedded, armed: Image) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes with the attacker's tool; they end with the test."""
    with creating(app=App("attack"), image=armed, engine=engine, timeout=1000) as create:
        yield create


def _sandbox(engine: Embedded, image: Image) -> Sandbox:
    return Sandbox.create(app=App("attack"), image=image, engine=engine, timeout=600, env={"OWN": str(os.getpid())})
