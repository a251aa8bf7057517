"""The unmodified client on the embedded engine, in the versions that people have."""

from __future__ import annotations

import pytest

from tests.serve.conftest import check

pytestmark = pytest.mark.embedded


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.6", "1.5", "1.4"])
def test_programs_of_the_client_run_unmodified(version: str) -> None:
    check("embedded", version)
