"""Harbor's own Modal environment, unmodified, behind a door."""

from __future__ import annotations

import pytest

from tests.integrations.conftest import behind_a_door

pytest.importorskip("harbor", reason="frameworks have environments of their own: make test-integrations")

pytestmark = pytest.mark.embedded

PROGRAM = r"""
import asyncio, tempfile
from pathlib import Path
from harbor.environments.modal import ModalEnvironment
from harbor.models.task.config import EnvironmentConfig
from harbor.models.trial.paths import TrialPaths

async def main(here: Path) -> None:
    folder, tree = here / "environment", here / "tree" / "below"
    folder.mkdir()
    tree.mkdir(parents=True)
    (tree / "x").write_text("deep")
    (folder / "Dockerfile").write_text("FROM python:3.11-slim\nWORKDIR /work\nRUN echo built > /built\n")
    environment = ModalEnvironment(
        environment_dir=folder, environment_name="task", session_id="session-1",
        trial_paths=TrialPaths(here / "trial"), task_env_config=EnvironmentConfig(cpus=1, memory_mb=512),
    )
    await environment.start(force_build=False)
    done = await environment.exec("cat /built; pwd; echo $A; exit 3", env={"A": "variable"})
    print(done.stdout, done.return_code)
    await environment.upload_file(tree / "x", "/tmp/file")
    await environment.upload_dir(here / "tree", "/tmp/tree")
    await environment.download_dir("/tmp/tree", here / "back")
    print((await environment.exec("cat /tmp/file")).stdout, (here / "back/below/x").read_text())
    await environment.stop(delete=True)

with tempfile.TemporaryDirectory() as name:
    asyncio.run(main(Path(name)))
"""


def test_its_modal_environment_builds_runs_and_copies() -> None:
    said = behind_a_door(PROGRAM).split()
    assert said[-6:] == ["built", "/work", "variable", "3", "deep", "deep"]
