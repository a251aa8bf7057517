"""The unmodified client, with its sandboxes on a cluster: what the engine has a part in."""

from __future__ import annotations

import pytest

from openmodal.engines.kubernetes import Kubernetes
from tests.serve.conftest import check


@pytest.mark.timeout(400)
def test_programs_of_the_client_run_unmodified(engine: Kubernetes) -> None:
    check(
        engine.name,
        "1.6",
        "the_main_command_with_its_streams_and_its_end",
        "commands_with_streams_codes_and_signals",
        "finding_listing_and_tags",
        "snapshots_are_images",
        "volumes_and_their_files",
    )
