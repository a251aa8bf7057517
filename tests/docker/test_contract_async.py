"""The Docker engine keeps the contract in the asyncio face: names, runs, ends, and
what changes while one runs; see test_contract.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from openmodal.testing import Face, TestApp, TestDeadline, TestNames, TestOwner, TestPause, TestTermination, TestUsage
from openmodal.testing.faces import open_face

__all__ = ["TestApp", "TestDeadline", "TestNames", "TestOwner", "TestPause", "TestTermination", "TestUsage"]


@pytest.fixture
def face() -> Iterator[Face]:
    opened = open_face("async")
    yield opened
    opened.close()
