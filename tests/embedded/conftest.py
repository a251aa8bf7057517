"""The embedded engine, as every test here uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines import load
from openmodal.engines.embedded import Embedded
from openmodal.image import Image
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)
from tests.embedded.apart import Machine, apart


@pytest.fixture(scope="session")
def engine() -> Embedded:
    found = load("embedded")
    assert isinstance(found, Embedded)
    return found


@pytest.fixture
def here(image: Image, engine: Embedded, tmp_path: Path) -> Iterator[Machine]:
    """A machine whose network and firewall are ours. The image comes from the usual one."""
    image.build(engine=engine)
    with apart(tmp_path) as machine:
        yield machine
