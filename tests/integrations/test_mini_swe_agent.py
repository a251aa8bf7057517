"""A whole run of mini-swe-agent with a scripted model: the program of the documentation's page."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("minisweagent", reason="frameworks have environments of their own: make test-integrations")

from minisweagent.environments import get_environment

from openmodal.integrations.mini_swe_agent import APP
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = pytest.mark.embedded


def test_the_pages_run_ends_with_its_submission(tmp_path: Path) -> None:
    said = printed_by_page("mini_swe_agent", tmp_path)
    assert said.split()[-1] == "42"
    assert not Sandbox.list(app=APP, engine="embedded")


def test_it_is_found_by_its_dotted_path_and_tells_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.13-slim\n")
    path = "openmodal.integrations.mini_swe_agent.OpenModalEnvironment"
    environment = get_environment(
        {
            "environment_class": path,
            "image": str(tmp_path / "Dockerfile"),
            "env": {"A": "variable"},
            "options": {"engine": "embedded"},
        }
    )
    try:
        done = environment.execute({"command": "echo $A; echo err >&2; exit 3"})
        assert done == {"output": "variable\nerr\n", "returncode": 3, "exception_info": ""}
        late = environment.execute({"command": "echo begun; sleep 60"}, timeout=1)
        assert (late["output"], late["returncode"]) == ("begun\n", -1)
        assert "timeout expired" in late["exception_info"]
        assert environment.serialize()["info"]["config"]["environment_type"] == path
    finally:
        environment.cleanup()
