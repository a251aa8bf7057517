"""Programs that own a machine's firewall: they start, reload and end, and sandboxes have a network
after the next creation.

On a machine apart, so that neither this one's firewall nor its settings change. `make test` does not install firewalld and ufw, which
would begin to rule a developer's machine: OPENMODAL_MUST_WORK=firewalld,ufw says that they are there.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal import _config
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually
from tests.embedded.apart import Machine
from tests.embedded.test_firewall import create, has_network, lost_network, sh

__all__ = ["create"]

pytestmark = pytest.mark.root


def needs(*programs: str) -> None:
    if missing := [program for program in programs if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")


def mended(running: Sandbox, create: Create) -> bool:
    """Whether a new sandbox has a network, and the running one has."""
    return has_network(create()) and has_network(running)


@contextmanager
def started(*command: str, answers: Callable[[], bool]) -> Iterator[None]:
    """Run a daemon, from when it answers."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            eventually(lambda: answers() or process.poll() is not None, seconds=300)
            log.seek(0)
            assert process.poll() is None, log.read()
            yield
        finally:
            process.terminate()


@contextmanager
def firewalld() -> Iterator[None]:
    with started("firewalld", "--nofork", "--nopid", answers=lambda: _succeeds("firewall-cmd", "--state")):
        yield


@contextmanager
def docker() -> Iterator[None]:
    # A short path: below a worker's temporary folder, containerd's socket would have a name longer
    # than Linux takes.
    folder = _config.machine() / "docker"
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    words = [f"--{name}={folder / place}" for name, place in places.items()]
    socket = f"unix://{folder / 'socket'}"
    answers = functools.partial(_succeeds, "docker", "-H", socket, "info")
    with started("dockerd", *words, "-H", socket, "--bip", "172.29.0.1/24", answers=answers):
        yield


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Machine) -> Iterator[None]:
    """firewalld's way to talk."""
    needs("firewalld", "firewall-cmd", "dbus-daemon")
    address = f"unix:path={tmp_path / 'bus'}"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    command = ("dbus-daemon", "--system", "--nofork", "--nopidfile", f"--address={address}")
    with started(*command, answers=(tmp_path / "bus").exists):
        yield


@pytest.mark.feature("firewalld")
def test_firewalld_starts_reloads_and_ends(bus: None, create: Create) -> None:
    """Only its zones say what passes its chains: what others add there would go with a reload."""
    running = create()
    assert has_network(running)
    with firewalld():
        assert lost_network(running), "the control"
        assert mended(running, create)
        sh("firewall-cmd --reload")
        assert mended(running, create)
    assert mended(running, create)


@pytest.mark.feature("firewalld")
def test_where_firewalld_runs_the_first_sandbox_has_a_network(bus: None, create: Create) -> None:
    with firewalld():
        assert has_network(create())


@pytest.mark.feature("ufw")
def test_ufw_is_enabled_reloaded_and_disabled(here: Machine, create: Create, tmp_path: Path) -> None:
    """It drops what is forwarded, and rewrites tables of iptables."""
    needs("ufw")
    shutil.copytree("/etc/ufw", tmp_path / "ufw")
    sh(f"mount --bind {tmp_path / 'ufw'} /etc/ufw")
    running = create()
    assert has_network(running)
    sh("ufw --force enable")
    assert lost_network(running), "the control"
    for script in ("true", "ufw reload", "ufw --force disable", "ufw --force enable"):
        sh(script)
        assert mended(running, create), script


@pytest.mark.timeout(900)
def test_docker_starts_before_and_after_a_sandbox(here: Machine, create: Create) -> None:
    """On a machine that forwarded nothing it drops whatever is not its own containers'."""
    needs("dockerd", "docker")
    running = create()
    assert has_network(running)
    sh("sysctl -w net.ipv4.ip_forward=1; sysctl -w net.ipv4.ip_forward=0")
    with docker():
        assert lost_network(running), "the control"
        assert mended(running, create)
    assert mended(running, create)
    with docker():
        assert mended(running, create)
