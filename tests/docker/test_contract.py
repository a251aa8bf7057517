"""The Docker engine keeps the contract: all of it in the blocking face.

A sandbox costs half a second here, so the other face is held to the promises whose code is the
engine's own (test_contract_async.py). What it adds to every other one is the driver of `_dual`,
which the embedded engine runs through the whole suite in both faces. For the same reason, tests of
commands and files alone do without the network: it makes the half of what a container costs.
"""

from __future__ import annotations

from typing import Any

import pytest

import openmodal.testing as suite
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face, open_face
from tests.reuse import INSIDE, reused, sandbox  # noqa: F401

globals().update({name: getattr(suite, name) for name in suite.__all__ if name.startswith("Test")})

NEED_NO_NETWORK = (*INSIDE, suite.TestLimits)


@pytest.fixture(scope="session")
def shared_options() -> dict[str, Any]:
    return {"block_network": True}


@pytest.fixture
def face() -> Face:
    return open_face("blocking")


@pytest.fixture(name="create")
def create_cheaply(request: pytest.FixtureRequest, create: suite.Create) -> suite.Create:
    """As the suite's, without a network for those that need none."""

    def make(*args: str, **options: Any) -> Sandbox:
        return create(*args, **{"block_network": True, **options})

    return make if request.cls in NEED_NO_NETWORK else create
