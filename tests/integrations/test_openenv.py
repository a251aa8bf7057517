"""OpenEnv's own clients and environments, with our provider."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv", reason="frameworks have environments of their own: make test-integrations")

from openenv import GenericEnvClient

from openmodal.errors import InvalidError
from openmodal.image import Image
from openmodal.integrations.openenv import APP, OpenModalProvider
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

# It begins as the page's, whose layers it shares.
DOCKERFILE = """\
FROM python:3.13-slim
RUN pip install openenv-core
COPY parrot /srv/parrot
WORKDIR /srv
CMD ["uvicorn", "parrot.server.app:app", "--host", "0.0.0.0", "--port", "8000"]
"""


def test_the_pages_environment_answers(tmp_path: Path) -> None:
    said = printed_by_page("openenv", tmp_path)
    assert said.splitlines()[-2:] == ["ready", "hello 1.0"]
    assert not Sandbox.list(app=APP, engine="embedded")


async def test_the_environment_of_openenv_init_echoes(tmp_path: Path) -> None:
    openenv = Path(sys.executable).with_name("openenv")
    subprocess.run([openenv, "init", "parrot", "-o", tmp_path], check=True, capture_output=True, timeout=300)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    image = str(tmp_path / "Dockerfile")
    provider = OpenModalProvider(engine="embedded", timeout=900, block_network=True)
    async with await GenericEnvClient.from_docker_image(
        image, provider=provider, env_vars={"ENABLE_WEB_INTERFACE": "false"}
    ) as env:
        assert "ready" in (await env.reset()).observation["echoed_message"]
        step = await env.step({"message": "hello"})
        assert (step.observation["echoed_message"], step.observation["message_length"]) == ("hello", 5)
        assert (await env.state())["step_count"] == 1
        with pytest.raises(InvalidError, match="of this provider runs"):
            provider.start_container(image)
    assert not Sandbox.list(app=APP, engine="embedded")


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    command = ("python3", "-c", "import sys, time; time.sleep(0.3); sys.exit('no such module')")
    provider = OpenModalProvider(*command, engine="embedded", timeout=900)
    address = provider.start_container(Image.debian_slim())
    with pytest.raises(RuntimeError, match=r"has ended.*no such module"):
        provider.wait_for_ready(address, 60)
    provider.stop_container()
    provider.stop_container()


def test_a_server_that_is_not_healthy_is_a_timeout() -> None:
    provider = OpenModalProvider("python3", "-m", "http.server", "8000", engine="embedded", timeout=900)
    address = provider.start_container(Image.debian_slim())
    try:
        with pytest.raises(TimeoutError, match="/health does not answer"):
            provider.wait_for_ready(address, 3)
    finally:
        provider.stop_container()


def test_an_image_without_a_command_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the image has no command; name the server"):
        OpenModalProvider(engine="embedded").start_container(Image.debian_slim())
