"""`runtime="gvisor"` on Docker: what the engine has a part in. That the agent works on gVisor's kernel, tests/gvisor shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.engines.docker import posture
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker
from openmodal.engines.docker.host import Host
from openmodal.errors import EngineError, SandboxTimeoutError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing import TestIsolation, TestNetwork
from openmodal.testing.faces import Face, open_face
from openmodal.testing.fixtures import Create
from openmodal.testing.limits import connects, own_addresses, server
from tests.docker.engine import DockerInGvisor, DockerUnderTest
from tests.docker.proxy import far_away

__all__ = ["TestIsolation", "TestNetwork"]

pytestmark = pytest.mark.gvisor


@pytest.fixture(scope="session")
def engine(daemon: Daemon) -> DockerInGvisor:
    if "runsc" not in Host.of(daemon).info["Runtimes"]:
        pytest.skip("needs runsc as a runtime of the Docker daemon: `runsc install`")
    return DockerInGvisor(daemon)


@pytest.fixture
def face() -> Face:
    """What differs between the faces is the driver of `_dual`."""
    return open_face("blocking")


def test_commands_files_and_info_are_gvisors(image: Image, engine: DockerInGvisor) -> None:
    plain = DockerUnderTest(engine.daemon)
    with Sandbox.create(image=image, engine=plain, runtime="gvisor", timeout=60, env={"KEY": "value"}) as sandbox:
        assert "gVisor" in sandbox.exec("dmesg").stdout.read()
        process = sandbox.exec("sh", "-c", "echo $KEY; cat; exit 3", stdin=b"x" * 300_000, user="agent")
        assert (process.returncode, len(process.stdout.read())) == (3, 300_000 + len("value\n"))
        sandbox.filesystem.write_bytes("/srv/file", bytes(300_000))
        assert sandbox.exec("wc", "-c", "/srv/file").stdout.read().split()[0] == "300000"
        assert sandbox.exec("cat", "/sys/fs/cgroup/pids/pids.max").stdout.read() == "512\n"
        info = sandbox.info()
        assert (info.runtime, info.memory, info.cpu, info.pids, info.degraded) == ("gvisor", 2048, 1.0, 512, ())
        assert sandbox.status().runtime == "gvisor"


def test_the_agent_inside_keeps_the_deadline(create: Create) -> None:
    sandbox = create(timeout=1, block_network=True)
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait(timeout=600)
    assert sandbox.returncode == 124


def test_files_that_gvisor_has_to_itself_are_not_lost_without_a_word(create: Create) -> None:
    sandbox = create(block_network=True)
    sandbox.exec("sh", "-c", "echo here > /srv/file")
    for call in (sandbox.snapshot_filesystem, sandbox.checkpoint, sandbox.fork):
        with pytest.raises(UnsupportedError, match="overlay2=none"):
            call()


def test_it_is_the_firewall_that_keeps_services_of_this_machine_out_of_reach(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as port:
        addresses = [address for address in own_addresses() if not address.startswith("127.")]
        walled = create()
        assert not any(connects(walled, address, port) for address in addresses)
        monkeypatch.setattr(Host, "wall", lambda *_: None)
        assert any(connects(create(), address, port) for address in addresses), "the control"


def test_without_its_firewall_there_is_no_sandbox(
    create: Create, engine: DockerInGvisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {status.id for status in run_sync(engine.list())}
    monkeypatch.setattr(Host, "denied", lambda host: ["10.0.0.0/33"])
    with pytest.raises(EngineError, match=r"firewall .*IPv4 prefix.*block_network=True") as caught:
        create()
    assert "\n" not in str(caught.value)
    assert {status.id for status in run_sync(engine.list())} == before


def test_a_daemon_without_runsc_is_told_with_the_remedy(daemon: Daemon) -> None:
    host = Host(daemon, {"Runtimes": {"runc": {"path": "runc"}}})
    with pytest.raises(UnsupportedError, match=r"runsc.*it has runc.*runsc install"):
        host.gvisor(network=False)


def test_where_nobody_can_build_its_firewall_it_has_no_network_or_is_refused(
    engine: DockerInGvisor, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posture, "here", lambda *_: None)  # that machine's processes are not to be seen
    with far_away(engine.daemon, tmp_path) as behind:
        far = Docker(daemon=behind)
        with pytest.raises(UnsupportedError, match="block_network=True"):
            Sandbox.create(image=image, engine=far, runtime="gvisor", timeout=60)
        with Sandbox.create(image=image, engine=far, runtime="gvisor", timeout=60, block_network=True) as sandbox:
            assert "gVisor" in sandbox.exec("dmesg").stdout.read()
            with pytest.raises(UnsupportedError, match="there"):
                sandbox.info()
        assert Sandbox.list(engine=far) == []
