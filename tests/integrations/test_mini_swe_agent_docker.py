"""mini-swe-agent's own Docker environment, unmodified, on `openmodal-docker`."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("minisweagent", reason="frameworks have environments of their own: make test-integrations")

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.docker import DockerEnvironment
from minisweagent.models.test_models import DeterministicModel, make_output

from openmodal.testing.fixtures import eventually

pytestmark = [
    pytest.mark.embedded,
    # It never waits for the process that ends its container.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/docker.md"

COMMANDS = [
    "echo $STAGE > /tmp/stage; cat /tmp/stage; exit 3",
    "sleep 60",
    "pwd; cat /tmp/stage",
    "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo done",
]


def over(docker: str) -> bool:
    """Whether its containers have ended, and the commands that end them behind its back."""
    listed = subprocess.run([docker, "ps", "-q"], check=True, capture_output=True).stdout
    commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    with contextlib.suppress(ChildProcessError):
        # mini-swe-agent never waits for the shell that starts them.
        os.waitpid(-1, os.WNOHANG)
    return not (listed or any(docker in command for command in commands) or psutil.Process().children())


def test_the_pages_agent_submits_the_sum(docker: str, tmp_path: Path) -> None:
    found = re.search(r"^```python\n(# agent\.py\n.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "agent.py").write_text(found[1])
    done = subprocess.run(
        [sys.executable, "agent.py"],
        cwd=tmp_path,
        env=os.environ | {"MSWEA_DOCKER_EXECUTABLE": docker, "MSWEA_CONFIGURED": "true"},
        check=True,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert "'submission': '5050\\n'" in done.stdout
    eventually(lambda: over(docker))


def test_an_agent_runs_commands_meets_a_time_out_and_submits(docker: str) -> None:
    environment = DockerEnvironment(
        image="python:3.13-slim", executable=docker, cwd="/work", env={"STAGE": "test"}, timeout=10, pull_timeout=1200
    )
    model = DeterministicModel(outputs=[make_output("", [{"command": command}]) for command in COMMANDS])
    agent = DefaultAgent(model, environment, system_template="You are", instance_template="a script", cost_limit=0)
    ended = agent.run("a task")
    assert (ended["exit_status"], ended["submission"]) == ("Submitted", "done\n")
    first, late, third = [message["content"] for message in agent.messages if message["role"] == "user"][1:]
    assert "<returncode>3</returncode>\n<output>\ntest\n" in first
    assert "timed out after 10" in late
    assert "/work\ntest\n" in third
    del agent, environment  # which ends its container
    gc.collect()
    eventually(lambda: over(docker))
