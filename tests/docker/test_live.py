"""What changes while a container runs: what the daemon does, and the looks that end a pause."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from openmodal import housekeeping
from openmodal._dual import run_sync
from openmodal.engines.docker import generations, live
from openmodal.engines.docker.daemon import Api, Daemon, MissingError
from openmodal.engines.docker.engine import Docker
from openmodal.errors import EngineError, SandboxTerminatedError, SandboxTimeoutError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.egress import reaches
from openmodal.testing.faces import Face, open_face
from openmodal.testing.fixtures import Create, eventually
from openmodal.testing.limits import connects, own_addresses, server
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


def test_one_that_is_used_while_it_is_being_paused_goes_on(
    create: Create, daemon: Daemon, engine: DockerUnderTest, monkeypatch: pytest.MonkeyPatch, face: Face
) -> None:
    """Who used it let it go on before it was paused: then nothing did afterwards."""
    sandbox, freeze, used = create(block_network=True), live._freeze, []

    def late(api: Api, id: str) -> None:
        used.append(face.start(sandbox.exec, "true"))
        time.sleep(0.3)
        freeze(api, id)

    monkeypatch.setattr(live, "_freeze", late)
    sandbox.pause()
    assert used[0].result(100).returncode == 0
    assert state(daemon, sandbox.id) == "running"


SNAPSHOTS = """
import sys, time
from openmodal import Sandbox
from openmodal.engines.docker.daemon import Api
from tests.docker.engine import DockerUnderTest
post = Api.post
def until_it_is_committed(self, path, *body, **query):
    if path.endswith("/tag"):
        print(path.split("/")[2], flush=True)
        time.sleep(100)
    return post(self, path, *body, **query)
Api.post = until_it_is_committed
Sandbox.from_id(sys.argv[1], engine=DockerUnderTest()).snapshot_filesystem()
"""


def test_gc_removes_what_a_killed_snapshot_has_committed(
    create: Create, daemon: Daemon, engine: DockerUnderTest
) -> None:
    """It waited for an hour, in which a tag could come, also where nobody was left to give one."""
    sandbox = create(block_network=True)
    notes = generations._notes()
    before = {*notes.iterdir()} if notes.exists() else set()
    command = [sys.executable, "-c", SNAPSHOTS, sandbox.id]
    root = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as snapshots:
        assert snapshots.stdout is not None
        image = snapshots.stdout.readline().strip()
        told = f"snapshot {image[7:19]}"
        assert told not in engine.gc(), "the control: somebody waits for it"
        snapshots.kill()
    assert told in engine.gc(check=True)
    assert told in engine.gc()
    with daemon.open() as api, pytest.raises(MissingError):
        api.get(f"/images/{image}/json")
    assert {*notes.iterdir()} <= before


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


def test_what_is_cut_off_stays_so_in_a_reset_and_the_firewall_holds_behind_it(
    create: Create, outbound: tuple[str, int]
) -> None:
    sandbox = create()
    sandbox.set_network(block_network=True)
    sandbox.reset()
    assert (reaches(sandbox, *outbound), sandbox.info().network) == (False, "none")
    sandbox.set_network()
    assert reaches(sandbox, *outbound), "the control"
    with server() as port:
        assert not any(connects(sandbox, host, port) for host in own_addresses())


def test_one_that_was_created_blocked_has_no_firewall_and_stays_so(create: Create) -> None:
    sandbox = create(block_network=True)
    sandbox.set_network(block_network=True)
    with pytest.raises(UnsupportedError, match="create it with a network"):
        sandbox.set_network()


def test_an_owner_stays_through_a_reset_and_its_end_ends_one_that_is_paused(create: Create, face: Face) -> None:
    with subprocess.Popen(["sleep", "300"]) as owner:
        sandbox = create(block_network=True, owner=owner.pid)
        sandbox.reset()
        sandbox.pause()
        owner.kill()
    eventually(lambda: sandbox.poll() is not None)
    with pytest.raises(SandboxTerminatedError, match="owned"):
        sandbox.wait()


def waits_for(owner: int, command_line: Path) -> bool:
    with contextlib.suppress(OSError):
        return "\0own\0" in (said := command_line.read_text(errors="replace")) and f"\0{owner} " in said
    return False


def test_gc_ends_one_whose_owner_ended_unseen(create: Create, engine: DockerUnderTest) -> None:
    """It ran on to its time-out if the child that waits for both was killed before."""
    with subprocess.Popen(["sleep", "300"]) as owner:
        sandbox = create(block_network=True, owner=owner.pid)
        (watching,) = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if waits_for(owner.pid, path)]
        os.kill(int(watching.name), signal.SIGKILL)
        housekeeping.gc(engine=engine)
        assert sandbox.exec("true").returncode == 0, "the control: its owner is there"
        owner.kill()
    assert sandbox.exec("true").returncode == 0, "the control: nobody has looked"
    housekeeping.gc(engine=engine)
    eventually(lambda: sandbox.poll() is not None)
    with pytest.raises(SandboxTerminatedError, match="owned"):
        sandbox.wait()


def test_a_reset_after_the_owners_end_ends_it(
    create: Create, engine: DockerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has watched the owner while there was no agent."""
    with subprocess.Popen(["sleep", "300"]) as owner:
        sandbox = create(block_network=True, owner=owner.pid)
        start = Docker._start

        async def late(*arguments: Any) -> None:
            owner.kill()
            owner.wait()
            await start(*arguments)

        monkeypatch.setattr(Docker, "_start", late)
        with pytest.raises(SandboxTerminatedError, match="owned"):
            sandbox.reset()
    assert sandbox.poll() == 137


def test_files_kept_at_an_end_that_nobody_saw_are_found_by_their_name(
    create: Create, daemon: Daemon, engine: DockerUnderTest
) -> None:
    name = f"kept-{os.urandom(4).hex()}"
    sandbox = create(block_network=True, timeout=3, snapshot_on_end=name)
    sandbox.filesystem.write_text("/srv/file", "here\n")
    eventually(lambda: state(daemon, sandbox.id) == "exited")
    try:
        image = Image.from_name(name, engine=engine)
        assert create(image=image, block_network=True).filesystem.read_text("/srv/file") == "here\n"
        end = sandbox.status().ended
        assert end
        assert (end.reason, bool(end.snapshot)) == ("timeout", True)
    finally:
        Image.delete(name, engine=engine)


def test_of_one_that_has_ended_unseen_no_usage_is_told(create: Create, daemon: Daemon) -> None:
    sandbox = create(block_network=True, timeout=2)
    eventually(lambda: state(daemon, sandbox.id) == "exited")
    with pytest.raises(SandboxTimeoutError):
        sandbox.usage()


def test_files_that_cannot_be_kept_are_told(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise EngineError("no space left on device")

    sandbox = create(block_network=True, snapshot_on_end="kept-never")
    monkeypatch.setattr(generations, "commit", full)
    with pytest.raises(EngineError, match="no space left"):
        sandbox.terminate()
    end = sandbox.status().ended
    assert end
    assert (end.reason, end.unkept) == ("terminated", "no space left on device")


def test_gc_clears_away_whose_end_was_noted_before_a_crash(
    create: Create, engine: DockerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"kept-{os.urandom(4).hex()}"
    sandbox = create(block_network=True, snapshot_on_end=name)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_clear", lambda api, id: None)
            sandbox.terminate()
        assert f"sandbox {sandbox.id}" in engine.gc()
        assert f"sandbox {sandbox.id}" not in engine.gc()
    finally:
        Image.delete(name, engine=engine)


def test_a_network_that_is_changed_while_its_sandbox_ends_is_told_as_that(
    create: Create, engine: DockerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = create()
    monkeypatch.setattr(engine, "_unpause", lambda api, id: engine._stop(id))
    with pytest.raises(SandboxTerminatedError):
        sandbox.set_network(block_network=True)
