"""What changes while a container runs: pauses that the daemon makes, and the looks that end them."""

from __future__ import annotations

import time

import pytest

from openmodal import housekeeping
from openmodal._dual import run_sync
from openmodal.engines.docker.daemon import Daemon
from openmodal.errors import SandboxTimeoutError
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face, open_face
from openmodal.testing.fixtures import Create, eventually
from tests.docker.engine import DockerUnderTest


@pytest.fixture
def face() -> Face:
    """These tests are about the engine, whatever the face."""
    return open_face("blocking")


def state(daemon: Daemon, id: str) -> str:
    with daemon.open() as api:
        return str(api.get(f"/containers/{id}/json")["State"]["Status"])


def test_a_paused_one_is_listed_kept_by_gc_and_copied(create: Create, daemon: Daemon, engine: DockerUnderTest) -> None:
    sandbox = create(block_network=True)
    sandbox.exec("sh", "-c", "echo here > /srv/file")
    sandbox.pause()
    assert [each.paused for each in run_sync(engine.list()) if each.id == sandbox.id] == [True]
    housekeeping.gc(engine=engine)
    image = sandbox.snapshot_filesystem()
    assert state(daemon, sandbox.id) == "paused"
    assert create(image=image, block_network=True).filesystem.read_text("/srv/file") == "here\n"
    assert sandbox.filesystem.read_text("/srv/file") == "here\n"
    assert state(daemon, sandbox.id) == "running"


def test_a_reset_lets_it_go_on(create: Create) -> None:
    sandbox = create(block_network=True)
    sandbox.pause()
    sandbox.reset()
    assert not sandbox.status().paused
    assert sandbox.exec("true").returncode == 0


def test_who_waits_for_a_paused_one_sees_it_end(create: Create, face: Face) -> None:
    sandbox = create(block_network=True, timeout=3)
    waiting = face.start(sandbox.wait)
    sandbox.pause()
    with pytest.raises(SandboxTimeoutError):
        waiting.result(60)


def test_a_list_and_gc_end_one_whose_time_is_over(create: Create, daemon: Daemon, engine: DockerUnderTest) -> None:
    sandbox = create(block_network=True, timeout=2)
    sandbox.pause()
    time.sleep(2.5)
    assert state(daemon, sandbox.id) == "paused", "the control: nobody has looked"
    housekeeping.gc(engine=engine)
    eventually(lambda: sandbox.id not in [each.id for each in Sandbox.list(engine=engine)])


def test_checkpoints_live_as_long_as_a_sandbox_whose_end_was_moved(create: Create, engine: DockerUnderTest) -> None:
    sandbox = create(block_network=True, timeout=5)
    sandbox.exec("sh", "-c", "echo one > /srv/file")
    checkpoint = sandbox.checkpoint()
    until = sandbox.status().expires
    sandbox.set_timeout(1000)
    eventually(lambda: time.time() > until + 0.1)
    housekeeping.gc(engine=engine)
    sandbox.filesystem.remove("/srv/file")
    sandbox.reset(to=checkpoint)
    assert sandbox.filesystem.read_text("/srv/file") == "one\n"
