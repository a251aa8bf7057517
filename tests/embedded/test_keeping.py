"""Files that are kept at a sandbox's end, where that fails or somebody is killed meanwhile."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.build.locks import try_lock
from openmodal.engines.embedded import Embedded, launch
from openmodal.errors import EngineError, NotFoundError, SandboxNotRunningError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, eventually

pytestmark = pytest.mark.embedded


@pytest.fixture
def name(engine: Embedded) -> Iterator[str]:
    made = f"kept-{secrets.token_hex(4)}"
    yield made
    with suppress(NotFoundError):
        Image.delete(made, engine=engine)


def keepers(name: str) -> list[int]:
    """The processes that make an image of that name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[-2:-1] == [name.encode()] and b"-I" in words:
                found.append(int(entry.name))
    return found


@contextmanager
def ending(engine: Embedded, sandbox: Sandbox, face: Face, name: str) -> Iterator[tuple[Future[None], int]]:
    """It is terminated, and its keeper waits until the block is over."""
    held = try_lock(engine.store.folder(sandbox.id) / "changes")
    assert held
    with held:
        ends = face.start(sandbox.terminate)
        eventually(lambda: keepers(name))
        yield ends, keepers(name)[0]


def test_what_cannot_be_kept_is_told(create: Create, engine: Embedded, name: str) -> None:
    sandbox = create(snapshot_on_end=name)
    (engine.store.folder(sandbox.id) / "made.json").unlink()
    with pytest.raises(EngineError, match=r"its files were not kept: .*no snapshots"):
        sandbox.terminate()
    end = sandbox.status().ended
    assert end
    assert "no snapshots" in end.unkept
    assert "not kept" in end.text
    assert name not in run_sync(engine.published())
    sandbox.terminate()


def test_a_disk_of_its_own_is_copied(create: Create, engine: Embedded, name: str) -> None:
    sandbox = create(snapshot_on_end=name, disk=64)
    sandbox.exec("sh", "-c", "echo kept > /kept; chown 33 /kept")
    sandbox.terminate()
    with create(image=Image.from_name(name, engine=engine)) as other:
        assert other.exec("sh", "-c", "cat /kept; stat -c %u /kept").stdout.read() == "kept\n33\n"


def test_a_copy_that_is_under_way_does_not_keep_it_from_being_kept(
    create: Create, engine: Embedded, face: Face, name: str
) -> None:
    """The copy is ended, and its lock with it; the files that are kept are the last ones."""
    sandbox = create(snapshot_on_end=name, disk=512)
    sandbox.exec("sh", "-c", "dd if=/dev/urandom of=/large bs=1M count=300 2>/dev/null; echo kept > /kept")
    copying = face.start(sandbox.snapshot_filesystem)
    eventually(lambda: not copying.done() and (engine.store.folder(sandbox.id) / "changes").exists())
    sandbox.terminate()
    with suppress(EngineError, SandboxNotRunningError, ConnectionError):
        copying.result(100)
    with create(image=Image.from_name(name, engine=engine)) as other:
        assert other.exec("cat", "/kept").stdout.read() == "kept\n"


def test_nothing_else_is_done_meanwhile(create: Create, engine: Embedded, face: Face, name: str) -> None:
    sandbox = create(snapshot_on_end=name)
    sandbox.exec("sh", "-c", "echo kept > /kept")
    with ending(engine, sandbox, face, name) as (ends, _):
        for call in (sandbox.usage, sandbox.pause, lambda: sandbox.set_timeout(1)):
            with pytest.raises((SandboxNotRunningError, ConnectionError)):
                call()
        assert not ends.done()
    ends.result(100)
    with create(image=Image.from_name(name, engine=engine)) as other:
        assert other.exec("cat", "/kept").stdout.read() == "kept\n"


def test_a_killed_keeper_is_told(create: Create, engine: Embedded, face: Face, name: str) -> None:
    sandbox = create(snapshot_on_end=name)
    with ending(engine, sandbox, face, name) as (ends, keeper):
        os.kill(keeper, signal.SIGKILL)
        with pytest.raises(EngineError, match="was killed"):
            ends.result(100)


def test_a_killed_supervisor_takes_all_with_it(create: Create, engine: Embedded, face: Face, name: str) -> None:
    sandbox = create(snapshot_on_end=name)
    with ending(engine, sandbox, face, name) as (ends, keeper):
        os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
        with suppress(EngineError):
            ends.result(100)
        eventually(lambda: keeper not in keepers(name))
    engine.gc()
    assert sandbox.poll() == 137
    assert name not in run_sync(engine.published())
