"""`openmodal-docker` where sandboxes are containers of a Docker daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon
from openmodal.testing.fixtures import eventually
from tests.cli.conftest import tiny_root  # noqa: F401  (a fixture)
from tests.cli.test_docker import IMAGE, Docker, sh

pytestmark = pytest.mark.docker


def test_a_container_is_built_run_used_looked_at_and_removed(
    daemon: Daemon,
    tiny_root: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "docker")
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    docker = Docker()
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\nENV PATH=/bin\n")
    image = docker("build", "-q", "-t", IMAGE, "-f", str(tmp_path / "Dockerfile"), str(tiny_root)).strip()
    assert docker("inspect", "-f", "{{.Id}} {{.RepoTags}}", IMAGE) == f"{image} [{IMAGE}]\n"
    docker("network", "create", "shop")
    serves = sh("echo out; exec nc -ll -p 80 -e cat")
    id = docker("run", "-d", "--name", "db", "--network", "shop", *serves).strip()
    asks = sh("for i in 1 2 3 4 5 6 7 8 9; do echo hi | nc -w 9 db 80 && exit; sleep 1; done; exit 1")
    assert docker("run", "--rm", "--network", "shop", *asks) == "hi\n"
    docker("cp", str(tmp_path / "Dockerfile"), "db:/copied")
    assert docker("exec", "-e", "A=1", "db", "sh", "-c", "echo $A; ls /copied; exit 3", code=3) == "1\n/copied\n"
    assert docker("ps", "--format", "{{.ID}} {{.Names}} {{.Networks}}") == f"{id[:12]} db shop\n"
    eventually(lambda: docker("logs", "db") == "out\n")
    docker("rm", "-f", "db")
    docker("network", "rm", "shop")
    assert docker("ps", "-aq", "--filter", "name=^db$") == ""
