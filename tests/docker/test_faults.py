"""What happens when the daemon, its containers, or the way to it break: a clear error, never a hang, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines import lacking
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker
from openmodal.errors import DiskFullError, EngineError, Error, SandboxNotRunningError, SandboxTerminatedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face, open_face
from openmodal.testing.fixtures import Create, creating, eventually, python_starts
from openmodal.volume import HostDirectory
from tests.docker.dockerd import bridge, dockerd


@pytest.fixture
def face() -> Face:
    """These tests are about the engine, whatever the face."""
    return open_face("blocking")


def test_a_container_that_is_removed_by_hand_is_told(create: Create, daemon: Daemon) -> None:
    sandbox = create()
    with daemon.open() as api:
        api.delete(f"/containers/{sandbox.id}", force=True)
    with pytest.raises(SandboxNotRunningError, match="not running"):
        sandbox.exec("true")
    assert sandbox.poll() == 137
    status = sandbox.status()
    assert status.ended
    assert (status.ended.reason, "removed by hand" in status.ended.text) == ("lost", True)


def test_a_container_that_is_killed_by_hand_is_told_to_who_waits(create: Create, daemon: Daemon, face: Face) -> None:
    sandbox = create()
    call = face.start(sandbox.exec, "sleep", "54321")
    waiting = face.start(sandbox.wait)
    with daemon.open() as api:
        api.post(f"/containers/{sandbox.id}/kill")
    with pytest.raises(SandboxNotRunningError):
        call.result(60)
    assert waiting.result(60) == 137


KILLED = """
    from openmodal.engines.docker.engine import Docker

    async def killed(self, id):
        print(id, flush=True)
        os.kill(os.getpid(), 9)

    Docker._ready = killed  # its agent was told what it is: nothing else ends it in time
    options = {"owner": "process"} if argv[1] == "owner" else {}
    openmodal.Sandbox.create(app=openmodal.App("contract"), image=image, engine=argv[0], timeout=600, **options)
"""


@pytest.mark.parametrize("how", ["owner", "control"])
def test_an_owner_that_is_killed_while_it_creates_takes_the_sandbox_along(
    engine: Docker, engine_name: str, image: Image, how: str
) -> None:
    with python_starts(KILLED, engine_name, how, image=image) as child:
        assert child.stdout
        sandbox = Sandbox.from_id(child.stdout.readline().strip(), engine=engine)
        assert child.wait(300) == -9
    if how == "owner":
        eventually(lambda: sandbox.poll() is not None)
        with pytest.raises(SandboxTerminatedError, match="owned"):
            sandbox.wait()
    else:
        assert sandbox.exec("true").returncode == 0
        sandbox.terminate()


def test_what_an_engine_lacks_is_told_without_waiting_for_the_daemon_in_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(daemon: Daemon, timeout: float | None = None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Daemon, "open", refuse)
    engine = Docker(daemon=Daemon("unix:///nowhere/docker.sock"))

    async def in_a_loop() -> frozenset[str]:
        return lacking(engine)

    assert "owner" not in asyncio.run(in_a_loop())
    with pytest.raises(ZeroDivisionError):  # the control
        lacking(engine)


def test_docker_stop_ends_it_as_terminated(create: Create, daemon: Daemon) -> None:
    sandbox = create()
    with daemon.open() as api:
        api.post(f"/containers/{sandbox.id}/stop")
    status = sandbox.status()
    assert status.ended
    assert status.ended.reason == "terminated"


def test_the_last_words_of_a_main_command_are_kept_when_it_is_terminated(create: Create) -> None:
    """As on the embedded engine: they tell why it hung."""
    sandbox = create("sh", "-c", "echo last words; echo err >&2; touch /tmp/said; sleep 54321")
    eventually(lambda: sandbox.filesystem.exists("/tmp/said"))
    sandbox.pause()
    sandbox.terminate()
    assert (sandbox.stdout.read(), sandbox.stderr.read(), sandbox.poll()) == ("last words\n", "err\n", 137)


@pytest.mark.parametrize("then", ["exit 4", "touch /tmp/said; sleep 54321"])
def test_a_main_command_of_millions_of_lines_loses_none_and_holds_up_nobody(create: Create, then: str) -> None:
    """The daemon keeps each line as an entry of its own: the log ran over, and reading what was
    left of it took half a minute."""
    sandbox = create("sh", "-c", f"yes '' | head -c 8000000; printf '\\r\\0x' >&2; {then}")
    if then == "exit 4":
        assert sandbox.wait() == 4
    else:
        eventually(lambda: sandbox.filesystem.exists("/tmp/said"))
        sandbox.terminate()
    assert sandbox.stdout.read() == "\n" * 8_000_000
    assert sandbox.stderr.read() == "\r\0x"


def test_a_snapshot_waits_for_a_reset(create: Create, face: Face) -> None:
    sandbox = create(block_network=True)
    sandbox.exec("touch", "/srv/before")
    resetting = face.start(sandbox.reset)
    images = [sandbox.snapshot_filesystem() for _ in range(2)]
    resetting.result(60)
    assert not create(image=images[-1], block_network=True).filesystem.exists("/srv/before")


def test_a_container_that_is_started_again_by_hand_serves_nobody(create: Create, daemon: Daemon) -> None:
    sandbox = create()
    with daemon.open() as api:
        api.post(f"/containers/{sandbox.id}/kill")
        api.post(f"/containers/{sandbox.id}/start")
    with pytest.raises(SandboxNotRunningError):
        sandbox.exec("true")


def test_without_a_daemon_the_error_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="--engine embedded"):
        Sandbox.list(engine=Docker(daemon=Daemon("unix:///nonexistent/docker.sock")))


def test_an_agent_that_cannot_begin_is_told_and_nothing_is_left(
    create: Create, engine: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openmodal.engines.docker import container

    before = set(os.listdir(engine._book.sandboxes))  # of a run that was killed
    monkeypatch.setattr(container, "setup", lambda *_, **__: b"nonsense=1\0\0")
    with pytest.raises(EngineError, match="unknown key"):
        create()
    assert set(os.listdir(engine._book.sandboxes)) <= before


@pytest.mark.parametrize("milliseconds", [1, 15, 40, 100])
def test_a_create_that_is_cancelled_leaves_nothing(image: Image, engine: Docker, milliseconds: int) -> None:
    async def main() -> None:
        create = Sandbox.create.aio(app=App("cancelled"), image=image, engine=engine, timeout=60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(create, milliseconds / 1000)

    run_sync(engine.prepare(image.recipe, lambda progress: None))
    asyncio.run(main())
    eventually(lambda: not [item for item in _containers(engine.daemon) if "cancelled" in str(item)])
    assert not [id for id in engine._book.ids() if id.startswith("cancelled")]


@pytest.fixture
def second() -> Iterator[Path]:
    """A folder for a daemon of the test's own."""
    folder = Path(os.environ["OPENMODAL_HOME"]) / f"dockerd-{os.getpid()}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
@pytest.mark.may_leave("*/containerd.*.stacks.log")  # which a daemon has written if the machine is busy
def test_a_daemon_that_restarts_ends_its_sandboxes_and_hangs_nobody(
    second: Path, busybox: Path, tmp_path: Path, face: Face
) -> None:
    image = Image.from_scratch().add_local_file(str(busybox), "/bin/sh")
    with bridge(second) as interface, dockerd(second, interface) as daemon:
        engine = Docker(tmp_path / "state", daemon)
        sandbox = Sandbox.create(image=image, engine=engine, block_network=True)
        under_way = face.start(sandbox.exec, "sh", "-c", "while :; do :; done")
        assert sandbox.exec("sh", "-c", "exit 3").returncode == 3
    with pytest.raises((EngineError, SandboxNotRunningError)):
        under_way.result(60)
    with pytest.raises(EngineError, match="does not answer"):
        sandbox.exec("sh", "-c", ":")
    with bridge(second) as interface, dockerd(second, interface) as daemon:
        with pytest.raises(SandboxNotRunningError):
            sandbox.exec("sh", "-c", ":")
        assert sandbox.poll() == 137
        assert _containers(daemon) == []


def _containers(daemon: Daemon) -> list[object]:
    with daemon.open() as api:
        found: list[object] = api.get("/containers/json", all=True)
    return found


@pytest.mark.root
def test_a_folder_that_a_sandbox_exchanges_all_the_time_is_shown_itself_or_not_at_all(
    create: Create, tmp_path: Path
) -> None:
    """The daemon looks where it leads at another moment than who asked it."""
    shared, secret = tmp_path / "shared", tmp_path / "secret"
    for folder in (shared / "sub", secret):
        folder.mkdir(parents=True)
        (folder / folder.name).touch()
    writer = create(volumes={"/shared": HostDirectory(shared, read_only=False, owner="root")})
    exchange = f"while :; do mv sub was; ln -s {secret} sub; sleep 0.01; rm sub; mv was sub; sleep 0.03; done"
    writer.spawn("sh", "-c", f"cd /shared; {exchange}")
    seen = []
    for _ in range(12):
        with contextlib.suppress(Error):
            sandbox = create(volumes={"/sub": HostDirectory(shared / "sub")})
            seen.append(sandbox.exec("ls", "/sub").stdout.read())
            sandbox.terminate()
    assert set(seen) <= {"sub\n"}


def test_a_tar_of_nothing_is_a_tar() -> None:
    from openmodal.build import context

    with tarfile.open(fileobj=io.BytesIO(context.empty())) as tar:
        assert tar.getmembers() == []


@pytest.mark.root
def test_ends_are_told_although_the_disk_here_is_full(daemon: Daemon, image: Image, tmp_path: Path) -> None:
    """The record could not be written: poll raised OSError, and terminate did so before it ended anything."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "openmodal-test", str(home)], check=True)
    try:
        engine = Docker(home, daemon=daemon)
        with creating(app=App("full"), image=image, engine=engine, timeout=300) as create:
            ended, running = create("sh", "-c", "exit 3"), create()
            with open(home / "fill", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            eventually(lambda: ended.poll() is not None)
            assert [Sandbox.from_id(ended.id, engine=engine).poll() for _ in range(2)] == [3, 3]
            with contextlib.suppress(DiskFullError):
                running.terminate()
            with daemon.open() as api:
                left = [item["Names"] for item in api.get("/containers/json", all=True)]
            assert not [names for names in left if f"/{running.id}" in names], "it is gone all the same"
            (home / "fill").unlink()
            assert Sandbox.from_id(ended.id, engine=engine).poll() == 3
    finally:
        subprocess.run(["umount", str(home)], check=True)
