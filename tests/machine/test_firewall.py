"""What systemd's services do to a machine's firewall, and what of a sandbox the kernel of such a machine forgets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from openmodal import _binary, _config
from openmodal.app import App
from openmodal.engines.embedded import Embedded
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating, eventually
from tests.embedded.test_network import PUBLIC, neighbour
from tests.security.test_g_connections import KEEP, left

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.embedded]


@pytest.fixture
def create(engine: Embedded, image: Image) -> Iterator[Create]:
    with creating(app=App("firewall"), image=image, engine=engine, timeout=600) as create:
        yield create


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Put the tables of iptables back."""
    saved = subprocess.run(["iptables-save"], capture_output=True, check=True).stdout
    yield
    subprocess.run(["iptables-restore"], input=saved, check=True)


def sh(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True, timeout=600)


def has_network(sandbox: Sandbox) -> bool:
    """Whether a name server answers it."""
    if not sandbox.filesystem.exists("/ask"):
        sandbox.filesystem.copy_from_local(_binary.find(_config.state()), "/ask")
    return sandbox.exec("/ask", "ask", "example.com").wait() == 0


def test_nftables_service_loads_its_file(create: Create, as_it_was: None) -> None:
    """Debian's begins with `flush ruleset`."""
    running = create()
    assert has_network(running)
    sh("systemctl restart nftables")
    try:
        assert not has_network(running), "the control"
        assert has_network(create())
        assert has_network(running)
    finally:
        sh("systemctl stop nftables")
    assert has_network(create())


def test_a_sandbox_that_has_ended_has_no_connections(create: Create) -> None:
    """With the oldest kernel that is supported, too."""
    with neighbour(PUBLIC, KEEP):
        sandbox = create()
        sandbox.exec("sh", "-c", f"for i in $(seq 30); do sleep 300 | nc {PUBLIC} 8099 & done >/dev/null 2>&1; sleep 2")
        eventually(lambda: left() == (30, 30), seconds=60)
        sandbox.terminate()
        eventually(lambda: left() == (0, 0), seconds=60)
