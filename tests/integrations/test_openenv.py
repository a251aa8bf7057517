"""OpenEnv's own clients and environments, with our provider."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openenv", reason="frameworks have environments of their own: make test-integrations")

from openmodal.image import Image
from openmodal.integrations.openenv import APP, OpenModalProvider
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = pytest.mark.embedded


def test_the_pages_environment_answers(tmp_path: Path) -> None:
    said = printed_by_page("openenv", tmp_path)
    assert said.splitlines()[-2:] == ["ready", "hello 1.0"]
    assert not Sandbox.list(app=APP, engine="embedded")


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    command = ("python3", "-c", "import sys, time; time.sleep(0.3); sys.exit('no such module')")
    provider = OpenModalProvider(*command, engine="embedded", timeout=900)
    address = provider.start_container(Image.debian_slim())
    with pytest.raises(RuntimeError, match=r"has ended.*no such module"):
        provider.wait_for_ready(address, 600)
    provider.stop_container()
    provider.stop_container()


def test_a_server_that_is_not_healthy_is_a_timeout() -> None:
    provider = OpenModalProvider("python3", "-m", "http.server", "8000", engine="embedded", timeout=900)
    address = provider.start_container(Image.debian_slim())
    try:
        with pytest.raises(TimeoutError, match=r"/health does not answer|is not ready after"):
            provider.wait_for_ready(address, 3)
    finally:
        provider.stop_container()


def test_an_image_without_a_command_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the image has no command; name the server"):
        OpenModalProvider(engine="embedded").start_container(Image.debian_slim().cmd([]))
