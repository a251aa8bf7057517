"""Adapters, each in an environment of its framework's own (`make test-integrations`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openmodal.engines.docker.daemon import Daemon
from tests.docker.conftest import daemon  # noqa: F401  (a fixture)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs the tests that are coroutines."""
    return "asyncio"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("embedded", "docker")]
)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that is configured, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "docker":
            found: Daemon = request.getfixturevalue("daemon")
            patch.setenv("DOCKER_HOST", found.host)
        patch.setenv("OPENMODAL_ENGINE", request.param)
        yield request.param
