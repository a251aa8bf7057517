"""What builders of somebody else's are asked for, asked of one that is here: Docker's client and daemon, with BuildKit."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openmodal._spec import Copy, Progress, Run
from openmodal.build import Options, context
from openmodal.build.layers import Layers
from openmodal.build.reference import parse
from openmodal.build.remote import Order
from openmodal.build.steps import Builder
from openmodal.build.told import Listener, Told, runs_nothing
from openmodal.build.unpack import unpack_archive
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.kubernetes.images import cloudbuild

# dockerd removes the network of a build's step in its own time, which on a busy machine is seconds
# after the build (moby's executor_unix.go); what it has not when it ends is unmounted then
# (dockerd.py).
pytestmark = pytest.mark.may_leave("*/exec/netns/*")

CLIENT = "/usr/bin/docker"  # Debian's, which has BuildKit's client in it
TARGET = parse("europe-west4-docker.pkg.dev/proj/agents/openmodal:om-elsewhere")


class Docker:
    """Docker's command line, and what it tells."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.news: list[Progress] = []
        self._folder = folder
        self._env = {**os.environ, "DOCKER_HOST": daemon.host, "DOCKER_CONFIG": str(folder), "DOCKER_BUILDKIT": "1"}

    def build(self, *steps: Run | Copy) -> tuple[int, Told]:
        """Build what Cloud Build would, by the command that it would."""
        part = next(context.parts(steps, 0, "", ""))
        order = Order(part, "FROM om-elsewhere:base\n", TARGET, ())
        files = self._folder / "context"
        files.mkdir(exist_ok=True)
        unpack_archive(io.BytesIO(b"".join(order.content())), files)
        (step,) = cloudbuild.request(cloudbuild.place(TARGET), order, "source")["steps"]
        done = self(*(word.replace("$$", "$") for word in step["args"]), cwd=files)
        told = Told(Builder(Layers(self._folder / "store"), runs_nothing, self.news.append, Options(), 2), part.titles)
        listener = Listener(told.hear)
        for line in done.stderr.decode().splitlines():
            listener.plain(line)
        return done.returncode, told

    def events(self) -> list[tuple[str, str]]:
        """What began and ended; the client does not promise in which order it tells of two steps."""
        return sorted((news.event, news.text) for news in self.news if news.event != "output")

    def output(self) -> str:
        return "".join(news.text for news in self.news if news.event == "output")

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        given: dict[str, Any] = {"capture_output": True, "env": self._env, **options}
        return subprocess.run([CLIENT, *arguments], check=False, **given)


@pytest.fixture
def docker(daemon: Daemon, tmp_path: Path) -> Iterator[Docker]:
    found = Docker(daemon, tmp_path)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("sh", "echo", "cat"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    assert found("import", "-", "om-elsewhere:base", input=content.getvalue()).returncode == 0
    yield found
    found("image", "rm", "--force", "om-elsewhere:base", str(TARGET))


def test_what_cloud_build_is_asked_for_builds_and_its_progress_is_understood(docker: Docker, tmp_path: Path) -> None:
    two = secrets.token_hex(8)  # a daemon keeps what it built for the next run of the tests
    (tmp_path / "file").write_text("content\n")
    steps = (
        Run(argv=("sh", "-c", f"echo one; echo {two} > /two")),
        Copy(source=str(tmp_path / "file"), target="/srv/"),
        Run(argv=("cat", "/two", "/srv/file")),
    )
    code, _ = docker.build(*steps)
    assert code == 0
    titles = [f"RUN echo one; echo {two} > /two", "COPY file /srv/", "RUN cat /two /srv/file"]
    assert docker.events() == sorted((event, title) for title in titles for event in ("start", "done"))
    assert docker.output() == f"one\n{two}\ncontent\n"
    docker.news.clear()
    assert docker.build(*steps)[0] == 0
    assert docker.events() == sorted((event, title) for title in titles for event in ("start", "cached"))


def test_a_step_that_fails_is_found_in_what_it_prints(docker: Docker) -> None:
    code, told = docker.build(Run(argv=("sh", "-c", "echo ERROR: no; exit 7")))
    assert code == 1
    error = told.failure("exit code: 7")
    assert error.step == "RUN echo ERROR: no; exit 7"
    assert "ERROR: no" in error.output
