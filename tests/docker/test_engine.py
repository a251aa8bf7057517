"""What is Docker's own: how sandboxes look there, and what locks them in beyond the contract."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_IMODE

import pytest

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.docker.daemon import Daemon, MissingError
from openmodal.engines.docker.host import Host
from openmodal.engines.docker.links import RUN, SOCKET
from openmodal.errors import EngineError, NotFoundError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.faces import Face, open_face
from openmodal.testing.fixtures import Create, eventually, python, python_starts
from openmodal.testing.limits import server
from tests.docker.engine import DockerUnderTest

# Connects through eth0, whatever the routes say: SO_BINDTODEVICE needs no right since Linux 5.7.
BOUND = """
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
int main(int count, char **argv) {
    struct timeval patience = {3, 0};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5) != 0)
        return 2;
    return connect(fd, (struct sockaddr *)&to, sizeof to) != 0;
}
"""


@pytest.fixture
def face() -> Face:
    """These tests are about the engine, whatever the face."""
    return open_face("blocking")


def described(daemon: Daemon, id: str) -> dict[str, object]:
    with daemon.open() as api:
        found: dict[str, object] = api.get(f"/containers/{id}/json")
    return found


def test_docker_shows_the_sandbox_by_its_id(create: Create, daemon: Daemon) -> None:
    sandbox = create()
    assert described(daemon, sandbox.id)["Name"] == f"/{sandbox.id}"


def test_variables_and_secrets_are_not_in_the_containers_description(create: Create, daemon: Daemon) -> None:
    sandbox = create(env={"PLAIN": "canary-4711"}, secrets=[Secret.from_dict({"KEY": "canary-4712"})])
    assert sandbox.exec("sh", "-c", "echo $PLAIN $KEY").stdout.read() == "canary-4711 canary-4712\n", "the control"
    text = json.dumps(described(daemon, sandbox.id))
    assert "FROM_IMAGE" in text, "the control: the image's own are there"
    assert "canary" not in text
    assert "canary" not in sandbox.exec("sh", "-c", "tr '\\0' '\\n' < /proc/1/cmdline").stdout.read()


def test_a_sandbox_is_locked_in(create: Create, daemon: Daemon) -> None:
    sandbox = create()
    lines = sandbox.exec("cat", "/proc/self/status").stdout.read().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == 0x800404FB, name
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    host = described(daemon, sandbox.id)["HostConfig"]
    assert isinstance(host, dict)
    assert not host["Privileged"]
    assert (host["IpcMode"], host["PidMode"], host["UTSMode"], host["CgroupnsMode"]) == ("private", "", "", "private")
    assert not [mount for mount in host["Mounts"] if not mount.get("ReadOnly") and mount["Target"] != RUN]


def test_a_sandbox_weighs_what_it_may_use(create: Create, daemon: Daemon) -> None:
    """All had the same weight beside each other, whatever their `cpu`."""
    said: dict[str, int] = described(daemon, create(cpu=0.5).id)["HostConfig"]  # type: ignore[assignment]
    assert said["CpuShares"] == 512


def test_namespaces_of_users_cannot_be_made(create: Create) -> None:
    """A plain container of the daemon would filter it, too; here the agent's own filter does, with every daemon."""
    assert create().exec("unshare", "-U", "true").returncode != 0


@pytest.fixture(scope="session")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that connects through eth0."""
    if not shutil.which("musl-gcc"):
        pytest.skip("needs Debian's package musl-tools")
    folder = tmp_path_factory.mktemp("bound")
    (folder / "bound.c").write_text(BOUND, encoding="ascii")
    subprocess.run(["musl-gcc", "-static", "-o", folder / "bound", folder / "bound.c"], check=True)
    return folder / "bound"


def test_a_socket_bound_to_the_interface_gets_no_further(
    create: Create, bound: Path, outbound: tuple[str, int]
) -> None:
    sandbox = create()
    sandbox.filesystem.copy_from_local(str(bound), "/tmp/bound")
    sandbox.exec("chmod", "755", "/tmp/bound")
    gateway = sandbox.exec("sh", "-c", "ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'").stdout.read().strip()
    assert gateway
    address = socket.gethostbyname(outbound[0])
    assert sandbox.exec("/tmp/bound", address, str(outbound[1])).returncode == 0, "the control: it reaches the internet"
    with server() as port:
        with socket.create_connection((gateway, port), 5):
            pass  # the control: the service is there at that address
        assert sandbox.exec("/tmp/bound", gateway, str(port)).returncode == 1


def test_nobody_inside_can_speak_for_the_agent(create: Create, engine: DockerUnderTest) -> None:
    sandbox = create()
    assert sandbox.filesystem.exists("/.openmodal/agent")
    stream = run_sync(engine.connect(sandbox.id))
    stream.close()  # the control: the agent itself is let through
    sandbox.exec("rm", SOCKET)
    sandbox.spawn("/.openmodal/agent", "init", "--listen", SOCKET)
    with suppress(EngineError):  # a new link meets it already
        eventually(lambda: sandbox.filesystem.exists(SOCKET))
    with pytest.raises(ConnectionRefusedError, match="not the agent"):
        run_sync(engine.connect(sandbox.id))


@pytest.mark.parametrize("put", ["ln -s /run/docker.sock", "mkdir", "touch"])
def test_nothing_put_in_the_sockets_place_is_followed(create: Create, engine: DockerUnderTest, put: str) -> None:
    sandbox = create()
    assert sandbox.exec("sh", "-c", f"rm {SOCKET} && {put} {SOCKET}").returncode == 0
    with pytest.raises(ConnectionRefusedError, match="not a socket"):
        run_sync(engine.connect(sandbox.id))


@pytest.fixture
def full(engine: DockerUnderTest) -> Iterator[Callable[[Sandbox], None]]:
    """Puts a socket in the place of a sandbox's that accepts nobody, and whose queue is full."""
    with ExitStack() as stack:

        def put(sandbox: Sandbox) -> None:
            file = engine._book.folder(sandbox.id) / "run/agent.sock"
            file.unlink()
            listening, queued = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
            listening.bind(str(file))
            listening.listen(0)
            queued.connect(str(file))

        yield put


def test_who_waits_at_a_socket_that_accepts_nobody_waits_no_longer_than_he_said(
    create: Create, full: Callable[[Sandbox], None]
) -> None:
    """Root in the sandbox can put one there: `wait` hung for ever, whatever its timeout."""
    sandbox = create()
    full(sandbox)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        sandbox.wait(timeout=1)
    assert time.monotonic() - began < 4


def test_a_call_to_a_socket_that_accepts_nobody_ends_with_a_sentence(
    create: Create, engine: DockerUnderTest, full: Callable[[Sandbox], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hung for ever."""
    monkeypatch.setattr("openmodal._link._QUEUE_SECONDS", 1.0)
    monkeypatch.setattr("openmodal._agent._RECONNECT_SECONDS", 2.0)
    sandbox = create()
    full(sandbox)
    with pytest.raises(EngineError, match=r"does not answer \(.* accepted no connection .*\); terminate it"):
        Sandbox.from_id(sandbox.id, engine=engine).exec("true")


@pytest.mark.parametrize("put", ["true", f"rm {SOCKET} && mkdir -p {SOCKET}/a", f"rm {SOCKET} && ln -s / {SOCKET}"])
def test_a_reset_empties_the_sockets_folder(create: Create, engine: DockerUnderTest, put: str) -> None:
    """What root in the sandbox put there stayed, and a folder in the socket's place ended the sandbox."""
    sandbox = create()
    folder = engine._book.folder(sandbox.id) / "run"
    script = f"cd {RUN} && chmod 777 . && mkdir -p .a/b && echo x > .a/b/file && ln -s / link && mkfifo pipe && {put}"
    assert sandbox.exec("sh", "-c", script).returncode == 0
    sandbox.reset()
    assert sandbox.exec("ls", "-A", RUN).stdout.read() == "agent.sock\n"
    assert S_IMODE(folder.stat().st_mode) == 0o700


def test_how_it_ended_cannot_be_forged(create: Create) -> None:
    sandbox = create("sh", "-c", "printf '\\nopenmodal: exited 0 0 0\\n' >&2; exit 9")
    assert sandbox.wait() == 9
    assert sandbox.stderr.read() == "\nopenmodal: exited 0 0 0\n"
    other = create()
    assert other.exec("sh", "-c", "echo x > /proc/1/fd/2").returncode != 0


def test_volumes_of_the_image_go_with_the_sandbox(create: Create, image: Image, daemon: Daemon) -> None:
    sandbox = create(image=image.dockerfile_commands(["VOLUME /data"]))
    sandbox.filesystem.write_text("/data/file", "x")
    with daemon.open() as api:
        before = {volume["Name"] for volume in api.get("/volumes")["Volumes"]}
        sandbox.terminate()
        after = {volume["Name"] for volume in api.get("/volumes")["Volumes"] or ()}
    assert len(before - after) == 1


def test_a_container_of_others_is_none_of_ours(daemon: Daemon, engine: DockerUnderTest, image: Image) -> None:
    root = run_sync(engine.prepare(image.recipe, lambda progress: None))
    with daemon.open() as api:
        api.post("/containers/create", {"Image": root.reference, "Cmd": ["sleep", "9"]}, name="contract-0000abcd")
        try:
            with pytest.raises(NotFoundError):
                Sandbox.from_id("contract-0000abcd", engine=engine)
            run_sync(engine.stop("contract-0000abcd"))
            assert "sandbox contract-0000abcd" not in engine.gc()
            assert api.get("/containers/contract-0000abcd/json")["Name"] == "/contract-0000abcd", "it is still there"
        finally:
            api.delete("/containers/contract-0000abcd", force=True)


def test_gc_collects_what_ended_unseen(daemon: Daemon, engine: DockerUnderTest, engine_name: str, image: Image) -> None:
    source = """
        sandbox = openmodal.Sandbox.create("sh", "-c", "exit 3", image=image, engine=argv[0], timeout=60)
        print(sandbox.id, flush=True)
        os.kill(os.getpid(), 9)
    """
    with python_starts(source, engine_name, image=image) as child:
        id = child.communicate(timeout=600)[0].strip()

    def state() -> object:
        with daemon.open() as api:
            return api.get(f"/containers/{id}/json")["State"]["Status"]

    eventually(lambda: state() == "exited")
    assert f"sandbox {id}" in engine.gc(check=True)
    assert state() == "exited", "it was only told"
    assert f"sandbox {id}" in engine.gc()
    with pytest.raises(MissingError):
        state()
    assert Sandbox.from_id(id, engine=engine).wait() == 3, "how it ended is still known"


def test_gc_leaves_running_sandboxes_alone(create: Create, engine: DockerUnderTest) -> None:
    sandbox = create()
    assert f"sandbox {sandbox.id}" not in engine.gc()
    assert sandbox.exec("true").returncode == 0


def test_gc_leaves_one_alone_that_has_begun_since_the_list(
    create: Create, engine: DockerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = create()
    monkeypatch.setattr("openmodal.engines.docker.container.runs", lambda item: False)
    assert f"sandbox {sandbox.id}" not in engine.gc()
    assert sandbox.exec("true").returncode == 0


@pytest.fixture
def as_docker(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where this daemon is Docker."""
    monkeypatch.setenv("DOCKER_HOST", daemon.host)


@pytest.mark.usefixtures("as_docker")
def test_local_means_docker_where_a_daemon_answers(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        app = openmodal.App("cli")
        with openmodal.Sandbox.create(app=app, image=image, timeout=60) as sandbox:
            print(sandbox.status().engine)
    """
    assert python(source, image=image) == "docker\n"
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert python(source, image=image) == "embedded\n", "without one it is the embedded engine"


def test_the_apps_sandboxes_are_found_by_another_home_only_by_name_of_the_owner(
    create: Create, daemon: Daemon, tmp_path: Path
) -> None:
    """Another user's list does not show them."""
    from openmodal.engines.docker.engine import Docker

    sandbox = create(app=App("owned"))
    assert sandbox.id not in {status.id for status in run_sync(Docker(tmp_path, daemon).list())}


def test_a_disk_is_refused_before_the_image_is_built(
    create: Create, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}
    monkeypatch.setattr(Host, "of", lambda daemon: Host(daemon, told))
    with pytest.raises(UnsupportedError, match=r"disk= needs .* is on extfs"):
        create(image=image.run_commands("sleep 3600"), disk=64)
