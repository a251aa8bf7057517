"""A whole run of mini-swe-agent with a scripted model: the program of the documentation's page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("minisweagent", reason="frameworks have environments of their own: make test-integrations")

from minisweagent.environments import get_environment

from openmodal.integrations.mini_swe_agent import APP
from openmodal.sandbox import Sandbox

pytestmark = pytest.mark.embedded

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/mini_swe_agent.md"


def test_the_pages_run_ends_with_its_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "agent.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "agent.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "42"
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
