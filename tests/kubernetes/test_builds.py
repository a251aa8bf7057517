"""Builds in the cluster: all of the way there and back, on a real cluster, with a program in
BuildKit's place that says what it was given.

BuildKit itself is in no package of Debian 12, and no registry that has its image is reached from
here: with it, this is not yet tried.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from openmodal._dual import run_sync
from openmodal._spec import Copy, Dockerfile, Progress, Run
from openmodal.build import Options, context
from openmodal.build.layers import Layers
from openmodal.build.reference import parse
from openmodal.build.remote import Order
from openmodal.build.steps import Builder
from openmodal.build.told import Told, runs_nothing
from openmodal.engines.kubernetes import Kubernetes, agent
from openmodal.engines.kubernetes.images import buildkit
from openmodal.engines.kubernetes.settings import Settings, read
from openmodal.errors import EngineError, ImageBuildError, ImageError
from openmodal.image import Image
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import api

TARGET = parse("registry.example/team/openmodal:om-1")

BUILDKITD = """\
#!/bin/sh
id -u >/run/openmodal-buildkit/buildkitd.sock
exec sleep 600
"""

# In the words of BuildKit's client: client/graph.go (SolveStatus), one object per line of stderr.
BUILDCTL = """\
#!/bin/sh
case "$*" in *"debug workers"*) exec test -s /run/openmodal-buildkit/buildkitd.sock ;; esac
say() {
    printf '{"logs":[{"vertex":"sha256:2","stream":1,"data":"%s"}]}\\n' "$(printf '%s\\n' "$1" | base64 | tr -d '\\n')" >&2
}
vertex() { printf '{"vertexes":[{"digest":"sha256:2","name":"[2/2] RUN make",%s}]}\\n' "$1" >&2; }
vertex '"started":"2026-11-01T10:00:00Z"'
cd /tmp/openmodal/context
for word; do say "arg $word"; done
say "login $(cat "$DOCKER_CONFIG/config.json")"
say "daemon $(cat /run/openmodal-buildkit/buildkitd.sock)"
for file in $(find . -type f); do say "file $file $(md5sum <"$file" | cut -c1-8)"; done
if grep -q 'exit 7' .openmodal.Dockerfile; then
    cause='process "/bin/sh -c exit 7" did not complete successfully: exit code: 7'
    vertex '"started":"2026-11-01T10:00:00Z","completed":"2026-11-01T10:00:01Z","error":"exit code: 7"'
    echo "error: failed to solve: $cause" >&2
    exit 1
fi
vertex '"started":"2026-11-01T10:00:00Z","completed":"2026-11-01T10:00:01Z"'
"""


@pytest.fixture(scope="module")
def settings(engine: Kubernetes, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("buildkit")
    busybox = shutil.which("busybox")
    assert busybox
    for folder in ("bin", "usr/local/bin", "tmp", "run"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in "base64 cat cut find grep id md5sum mkdir printf rm sh sleep tar test tr".split():
        (root / "bin" / name).symlink_to("busybox")
    for name, text in (("buildkitd", BUILDKITD), ("buildctl", BUILDCTL)):
        program = root / "usr/local/bin" / name
        program.write_text(text)
        program.chmod(0o755)
    image = Image.from_scratch().add_local_dir(str(root), "/").env({"PATH": "/usr/local/bin:/bin"})
    made = run_sync(engine.prepare(image.entrypoint(["buildkitd"]).recipe, lambda news: None))
    return msgspec.structs.replace(read(), build_image=made.reference, build_namespace=namespace)


def jobs() -> list[str]:
    client = api()
    found = client.get(client.path("jobs", group="apis/batch/v1"))["items"]
    return [item["metadata"]["name"] for item in found if "deletionTimestamp" not in item["metadata"]]


class Heard:
    """What a build tells its user."""

    def __init__(self, folder: Path) -> None:
        self.news: list[Progress] = []
        self._store = Layers(folder)

    def told(self) -> Told:
        return Told(Builder(self._store, runs_nothing, self.news.append, Options(), 1), ("RUN make",))

    @property
    def text(self) -> str:
        return "".join(news.text for news in self.news if news.event == "output")


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    return Heard(tmp_path / "store")


def order(*steps: Run | Copy | Dockerfile) -> Order:
    part = next(context.parts(steps, 0, "", ""))
    return Order(part, "FROM base\n", TARGET, ("base", "other.example/base"))


def test_context_and_credentials_reach_the_client_and_output_comes_back(
    settings: Settings, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(bytes(range(256)) * 20_000)  # more than one message
    login = {"auths": {"registry.example": {"auth": "bWU6c2VjcmV0"}, "unrelated.example": {"auth": "eDp5"}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    copied = Copy(source=str(tmp_path / "big"), target="/big")
    with buildkit.builder(api(), settings) as made:
        made.make(order(Run(argv=("make",)), copied), heard.told())
        (name,) = jobs()
        pod = api().get(api().pods(), labelSelector=f"job-name={name}")["items"][0]
    assert "arg --output=type=image,name=registry.example/team/openmodal:om-1,push=true" in heard.text
    assert 'login {"auths": {"registry.example": {"auth": "bWU6c2VjcmV0"}}}' in heard.text
    assert "daemon 1000" in heard.text, "BuildKit runs as a user without rights"
    assert f"file ./c0/big {hashlib.md5((tmp_path / 'big').read_bytes()).hexdigest()[:8]}" in heard.text
    assert [news.event for news in heard.news if news.event != "output"] == ["start", "done"]
    assert "bWU6c2VjcmV0" not in json.dumps(pod), "credentials are in no object"
    assert jobs() == []


def test_a_build_whose_maker_is_dead_ends_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks anything of its agent, and the daemon ends with it; the cluster removes a Job that has ended."""
    monkeypatch.setattr(buildkit, "_IDLE", 1.0)
    monkeypatch.setattr(buildkit, "_LOOKS", {"initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 5})
    client = api()
    path = client.path("jobs", group="apis/batch/v1")
    client.create(path, buildkit.job("om-build-left", settings, agent.ensure(client, agent.config_map(settings))))
    try:
        pod = buildkit.started(client, settings, "om-build-left")
        with buildkit.BuildPod(client, pod, "token").opened():
            eventually(lambda: client.get(f"{path}/om-build-left")["status"].get("failed") == 1, seconds=90)
    finally:
        client.delete(f"{path}/om-build-left")


def test_a_step_that_fails_is_told_with_its_output_and_the_job_is_gone(settings: Settings, heard: Heard) -> None:
    with (
        pytest.raises(ImageBuildError, match=r"RUN make, failed with exit code 7") as caught,
        buildkit.builder(api(), settings) as made,
    ):
        made.make(order(Run(argv=("sh", "-c", "exit 7"))), heard.told())
    assert "file ./.openmodal.Dockerfile" in caught.value.output
    assert jobs() == []


def test_an_image_that_cannot_be_pulled_is_told_with_the_setting(settings: Settings) -> None:
    missing = msgspec.structs.replace(settings, build_image="127.0.0.1:9/none/buildkit:rootless")
    with pytest.raises(ImageError, match=r"kubernetes\.build_image"), buildkit.builder(api(), missing):
        raise AssertionError
    assert jobs() == []


def test_an_image_is_built_where_the_settings_say_and_what_is_missing_there_is_told(
    engine: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENMODAL_KUBERNETES_BUILDER", "cluster")
    monkeypatch.setenv("OPENMODAL_KUBERNETES_BUILD_NAMESPACE", "om-test-nowhere")
    image = Image.debian_slim().run_commands("true").recipe
    with pytest.raises(EngineError, match="openmodal setup kubernetes --builds"):
        run_sync(engine.prepare(image, lambda news: None))
