"""`openmodal-docker` on sandboxes of a tiny image."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from openmodal.docker_cli import run
from openmodal.testing.fixtures import eventually

pytestmark = pytest.mark.embedded

COMMAND = [sys.executable, "-m", "openmodal.docker_cli"]
IMAGE = "team/tiny:1"


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


class Docker:
    """Does what `docker …` does: in this process, for a hundred processes take their time."""

    def run(self, *arguments: str, input: bytes = b"") -> Done:
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(input)
            files[0].seek(0)
            for name, file in zip(("stdin", "stdout", "stderr"), files, strict=True):
                stack.enter_context(_instead(name, file))
            code = run([*arguments])
            sys.stdout.flush()
            sys.stderr.flush()
            files[1].seek(0)
            files[2].seek(0)
            return Done(code, files[1].read(), files[2].read())

    def __call__(self, *arguments: str, code: int = 0, input: bytes = b"") -> str:
        """Its stdout; its exit code has to be `code`."""
        done = self.run(*arguments, input=input)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def error(self, *arguments: str, code: int = 1) -> str:
        """Its error, which has to be one line."""
        done = self.run(*arguments)
        text = done.stderr.decode()
        assert (done.returncode, text.count("\n")) == (code, 1), f"exit code {done.returncode}\n{text}"
        return text

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A process of its own, as tools start it."""
        return subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def names(self) -> list[str]:
        return self("ps", "--format", "{{.Names}}").split()


@contextmanager
def _instead(name: str, file: IO[bytes]) -> Iterator[None]:
    """A file as one of the three standard streams, for Python and below it."""
    fd = ("stdin", "stdout", "stderr").index(name)
    saved, before = os.dup(fd), getattr(sys, name)
    os.dup2(file.fileno(), fd)
    mode = "w" if fd else "r"
    setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    try:
        yield
    finally:
        getattr(sys, name).close()
        setattr(sys, name, before)
        os.dup2(saved, fd)
        os.close(saved)


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMODAL_ENGINE", "embedded")
        yield


@pytest.fixture(scope="module")
def image(engine: None, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the image that all tests use."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "Dockerfile").write_text(
        "FROM scratch\nARG MADE=here\nCOPY . /\nENV PATH=/bin\nRUN echo $MADE > /made\n"
        'ENTRYPOINT ["cat"]\nCMD ["/made"]\nWORKDIR /tmp\n'
    )
    arguments = ("-t", IMAGE, "--build-arg", "MADE=there", "-f", str(folder / "Dockerfile"), str(tiny_root))
    return Docker()("build", "-q", *arguments).strip()


@pytest.fixture
def docker(image: str) -> Iterator[Docker]:
    docker = Docker()
    yield docker
    left = docker("ps", "-q", "--filter", "status=running", "--filter", "status=created", "--filter", "status=paused")
    if left:
        docker("rm", "-f", *left.split())


def sh(script: str) -> tuple[str, ...]:
    return "--entrypoint", "sh", IMAGE, "-c", script


@pytest.fixture
def web(docker: Docker) -> str:
    """The id of a container that runs behind us."""
    script = "echo out; echo err >&2; exec sleep 600"
    return docker("run", "-d", "--name", "web", "-l", "team/a=b c", "-e", "A=1", "-w", "/new", *sh(script)).strip()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((IMAGE,), 0, "there\n"),
        ((IMAGE, "/nothing"), 1, ""),
        (sh("exit 7"), 7, ""),
        (sh("kill -9 $$"), 137, ""),
        (("--entrypoint", "nothing", IMAGE), 127, ""),
        (("-e", "A=1", "-e", "HOME", "-w", "/made-for-it", "-u", "1000", *sh("echo $A $HOME; pwd; id -u")), 0, None),
    ],
)
def test_run_is_the_commands_output_and_exit_code(
    docker: Docker, arguments: tuple[str, ...], code: int, said: str | None
) -> None:
    expected = f"1 {os.environ['HOME']}\n/made-for-it\n1000\n" if said is None else said
    assert docker("run", "--rm", "--network", "none", *arguments, code=code) == expected


def test_what_is_wrong_about_a_run_is_125_and_one_line(docker: Docker) -> None:
    assert "unknown flag: --bogus" in docker.error("run", "--bogus", IMAGE, code=125)
    assert "No such image: team/other" in docker.error("run", "--pull=never", "team/other", code=125)
    assert "has no --privileged" in docker.error("run", "--privileged", IMAGE, code=125)
    assert "network db not found" in docker.error("run", "--network", "db", IMAGE, code=125)
    assert "the same --network" in docker.error("run", "--network", "container:web", IMAGE, code=125)
    assert "in one network" in docker.error("run", "--network", "a", "--network", "b", IMAGE, code=125)
    assert "say which with --network" in docker.error("run", "--network-alias", "db", IMAGE, code=125)
    assert "write 512m or 2g" in docker.error("run", "-m", "much", IMAGE, code=125)
    assert "leave --platform out" in docker.error("run", "--platform", "linux/riscv64", IMAGE, code=125)
    assert docker.names() == []


def test_what_openmodal_does_not_do_is_one_line_that_says_what_to_use(docker: Docker) -> None:
    assert "adapter" in docker.error("compose", "up")
    assert "`docker network connect` is not done" in docker.error("network", "connect", "x", "y")
    assert "openmodal volume" in docker.error("volume", "ls")
    assert "not a docker command" in docker.error("bogus")


def test_containers_of_a_network_find_each_other_by_name_and_others_do_not(docker: Docker) -> None:
    assert re.fullmatch("[0-9a-f]{64}", docker("network", "create", "--internal", "shop").strip())
    assert "already exists" in docker.error("network", "create", "shop")
    assert "no network driver" in docker.error("network", "create", "-d", "overlay", "other")
    assert "predefined" in docker.error("network", "create", "host")
    assert docker("network", "ls", "--filter", "name=sh", "--format", "{{.Name}} {{.Driver}}") == "shop bridge\n"
    serves = ("--network", "shop", "--network-alias", "db", *sh("exec nc -ll -p 80 -e cat"))
    docker("run", "-d", "--name", "the_shop", *serves)
    asks = "for i in 1 2 3 4 5 6 7 8 9; do echo hi | nc -w 9 $0 80 && exit; sleep 1; done; exit 1"
    for name in ("db", "the_shop"):
        assert docker("run", "--rm", "--network", "shop", *sh(asks), name) == "hi\n"
    assert docker("run", "--rm", *sh("echo hi | nc -w 9 $0 80"), "db", code=1) == ""
    ((found,), (container,)) = (
        json.loads(docker("network", "inspect", "shop")),
        json.loads(docker("inspect", "the_shop")),
    )
    assert [each["Name"] for each in found["Containers"].values()] == ["the_shop"]
    assert (found["Internal"], container["HostConfig"]["NetworkMode"]) == (True, "shop")
    (in_a_line,) = json.loads(docker("network", "inspect", "--format", "json", "shop"))
    assert in_a_line == found
    assert "active endpoints: the_shop" in docker.error("network", "rm", "shop")
    docker("rm", "-f", "the_shop")
    assert docker("network", "rm", "shop") == "shop\n"
    assert "network shop not found" in docker.error("network", "inspect", "shop")


def test_standard_input_goes_to_the_command_with_i_only(docker: Docker) -> None:
    data = bytes(range(256)) * 1000
    done = docker.run("run", "--rm", "-i", IMAGE, "-", input=data)
    assert (done.returncode, done.stdout) == (0, data)
    assert docker("run", "--rm", IMAGE, "-", input=b"not read") == ""


def test_a_container_behind_us_is_used_looked_at_and_stopped(docker: Docker, web: str) -> None:
    assert re.fullmatch("[0-9a-f]{40}", web)
    assert docker("ps", "--format", '{{.ID}}|{{.Names}}|{{.Image}}|{{.State}}|{{.Label "team/a"}}') == (
        f"{web[:12]}|web|{IMAGE}|running|b c\n"
    )
    for word in ("web", web, web[:12]):
        assert docker("exec", "-e", "B=2", word, "sh", "-c", "echo $A $B; pwd; exit 3", code=3) == "1 2\n/new\n"
    assert "nothing" in docker.error("exec", "web", "nothing", code=127)
    assert docker.run("exec", "-i", "web", "cat", input=b"in").stdout == b"in"
    docker("exec", "-d", "web", "sh", "-c", "echo late > /late")
    eventually(lambda: docker.run("exec", "web", "cat", "/late").stdout == b"late\n")
    for _ in range(2):  # looking takes nothing away
        done = docker.run("logs", "web")
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    (found,) = json.loads(docker("inspect", "web"))
    assert (found["Id"], found["Name"], found["State"]["Running"]) == (web, "/web", True)
    assert found["Config"]["Labels"] == {"team/a": "b c"}
    assert docker("inspect", "-f", "{{.State.Status}} {{.Config.Image}} {{json .Args}}", "web").startswith(
        f"running {IMAGE} ["
    )
    assert docker("ps", "-q", "--filter", "name=we", "--filter", "label=team/a") == f"{web[:12]}\n"
    assert docker("ps", "-q", "--filter", "label=team/a=c") == ""
    assert "container is running" in docker.error("rm", "web")
    assert 'The container name "/web" is already in use' in docker.error("run", "-d", "--name", "web", IMAGE, code=125)
    assert docker("stop", "-t", "60", "web") == "web\n"
    assert docker("wait", "web") == "143\n"
    assert "Exited (143)" in docker("ps", "-a", "--filter", "name=web", "--format", "{{.Status}}")
    assert "No such container: web2" in docker.error("exec", "web2", "true")
    assert "is not running" in docker.error("exec", "web", "true")


def test_what_was_removed_or_ran_with_rm_is_not_known_any_more(docker: Docker, web: str) -> None:
    docker("run", "-d", "--rm", "--name", "short", *sh("exit 0"))
    eventually(lambda: docker.names() == ["web"])
    assert docker("rm", "-f", "web") == "web\n"
    for word in (web, "web", "short"):
        done = docker.run("inspect", word)
        assert (done.returncode, done.stdout) == (1, b"[]\n")
    assert docker("ps", "-a", "--filter", "name=^short$|^web$", "--format", "{{.Names}} {{.ID}}").count(web[:12]) == 0


def test_a_container_is_created_filled_started_and_read(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_text("deep\n")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    name = "a-name-that-is-longer-than-a-sandbox-may-have-" * 2 + "x"
    docker("create", "--name", name, "-p", f"{port}:80", *sh("cat /tree/below/file; exec nc -ll -p 80 -e cat"))
    assert docker("ps", "-a", "--filter", "status=created", "--format", "{{.Names}}") == f"{name}\n"
    docker("cp", "tree", f"{name}:/tree")
    docker("cp", "tree/.", f"{name}:/tree")
    docker("cp", "tree/below/file", f"{name}:/")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tmp_path / "tree" / "below", "packed")
    docker("cp", "-", f"{name}:/tmp", input=packed.getvalue())
    assert docker("start", name) == f"{name}\n"
    assert docker("port", name, "80") == f"127.0.0.1:{port}\n"
    ports = '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}'
    assert docker("inspect", "--format", ports, name) == f"{port}\n"
    assert docker("exec", name, "cat", "/tree/below/file", "/file", "/tmp/packed/file") == "deep\n" * 3
    eventually(lambda: docker("logs", "--tail", "1", name) == "deep\n")
    docker("cp", f"{name}:/tree", "back")
    assert (tmp_path / "back/below/file").read_text() == "deep\n"
    streamed = docker.run("cp", f"{name}:/tree/below", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(streamed)) as archive:
        assert archive.getnames() == ["below", "below/file"]
    assert "Could not find the file /nothing" in docker.error("cp", f"{name}:/nothing", "x")
    assert docker("kill", name) == f"{name}\n"
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name) == "137\n"


def test_images_are_known_by_their_names_and_ids(docker: Docker, image: str) -> None:
    assert re.fullmatch("sha256:[0-9a-f]{64}", image)
    assert docker("inspect", "-f", "{{.Id}} {{.RepoTags}} {{.Config.Cmd}}", IMAGE) == f"{image} [{IMAGE}] [/made]\n"
    assert docker("run", "--rm", image[:19]) == "there\n"
    nameless = docker("build", "-q", "-", input=f"FROM scratch\nENV A={image}\n".encode()).strip()
    assert docker("image", "inspect", "--format", "{{.Os}} {{index .Config.Env 1}}", nameless) == f"linux A={image}\n"
    docker("tag", IMAGE, "host:5000/other")
    listed = docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
    assert {f"{IMAGE} {image[7:19]}", f"host:5000/other:latest {image[7:19]}"} <= {*listed}
    docker("run", "-d", "--name", "changed", *sh("echo more > /more; exec sleep 600"))
    eventually(lambda: docker("diff", "changed") == "A /more\n")
    docker("commit", "changed", "team/changed")
    assert docker("inspect", "-f", "{{.Config.Entrypoint}}", "team/changed") == "[sh]\n"
    assert docker("run", "--rm", "--entrypoint", "cat", "team/changed", "/more") == "more\n"
    assert docker("rmi", "host:5000/other", "team/changed", nameless).count("Untagged: ") == 3
    assert "No such image" in docker.error("rmi", "team/changed")


def test_a_killed_run_ends_its_container_and_a_signal_is_passed_on(docker: Docker) -> None:
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 9)):
        running = docker.start(
            "run", "--name", "front", *sh("trap 'exit 9' TERM; echo begun; while :; do sleep 0.1; done")
        )
        with running:
            assert running.stdout
            assert running.stdout.readline() == b"begun\n"
            assert docker.names() == ["front"]
            running.send_signal(number)
            assert running.wait(60) == code
        eventually(lambda: docker.names() == [])
    assert docker("wait", "front") == "9\n"


def test_a_run_in_front_is_stopped_from_elsewhere(docker: Docker) -> None:
    with docker.start("run", "--rm", "--name", "front", *sh("echo begun; exec sleep 600")) as running:
        assert running.stdout
        assert running.stdout.readline() == b"begun\n"
        docker("stop", "front")
        assert running.wait(60) == 143


def test_versions_are_told_in_the_forms_that_tools_ask_for(docker: Docker) -> None:
    version = docker("version", "--format", "{{.Server.Version}}").strip()
    assert version.startswith("28.")
    assert docker("--version") == f"Docker version {version}, build openmodal\n"
    assert docker("info", "-f", "{{.OSType}} {{.ServerVersion}}") == f"linux {version}\n"
