"""The embedded engine, as every test here uses it."""

from __future__ import annotations

import pytest

from openmodal.engines import load
from openmodal.engines.embedded import Embedded
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)


@pytest.fixture(scope="session")
def engine() -> Embedded:
    found = load("embedded")
    assert isinstance(found, Embedded)
    return found
