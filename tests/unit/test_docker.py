"""The Docker engine's pure parts: where the daemon is, what a container is asked for, what a build tells."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from openmodal._spec import Config, Copy, Dockerfile, Referenced, Resources, Run, SandboxSpec, Status
from openmodal.build import context as recipe
from openmodal.build.told import Listener, News
from openmodal.engines.docker import container, generations, links
from openmodal.engines.docker.daemon import Daemon, find
from openmodal.engines.docker.doctor import problems
from openmodal.engines.docker.host import Host
from openmodal.errors import EngineError, InvalidError, UnsupportedError

STATUS = Status("app-1", "app", "", (), 1.0, 61.0, "key", "docker")
ROOT = Referenced("key", reference="sha256:1")


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_TLS", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def context(folder: Path, name: str, host: str, *, tls: bool = False) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts/meta" / digest
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    if tls:
        (folder / "contexts/tls" / digest / "docker").mkdir(parents=True)


def test_the_usual_socket_is_the_default() -> None:
    assert find() == Daemon("unix:///var/run/docker.sock")


def test_docker_host_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context(tmp_path, "other", "tcp://10.0.0.1:2376")
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.2:2375")
    assert find() == Daemon("tcp://10.0.0.2:2375", "", verify=False)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certificates")
    assert find() == Daemon("tcp://10.0.0.2:2375", "/certificates", verify=True)


def test_the_current_context_is_followed(tmp_path: Path) -> None:
    context(tmp_path, "far", "tcp://10.0.0.1:2376", tls=True)
    (tmp_path / "config.json").write_text('{"currentContext": "far"}')
    found = find()
    assert (found.host, found.verify) == ("tcp://10.0.0.1:2376", True)
    assert found.certificates.startswith(str(tmp_path / "contexts/tls"))


def test_a_context_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nothing")
    with pytest.raises(EngineError, match="nothing"):
        find()


@pytest.mark.parametrize("host", ["ssh://host", "npipe:////./pipe/docker", "nonsense"])
def test_addresses_of_other_kinds_are_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(UnsupportedError, match="unix://"):
        find()


@pytest.mark.parametrize(
    ("host", "options", "version", "named"),
    [
        ("unix:///x", ["name=seccomp,profile=default"], "20.10.24", {"docker version", "docker runc", "docker users"}),
        ("unix:///x", ["name=seccomp", "name=rootless"], "29.5.1", {"docker runc"}),
        ("tcp://far:2375", ["name=userns"], "29.6.0", {"docker runc", "docker seccomp", "docker access"}),
    ],
)
def test_doctor_names_what_is_weak(host: str, options: list[str], version: str, named: set[str]) -> None:
    machine = Host(Daemon(host), {"SecurityOptions": options, "Name": "elsewhere"})
    components = [{"Name": "runc", "Version": "1.1.5+ds1"}]
    assert {check.name for check in problems(machine, {"Version": version, "Components": components})} == named


# --------------------------------------------------------------------------------------- containers


def test_no_variable_is_in_what_the_daemon_is_told() -> None:
    spec = SandboxSpec(app="app", env=(("KEY", "canary"),), argv=("sleep", "1"))
    assert "canary" not in json.dumps(container.body(spec, ROOT, STATUS, "/home", container.Place()))


def test_limits_are_the_asked_ones_or_the_defaults() -> None:
    host = container.body(SandboxSpec(app="a"), ROOT, STATUS, "", container.Place())["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (2 << 30, 2 << 30, 10**9, 512)
    assert host["CpuShares"] == 1024
    spec = SandboxSpec(app="a", resources=Resources(cpu=0.5, memory=64, disk=100))
    host = container.body(spec, ROOT, STATUS, "", container.Place())["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["StorageOpt"]) == (64 << 20, 500_000_000, {"size": "100M"})
    assert host["CpuShares"] == 512


def test_without_a_shared_folder_the_socket_is_in_memory() -> None:
    mounts = container.body(SandboxSpec(app="a"), ROOT, STATUS, "", container.Place())["HostConfig"]["Mounts"]
    assert [(mount["Type"], mount["Target"]) for mount in mounts] == [("tmpfs", links.RUN)]


def test_denied_prefixes_are_joined() -> None:
    assert container.joined(["10.0.0.0/8", "10.1.2.3", "192.0.2.1"]) == ["10.0.0.0/8", "192.0.2.1/32"]


@pytest.mark.parametrize(
    ("state", "stderr", "reason", "code", "rest"),
    [
        ({}, b"2 dGV4dA==\n\nopenmodal: exited 3 7 4\n", "exited", 3, b"text"),
        ({}, b"openmodal: a word\n2 dGV4dA==\n\nopenmodal: exited 3 7 4\n", "exited", 3, b"openmodal: a word\ntext"),
        ({}, b"2 dGV4dHRl\n2 dGV4d\nopenmodal: exited 3 7 4\n", "exited", 3, b"texttetex"),
        (
            {},
            b"\nopenmodal: exited 0 1 2\n\nopenmodal: timeout 124 7 4\n",
            "timeout",
            124,
            b"\nopenmodal: exited 0 1 2\n",
        ),
        ({"OOMKilled": True}, b"half", "oom", 137, b"half"),
        ({}, b"half", "lost", 137, b"half"),
        ({}, b"\nopenmodal: exited 0 0 0\nmore", "lost", 137, b"\nopenmodal: exited 0 0 0\nmore"),
        ({}, b"\nopenmodal: nonsense 0 0 0\n", "lost", 137, b"\nopenmodal: nonsense 0 0 0\n"),
    ],
)
def test_only_the_agents_last_line_tells_the_end(
    state: dict[str, object], stderr: bytes, reason: str, code: int, rest: bytes
) -> None:
    end, kept = container.end_of(state, {1: b"1 b3V0\n", 2: stderr}, 5.0)
    assert (end.reason, end.returncode, end.ended, kept) == (reason, code, 5.0, {1: b"out", 2: rest})
    assert end.written == ((0, 0) if reason in ("oom", "lost") else (7, 4))


def test_logs_are_taken_apart_by_stream() -> None:
    def piece(number: int, text: bytes) -> bytes:
        return bytes([number, 0, 0, 0]) + len(text).to_bytes(4, "big") + text

    data = piece(1, b"a") + piece(2, b"b") + piece(1, b"c") + b"\x01\x00"
    assert links.pieces(data) == {1: b"ac", 2: b"b"}


# ------------------------------------------------------------------------------------------ recipes


def only(*steps: Run | Copy | Config | Dockerfile, user: str = "", authorities: str = "") -> recipe.Part:
    (part,) = recipe.parts(steps, 0, user, authorities)
    return part


def test_steps_run_as_root_and_leave_the_images_user_as_it_was() -> None:
    part = only(Run(("/bin/sh", "-c", "id")), user="agent")
    lines = part.text.splitlines()
    assert (lines[0], lines[1].split()[0], lines[-1]) == ("USER 0", "RUN", "USER agent")


def test_values_are_not_expanded_by_docker() -> None:
    part = only(Config(env=(("NAME", 'a $HOME "b" \\n'),)))
    assert part.text == 'ENV NAME="a \\$HOME \\"b\\" \\\\n"\n'


def test_a_value_with_a_line_break_is_refused() -> None:
    with pytest.raises(InvalidError, match="line break"):
        only(Config(env=(("NAME", "a\nb"),)))


def test_caches_are_mounts_of_the_builder() -> None:
    part = only(Run(("true",), caches=("/var/lib/apt/lists",)))
    assert "--mount=type=cache,id=openmodal-var-lib-apt-lists-" in part.text
    assert "sharing=locked" in part.text


def test_local_files_travel_with_the_modes_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("x")
    (tmp_path / "tool").chmod(0o700)
    (tmp_path / "link").symlink_to("tool")
    part = only(Copy(str(tmp_path), "/app"), Copy(str(tmp_path / "tool"), "/bin/"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(recipe.archive(part, "FROM x\n", b"")))) as tar:
        found = {member.name: (member.mode, member.linkname) for member in tar.getmembers()}
    assert found["c0/tool"] == (0o755, "")
    assert found["c0/link"][1] == "tool"
    assert found["c1/tool"] == (0o755, "")
    assert part.text.splitlines() == ['COPY ["c0/", "/app/"]', 'COPY ["c1/tool", "/bin/"]']


def test_a_dockerfile_of_the_users_is_a_part_of_its_own() -> None:
    steps = (Run(("true",)), Dockerfile(lines=("RUN echo x",)), Run(("true",)))
    assert [part.last for part in recipe.parts(steps, 0, "", "")] == [0, 1, 2]


# ----------------------------------------------------------------------------------------- progress


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def vertex(digest: bytes, name: bytes, *more: bytes) -> bytes:
    return field(1, field(1, digest) + field(3, name) + b"".join(more))


def heard(*records: bytes) -> list[News]:
    news: list[News] = []
    listener = Listener(news.append)
    for record in records:
        listener.hear({"id": "moby.buildkit.trace", "aux": base64.b64encode(record).decode()})
    return news


def test_buildkits_trace_is_understood() -> None:
    name = b"[2/3] RUN make"
    news = heard(
        vertex(b"d1", b"[internal] load build definition", field(5, b"t")),
        vertex(b"d2", name, field(5, b"t")),
        field(3, field(1, b"d2") + bytes([3 << 3, 1]) + field(4, b"said\n")),
        vertex(b"d2", name, field(5, b"t"), field(6, b"t")),
        vertex(b"d3", b"[stage-1 3/3] RUN false", bytes([4 << 3, 1]), field(5, b"t"), field(6, b"t")),
        vertex(b"d4", b"[3/3] RUN no", field(5, b"t"), field(6, b"t"), field(7, b"exit code: 3")),
    )
    assert news == [
        News("start", 2, "RUN make"),
        News("output", 2, "RUN make", "said\n"),
        News("done", 2, "RUN make"),
        News("start", 3, "RUN false"),
        News("cached", 3, "RUN false"),
        News("start", 3, "RUN no"),
        News("failed", 3, "RUN no", "exit code: 3"),
    ]


def test_the_older_builders_lines_are_understood() -> None:
    news: list[News] = []
    listener = Listener(news.append)
    for text in ("Step 2/3 : RUN make\n", " ---> Running in abc\n", "\x1b[91mwarning\n\x1b[0m", "STEP 3/3: CMD x\n"):
        listener.hear({"stream": text})
    listener.hear({"aux": {"ID": "sha256:1"}})
    listener.hear({"error": "short", "errorDetail": {"message": "long"}})
    assert news == [
        News("start", 2, "RUN make"),
        News("output", 2, "RUN make", "warning\n"),
        News("start", 3, "CMD x"),
    ]
    assert (listener.image, listener.error) == ("sha256:1", "long")


@pytest.mark.parametrize(
    ("names", "is_over"),
    [
        (None, True),
        (["<none>:<none>"], True),
        (["mine:latest"], False),
        (["openmodal:name-mine"], False),
        (["openmodal:snap-1"], True),
        (["openmodal:snap-1", "mine:latest"], True),
    ],
)
def test_of_what_inherits_a_snapshots_label_only_ours_and_the_nameless_expires(
    names: list[str] | None, is_over: bool
) -> None:
    item = {"Id": "sha256:1", "RepoTags": names, "Created": 1, "Labels": {generations.SNAPSHOT: "snap-1 1.0"}}
    assert generations._is_over(item) == is_over
