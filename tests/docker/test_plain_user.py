"""The Docker engine for a user who is not root, but may use the daemon: the group docker."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon
from tests.embedded.test_plain_user import USER, home, run_as

__all__ = ["home"]

PROGRAM = """
import openmodal
from openmodal import errors

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox").add_local_file("/bin/busybox", "/bin/sh")
image = image.run_commands("/bin/busybox --install -s /bin")
with openmodal.Sandbox.create(image=image, engine="docker", timeout=60, memory=256, env={"KEY": "value"}) as sandbox:
    process = sandbox.exec("sh", "-c", "echo $KEY; cat; head -1 /proc/meminfo", stdin="typed\\n")
    assert process.stdout.read() == "value\\ntyped\\nMemTotal:         262144 kB\\n"
    sandbox.filesystem.write_bytes("/deep/er/file", bytes(range(256)))
    assert sandbox.filesystem.read_bytes("/deep/er/file") == bytes(range(256))
    info = sandbox.info()
    assert (info.memory, info.pids, info.network, info.degraded, len(info.capabilities)) == (256, 512, "outbound", (), 10), info
    assert [other.id for other in openmodal.Sandbox.list(engine="docker")] == [sandbox.id]
assert openmodal.Sandbox.list(engine="docker") == []
try:
    openmodal.Sandbox.create(image=image, engine="docker", runtime="gvisor", timeout=60)
except errors.UnsupportedError as error:
    assert "root" in str(error) or "runsc install" in str(error), error
else:
    raise AssertionError("nobody but root can put a firewall around it")
print("done")
"""


def _install(target: Path) -> None:
    """What the engine needs beyond the embedded one, for that user: the checkout may be where only root may look."""
    for package in ("anyio", "h11", "httpcore2", "httpx2", "idna", "truststore", "typing_extensions"):
        for file in importlib.metadata.files(package) or ():
            if file.parts[0] != "..":  # a program
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target / file)


@pytest.fixture
def socket(daemon: Daemon, home: Path) -> Iterator[str]:
    """The daemon's socket where the user can reach it, and for the time of the test the user's group has a right to it."""
    if not daemon.path:
        pytest.skip("the Docker daemon has no socket on this machine")
    _install(home / "python")
    before, place = os.stat(daemon.path), home / "docker.sock"
    place.touch()
    subprocess.run(["mount", "--bind", daemon.path, place], check=True)
    try:
        os.chown(place, before.st_uid, USER)
        yield f"unix://{place}"
    finally:
        os.chown(place, before.st_uid, before.st_gid)
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_sandboxes_work_for_a_user_of_the_daemon(home: Path, socket: str) -> None:
    assert run_as(home, PROGRAM, DOCKER_HOST=socket) == "done\n"
    assert list((home / "state/docker/sandboxes").iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_not_use_the_daemon_is_told_what_to_do(home: Path, socket: str) -> None:
    os.chown(socket.removeprefix("unix://"), 0, 0)
    program = """
import openmodal
try:
    openmodal.Sandbox.list(engine="docker")
except openmodal.EngineError as error:
    print(error)
"""
    assert "group docker" in run_as(home, program, DOCKER_HOST=socket)
