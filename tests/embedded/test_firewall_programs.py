"""Programs that own a machine's firewall: they start, reload and end, and sandboxes have a network after the next creation.

On a machine apart, so that neither this one's firewall nor its settings change.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually
from tests.embedded.apart import Machine
from tests.embedded.test_firewall import create, has_network, here, sh

__all__ = ["create", "here"]

pytestmark = pytest.mark.root


def needs(*programs: str) -> None:
    if missing := [program for program in programs if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")


def mended(running: Sandbox, create: Create) -> bool:
    """Whether a new sandbox has a network, and the running one has."""
    return has_network(create()) and has_network(running)


@contextmanager
def started(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def firewalld() -> Iterator[None]:
    with started("firewalld", "--nofork", "--nopid"):
        eventually(lambda: _succeeds("firewall-cmd", "--state"), seconds=60)
        yield


@contextmanager
def docker(folder: Path) -> Iterator[None]:
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    words = [f"--{name}={folder / place}" for name, place in places.items()]
    socket = f"unix://{folder / 'socket'}"
    with started("dockerd", *words, "-H", socket, "--bip", "172.29.0.1/24"):
        eventually(lambda: _succeeds("docker", "-H", socket, "info"), seconds=300)
        yield


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Machine) -> Iterator[None]:
    """firewalld's way to talk."""
    needs("firewalld", "firewall-cmd", "dbus-daemon")
    address = f"unix:path={tmp_path / 'bus'}"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with started("dbus-daemon", "--system", "--nofork", "--nopidfile", f"--address={address}"):
        eventually((tmp_path / "bus").exists)
        yield


def test_firewalld_starts_reloads_and_ends(bus: None, create: Create) -> None:
    """Only its zones say what passes its chains: what others add there would go with a reload."""
    running = create()
    assert has_network(running)
    with firewalld():
        assert not has_network(running), "the control"
        assert mended(running, create)
        sh("firewall-cmd --reload")
        assert mended(running, create)
    assert mended(running, create)


def test_where_firewalld_runs_the_first_sandbox_has_a_network(bus: None, create: Create) -> None:
    with firewalld():
        assert has_network(create())


def test_ufw_is_enabled_reloaded_and_disabled(here: Machine, create: Create, tmp_path: Path) -> None:
    """It drops what is forwarded, and rewrites tables of iptables."""
    needs("ufw")
    shutil.copytree("/etc/ufw", tmp_path / "ufw")
    sh(f"mount --bind {tmp_path / 'ufw'} /etc/ufw")
    running = create()
    assert has_network(running)
    sh("ufw --force enable")
    assert not has_network(running), "the control"
    for script in ("true", "ufw reload", "ufw --force disable", "ufw --force enable"):
        sh(script)
        assert mended(running, create), script


@pytest.mark.timeout(900)
def test_docker_starts_before_and_after_a_sandbox(here: Machine, create: Create, tmp_path: Path) -> None:
    """On a machine that forwarded nothing it drops whatever is not its own containers'."""
    needs("dockerd", "docker")
    running = create()
    assert has_network(running)
    sh("sysctl -w net.ipv4.ip_forward=1; sysctl -w net.ipv4.ip_forward=0")
    with docker(tmp_path):
        assert not has_network(running), "the control"
        assert mended(running, create)
    assert mended(running, create)
    with docker(tmp_path):
        assert mended(running, create)
