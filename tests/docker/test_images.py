"""What a daemon keeps for us: listed, and pruned when it was not used. On a daemon of its own, so that the cache of the others stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.engines.docker.engine import Docker
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from tests.cli.conftest import CommandLine
from tests.docker.dockerd import bridge, dockerd
from tests.docker.test_faults import second

__all__ = ["second"]


def _key_of(image: Image, engine: Docker) -> str:
    return run_sync(engine.prepare(image.recipe, lambda progress: None)).key


@pytest.mark.timeout(300)
def test_images_are_listed_and_pruned_when_nobody_has_used_them(second: Path, busybox: Path, tmp_path: Path) -> None:
    openmodal = CommandLine(tmp_path, tmp_path)
    with bridge(second) as interface, dockerd(second, interface) as daemon:
        engine = Docker(tmp_path / "state", daemon)
        environment = {"DOCKER_HOST": daemon.host, "OPENMODAL_HOME": str(tmp_path / "state")}

        def listed() -> dict[str, dict[str, object]]:
            found = json.loads(openmodal("--engine", "docker", "image", "list", "--json", env=environment))
            return {str(image["key"]): image for image in found}

        def prune(*options: str) -> None:
            openmodal("--engine", "docker", "image", "prune", *options, env=environment)

        def age(*keys: str) -> None:
            for key in keys:
                long_ago = time.time() - 8 * 86400
                os.utime(tmp_path / "state/docker/used" / key, (long_ago, long_ago))

        base = Image.from_scratch().add_local_file(str(busybox), "/bin/sh")
        fresh, unused, running = (_key_of(base.env({"WHICH": which}), engine) for which in "abc")
        with daemon.open() as api:
            api.post(f"/images/openmodal:{fresh}/tag", repo="others", tag="own")
        found = listed()
        assert {fresh, unused, running} <= found.keys()
        assert found[fresh]["size"] == busybox.stat().st_size
        with Sandbox.create(image=base.env({"WHICH": "c"}), engine=engine, block_network=True) as sandbox:
            age(unused, running)
            prune()
            assert unused not in listed()
            assert {fresh, running} <= listed().keys(), "one was used today, and a container stands on the other"
            assert sandbox.exec("sh", "-c", "echo $WHICH").stdout.read() == "c\n"
        prune("--all", "--caches")
        assert listed() == {}
        with daemon.open() as api:
            assert api.get("/images/others:own/json"), "an image of others"


@pytest.mark.timeout(300)
def test_bench_measures_dockers_own_api_beside_ours(second: Path, busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "root/bin").mkdir(parents=True)
    for applet in ("sh", "sleep", "true"):
        shutil.copy(busybox, tmp_path / "root/bin" / applet)
    openmodal = CommandLine(tmp_path, tmp_path / "root")
    words = ["bench", "--docker", "--rounds", "1", "--image", openmodal.program(""), "--plot", "plot.svg", "--json"]
    with bridge(second) as interface, dockerd(second, interface) as daemon:
        environment = {"DOCKER_HOST": daemon.host, "OPENMODAL_HOME": str(tmp_path / "state")}
        shown = json.loads(openmodal("--engine", "docker", *words, env=environment))
    assert shown["docker"].keys() == shown.keys() - {"docker", "write and read a file"}
    assert "beside Docker" in (tmp_path / "plot.svg").read_text("utf-8")
