"""The unmodified client on Docker."""

from __future__ import annotations

import pytest

from openmodal.engines.docker.daemon import Daemon
from tests.serve.conftest import check


def test_programs_of_the_client_run_unmodified(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    # A daemon mounts nothing in a container that runs (docs/state.md), Docker has no allow lists, and
    # its API gives secrets to no step.
    check("docker", "1.6", "--without", "images_are_mounted", "changed_networks", "secrets_of_build_steps")
