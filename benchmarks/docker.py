"""The same steps through Docker's own API, over its unix socket: no client program in between, so it is as fast as Docker can be."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from benchmarks.machine import MEGABYTE, Stopwatch

IMAGE = "openmodal-benchmark"


class Docker:
    """A Docker daemon with our tiny image; figures by step, in milliseconds."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.figures: dict[str, list[float]] = {}

    def one_life(self, rounds: int = 3) -> None:
        """Measure a container's life once, and `rounds` times what can be done in it."""
        with Stopwatch() as create:
            id = self._create()
        try:
            with Stopwatch() as watch:
                self._exec(id, ["true"])
            self._note("create", create.seconds)
            self._note("create_exec", create.seconds + watch.seconds)
            for _ in range(rounds):
                self._measure("exec", id, ["true"])
                self._measure("exec_1mb", id, list(MEGABYTE))
        finally:
            with Stopwatch() as watch:
                self._client.delete(f"/containers/{id}", params={"force": "true"}).raise_for_status()
            self._note("terminate", watch.seconds)

    def four_at_once(self) -> None:
        """Four containers, created and started by four threads."""
        with Stopwatch() as watch, ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(lambda _: self._create(), range(4)))
        self._note("parallel", watch.seconds)
        for id in ids:
            self._client.delete(f"/containers/{id}", params={"force": "true"}).raise_for_status()

    def _measure(self, step: str, id: str, argv: list[str]) -> None:
        with Stopwatch() as watch:
            self._exec(id, argv)
        self._note(step, watch.seconds)

    def _note(self, step: str, seconds: float) -> None:
        self.figures.setdefault(step, []).append(seconds * 1000)

    def _create(self) -> str:
        made = self._client.post(
            "/containers/create", json={"Image": IMAGE, "Cmd": ["sleep", "600"]}
        ).raise_for_status()
        id = str(made.json()["Id"])
        self._client.post(f"/containers/{id}/start").raise_for_status()
        return id

    def _exec(self, id: str, argv: list[str]) -> bytes:
        wanted = {"Cmd": argv, "AttachStdout": True, "AttachStderr": True}
        made = self._client.post(f"/containers/{id}/exec", json=wanted).raise_for_status()
        exec_id = made.json()["Id"]
        output = self._client.post(f"/exec/{exec_id}/start", json={"Detach": False}).raise_for_status().content
        ended = self._client.get(f"/exec/{exec_id}/json").raise_for_status().json()
        if ended["ExitCode"] != 0:
            raise RuntimeError(f"docker: {argv} exited with {ended['ExitCode']}")
        return output


@contextmanager
def docker(root: Path) -> Iterator[Docker | None]:
    """Docker with our root as an image, which is removed at the end; None if no daemon answers."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    transport = httpx.HTTPTransport(uds=address.removeprefix("unix://"))
    with httpx.Client(transport=transport, base_url="http://docker", timeout=60) as client:
        try:
            client.get("/_ping").raise_for_status()
        except httpx.HTTPError:
            yield None
            return
        answer = client.post(
            "/images/create", params={"fromSrc": "-", "repo": IMAGE}, content=_tar(root)
        ).raise_for_status()
        if "error" in json.loads(answer.text.strip().splitlines()[-1]):
            raise RuntimeError(f"docker cannot import the image: {answer.text}")
        try:
            yield Docker(client)
        finally:
            client.delete(f"/images/{IMAGE}", params={"force": "true"})


def _tar(root: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(root, ".")
    return data.getvalue()
