"""SWE-ReX's own Docker deployment, unmodified, on `openmodal-docker`: its server runs in the
container, and is reached by a port that is published."""

from __future__ import annotations

import subprocess

import pytest

pytest.importorskip("swerex", reason="frameworks have environments of their own: make test-integrations")

from swerex.deployment.docker import DockerDeployment
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest, ReadFileRequest, WriteFileRequest

from openmodal.testing.fixtures import eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.embedded,
    # It never closes the pipes of its `docker run`.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DOCKERFILE = b"FROM python:3.13-slim\nRUN pip install swe-rex\n"


async def test_its_docker_deployment_runs_commands_sessions_and_files(docker: str) -> None:
    subprocess.run([docker, "build", "-q", "-t", "team/rex", "-"], input=DOCKERFILE, check=True, timeout=1200)
    deployment = DockerDeployment(image="team/rex", pull="missing", startup_timeout=120, remove_images=True)
    await deployment.start()
    runtime = deployment.runtime
    assert (await runtime.execute(Command(command=["echo", "hello"]))).stdout == "hello\n"
    await runtime.create_session(CreateBashSessionRequest())
    await runtime.run_in_session(BashAction(command="cd /tmp && export A=kept"))
    assert (await runtime.run_in_session(BashAction(command="pwd; echo $A"))).output.split() == ["/tmp", "kept"]
    await runtime.write_file(WriteFileRequest(path="/tmp/x", content="content"))
    assert (await runtime.read_file(ReadFileRequest(path="/tmp/x"))).content == "content"
    await deployment.stop()
    eventually(lambda: subprocess.run([docker, "ps", "-q"], check=True, capture_output=True).stdout == b"")
    images = subprocess.run([docker, "images", "-q", "team/rex"], check=True, capture_output=True).stdout
    assert images == b""
