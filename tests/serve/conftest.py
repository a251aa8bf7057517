"""Doors, and the stock client in the versions that people have."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / ".venv" / ".clients"
OWN = "1.6"
"""The version that the extra `serve` has; `make test` installs the others (Makefile, CLIENTS)."""

TOKEN = ("ak-test", "as-test")


def environment(version: str, variables: dict[str, str] | None = None) -> dict[str, str]:
    """The variables of a program that uses a version of the client."""
    if version != OWN and not (CLIENTS / version).exists():
        pytest.skip(f"needs the client {version}: make test")
    paths = [str(CLIENTS / version)] if version != OWN else []
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    # The client's settings are those of nobody.
    own = {"PYTHONPATH": os.pathsep.join(paths), "MODAL_CONFIG_PATH": os.devnull, "PYTHONWARNINGS": "default"}
    return inherited | own | (variables or {})


@dataclass
class Door:
    """A door that runs in a process of its own."""

    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """What its clients are told by."""
        return {"MODAL_SERVER_URL": self.url, "MODAL_TOKEN_ID": TOKEN[0], "MODAL_TOKEN_SECRET": TOKEN[1]}

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def opened(tmp_path: Path, port: int = 0, *options: str) -> Iterator[Door]:
    """A door as long as the block, with a token that another one has, too."""
    tokens = tmp_path / "tokens"
    tokens.write_text(" ".join(TOKEN))
    command = [sys.executable, "-m", "openmodal", "--local", "serve", "--port", str(port), "--token-file", str(tokens)]
    with (tmp_path / "log").open("a") as log:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout
        first = process.stdout.readline()
        found = re.search(r":(\d+)$", first.strip())
        assert found, first
        yield Door(int(found[1]), process)
    finally:
        process.terminate()
        process.communicate(timeout=100)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A door of the embedded engine."""
    with opened(tmp_path) as door:
        yield door


def check(engine: str, version: str, *checks: str) -> None:
    """Run the checks of client.py with a version of the client, behind a door of its own."""
    client = ROOT / "tests" / "serve" / "client.py"
    # The version is the program's alone: the door has its own.
    path = os.pathsep.join([str(ROOT / "src"), *_paths(version)])
    program = ["env", f"PYTHONPATH={path}", sys.executable, str(client), "/bin/busybox", *checks]
    done = subprocess.run(
        [sys.executable, "-m", "openmodal", "--engine", engine, "serve", "--", *program],
        env=environment(version, {"PYTHONPATH": str(ROOT / "src")}),
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert said and "failed" not in done.stdout and done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"


def _paths(version: str) -> list[str]:
    return [str(CLIENTS / version)] if version != OWN else []
