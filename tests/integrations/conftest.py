"""Adapters, each in an environment of its framework's own (`make test-integrations`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon
from tests.docker.conftest import daemon  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs the tests that are coroutines."""
    return "asyncio"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("embedded", "docker")]
)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that is configured, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "docker":
            found: Daemon = request.getfixturevalue("daemon")
            patch.setenv("DOCKER_HOST", found.host)
        patch.setenv("OPENMODAL_ENGINE", request.param)
        yield request.param


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of `openmodal-docker`, which is what PATH calls docker, on the embedded engine."""
    command = tmp_path / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m openmodal.docker_cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    return str(command)


def printed_by_page(name: str, folder: Path) -> str:
    """Run the program of docs/integrations/NAME.md on the embedded engine; what it prints."""
    page = (ROOT / "docs" / "integrations" / f"{name}.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | {"OPENMODAL_ENGINE": "embedded"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def behind_a_door(program: str) -> str:
    """What a program says that uses the framework's Modal mode behind a door of the embedded engine.

    The door is of the environment of `make test`, for the framework's has none.
    """
    python = ROOT / ".venv" / "bin" / "python"
    own = {"PYTHONPATH": "", "MODAL_CONFIG_PATH": os.devnull, "PYTHONWARNINGS": "ignore"}
    variables = [f"{name}={value}" for name, value in own.items()]
    done = subprocess.run(
        [python, "-m", "openmodal", "--local", "serve", "--", "env", *variables, sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout
