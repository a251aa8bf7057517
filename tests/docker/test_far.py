"""Other daemons: one far away behind TLS, where sandboxes get their agent by the image and links by a process, and Podman's service."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines.docker import posture
from openmodal.engines.docker.daemon import Daemon, find
from openmodal.engines.docker.engine import Docker
from openmodal.engines.docker.links import RUN, SOCKET
from openmodal.errors import EngineError, SandboxTerminatedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Flaky, eventually
from openmodal.testing.limits import connects, own_addresses, server
from openmodal.testing.ports import forwarded, is_open, rest, visit
from tests.docker.podman import podman
from tests.docker.proxy import far_away

# Podman's store of layers is mounted over itself as long as its service runs.
pytestmark = pytest.mark.may_leave("*/podman/root/overlay")


@pytest.fixture(scope="module", params=["far away", "podman"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """An engine that talks to another daemon than the machine's own."""
    if request.param == "podman":
        with podman(Path(os.environ["OPENMODAL_HOME"]) / "podman") as daemon:
            yield Docker(daemon=daemon)
        return
    with far_away(request.getfixturevalue("daemon"), tmp_path_factory.mktemp("certificates")) as behind:
        yield Docker(daemon=behind)


@pytest.fixture(scope="module")
def root(other: Docker, busybox: Path) -> Image:
    """The contract's image in small."""
    recipe = (
        Image.from_scratch()
        .add_local_file(str(busybox), "/bin/sh")
        .add_local_file(str(busybox), "/bin/busybox")
        .run_commands(
            "/bin/busybox --install -s /bin", "mkdir -p /etc /tmp && echo root:x:0:0::/:/bin/sh > /etc/passwd"
        )
        .env({"NAME": "$value"})
    )
    recipe.build(engine=other)
    return recipe


def test_commands_files_and_their_end(other: Docker, root: Image) -> None:
    with Sandbox.create(image=root, engine=other, env={"KEY": "canary"}, timeout=60) as sandbox:
        process = sandbox.exec("sh", "-c", "echo $NAME $KEY; cat; exit 3", stdin=b"x" * 3_000_000)
        assert (process.returncode, len(process.stdout.read())) == (3, 3_000_000 + len("$value canary\n"))
        sandbox.filesystem.write_bytes("/tmp/file", os.urandom(2_000_000))
        assert len(sandbox.filesystem.read_bytes("/tmp/file")) == 2_000_000
        live = sandbox.spawn("cat")
        live.stdin.write("line\n")
        live.stdin.drain()
        assert live.stdout.readline() == "line\n"


def test_a_port_leads_there_as_long_as_the_block(other: Docker, root: Image) -> None:
    """Another process of this user carries the bytes, over whatever way the engine has."""
    with Sandbox.create(image=root, engine=other, block_network=True, timeout=60) as sandbox:
        with forwarded(sandbox, "sh", "-c", "wc -c; echo over") as tunnel, visit(tunnel) as visitor:
            visitor.sendall(bytes(1_000_000))
            visitor.shutdown(socket.SHUT_WR)
            assert rest(visitor) == b"1000000\nover\n"
        assert not is_open(tunnel)


def test_it_is_found_and_ended_by_its_id(other: Docker, root: Image) -> None:
    sandbox = Sandbox.create(image=root, engine=other, timeout=60)
    again = Sandbox.from_id(sandbox.id, engine=other)
    assert [found.id for found in Sandbox.list(engine=other)] == [sandbox.id]
    again.terminate()
    with pytest.raises(SandboxTerminatedError):
        sandbox.exec("true")
    assert sandbox.poll() == 137


def test_a_main_command_ends_it_and_its_output_stays(other: Docker, root: Image) -> None:
    script = "seq 1 100000; echo err >&2; exit 7"
    sandbox = Sandbox.create("sh", "-c", script, image=root, engine=other, timeout=60)
    assert sandbox.wait() == 7
    assert sandbox.stdout.read().splitlines() == [str(n) for n in range(1, 100_001)]
    assert sandbox.stderr.read() == "err\n"


def test_the_agent_inside_keeps_the_deadline(other: Docker, root: Image) -> None:
    sandbox = Sandbox.create(image=root, engine=other, timeout=1)
    with pytest.raises(TimeoutError):
        sandbox.wait(timeout=600)
    assert sandbox.returncode == 124


def test_nobody_inside_can_speak_for_the_agent(other: Docker, root: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was dialled was not looked at: root in the sandbox could answer in the agent's place."""
    monkeypatch.setattr("openmodal._agent._RECONNECT_SECONDS", 2.0)
    with Sandbox.create(image=root, engine=other, timeout=60) as sandbox:
        sandbox.spawn("/.openmodal/agent", "init", "--listen", f"{RUN}/other.sock")
        eventually(lambda: sandbox.filesystem.exists(f"{RUN}/other.sock"))
        assert Sandbox.from_id(sandbox.id, engine=other).exec("true").returncode == 0, "the control"
        sandbox.exec("mv", f"{RUN}/other.sock", SOCKET)
        with pytest.raises(EngineError, match="does not answer"):
            Sandbox.from_id(sandbox.id, engine=other).exec("true")


def test_links_that_break_are_replaced(other: Docker, root: Image) -> None:
    flaky = Flaky(other, [("receive", 1000), ("receive", 100_000), ("send", 1)])
    with Sandbox.create(image=root, engine=flaky, timeout=60) as sandbox:
        process = sandbox.exec("seq", "1", "100000")
        assert process.stdout.read().splitlines() == [str(n) for n in range(1, 100_001)]


def test_what_must_not_be_reached_is_not(other: Docker, root: Image, outbound: tuple[str, int]) -> None:
    with Sandbox.create(image=root, engine=other, timeout=60) as sandbox:
        assert connects(sandbox, *outbound, seconds=20), "the control"
        assert not connects(sandbox, "169.254.169.254", 80)
        gateway = (
            sandbox.exec("sh", "-c", "ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'").stdout.read().strip()
        )
        with server() as port:
            # Of a daemon far away only that address is known by which it is reached.
            hosts = {"127.0.0.1", gateway, *(own_addresses() if other.daemon.path else ())}
            assert not any(connects(sandbox, host, port) for host in hosts)


def test_info_tells_what_holds_it(other: Docker, root: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    if not other.daemon.path:
        monkeypatch.setattr(posture, "here", lambda *_: None)  # that machine's processes are not to be seen
    with Sandbox.create(image=root, engine=other, timeout=60, memory=256, cpu=0.5, block_network=True) as sandbox:
        info = sandbox.info()
        sandbox.pause()
        assert sandbox.info() == info
        inside = sandbox.exec("cat", "/proc/self/uid_map").stdout.read().split()
    assert (info.memory, info.cpu, info.pids, info.network) == (256, 0.5, 512, "none")
    assert (info.root, info.ids, len(info.capabilities), info.degraded) == (int(inside[1]), int(inside[2]), 10, ())
    with Sandbox.create(image=root, engine=other, timeout=60) as sandbox:
        assert sandbox.info().network == "outbound"


def test_it_is_paused_and_tells_what_it_has_used(other: Docker, root: Image) -> None:
    with Sandbox.create(image=root, engine=other, timeout=3) as sandbox:
        sandbox.set_timeout(600)
        sandbox.exec("sh", "-c", "head -c 5000000 /dev/urandom > /tmp/file; sync")
        sandbox.pause()
        assert sandbox.status().paused
        usage = sandbox.usage()
        assert (usage.cpu or 0) > 0 and (usage.processes or 0) >= 1
        assert (usage.written or 0) > 4_000_000
        assert sandbox.exec("wc", "-c", "/tmp/file").stdout.read().split()[0] == "5000000"
        assert not sandbox.status().paused


def test_it_is_cut_off_and_connected_again(other: Docker, root: Image, outbound: tuple[str, int]) -> None:
    with Sandbox.create(image=root, engine=other, timeout=60) as sandbox:
        sandbox.set_network(block_network=True)
        assert not connects(sandbox, *outbound)
        sandbox.set_network()
        assert connects(sandbox, *outbound, seconds=20)
        assert not connects(sandbox, "169.254.169.254", 80)


def test_a_failing_step_is_told(other: Docker, root: Image) -> None:
    from openmodal.errors import ImageBuildError

    with pytest.raises(ImageBuildError, match="exit code 3") as caught:
        root.run_commands("echo some output; exit 3").build(engine=other)
    assert "exit 3" in caught.value.step
    assert "some output" in caught.value.output


def test_a_daemon_that_wants_other_certificates_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    from tests.docker.proxy import make_certificates

    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    make_certificates(tmp_path / "ours")
    with far_away(daemon, tmp_path / "theirs") as behind, pytest.raises(EngineError, match="does not answer"):
        Sandbox.list(engine=Docker(daemon=Daemon(behind.host, str(tmp_path / "ours"))))


def test_it_is_found_as_dockers_own_command_line_finds_it(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with far_away(daemon, tmp_path) as behind:
        monkeypatch.setenv("DOCKER_HOST", behind.host)
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
        assert find() == behind
        assert Sandbox.list(engine="docker") == []
