"""Inspect AI's own checks of sandboxes, as root and as an image's user, on two engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

pytest.importorskip("inspect_ai", reason="frameworks have environments of their own: make test-integrations")

from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from openmodal.integrations.inspect import OpenModalSandboxEnvironment

pytestmark = pytest.mark.anyio

ROOT_MAY = (
    "test_read_file_not_allowed",
    "test_write_text_file_without_permissions",
    "test_write_binary_file_without_permissions",
)
DOCKERFILE = """\
FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends adduser procps
"""
USER = "RUN adduser --disabled-password --comment '' agent\nUSER agent\nWORKDIR /home/agent\n"


@pytest.fixture(scope="module", params=["root", "agent"])
async def environment(
    request: pytest.FixtureRequest, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OpenModalSandboxEnvironment]:
    """A sandbox as Inspect makes it for a sample; all checks use it."""
    dockerfile = tmp_path_factory.mktemp("task") / "Dockerfile"
    dockerfile.write_text(DOCKERFILE + (USER if request.param == "agent" else ""))
    await OpenModalSandboxEnvironment.task_init("startup", str(dockerfile))
    made = await OpenModalSandboxEnvironment.sample_init("checks", str(dockerfile), {})
    yield made["default"]
    await OpenModalSandboxEnvironment.sample_cleanup("checks", str(dockerfile), made, False)


@pytest.fixture
def sandbox_env(
    request: pytest.FixtureRequest, environment: OpenModalSandboxEnvironment
) -> OpenModalSandboxEnvironment:
    """What the checks ask for."""
    is_root = request.node.callspec.params["environment"] == "root"
    if is_root and request.node.originalname in ROOT_MAY:
        request.applymarker(pytest.mark.xfail(reason="root may read and write all files", raises=AssertionError))
    return environment
