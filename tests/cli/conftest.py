"""The command line as a user has it: a process of its own. Programs use a tiny image, so each test takes a moment only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "openmodal"]

HEAD = """\
import openmodal
app = openmodal.App("cli")
image = openmodal.Image.from_scratch().add_local_dir({root!r}, "/").env({{"PATH": "/bin"}})
def create(*args, **keywords):
    return openmodal.Sandbox.create(*args, app=app, image=image, **{{"timeout": 60, **keywords}})
"""
"""What the programs of these tests begin with."""


class CommandLine:
    """Runs `openmodal …` in a folder."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._head = HEAD.format(root=str(root))

    def __call__(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None, **options: Any) -> str:
        """Run it and return its stdout; its exit code has to be `code`."""
        done = self.run(*arguments, env=env, **options)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout)

    def error(self, *arguments: str, code: int = 1, env: dict[str, str] | None = None) -> str:
        """Run it and return its error, which has to be one line without a traceback."""
        done = self.run(*arguments, env=env)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        return str(done.stderr)

    def run(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        options = {"timeout": 100} | ({} if "input" in options else {"stdin": subprocess.DEVNULL}) | options
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it; its stdout and stderr are one pipe."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def program(self, text: str, name: str = "program.py") -> str:
        """Write a program; `app`, `image` and `create()` are there already."""
        (self.folder / name).write_text(self._head + text, encoding="utf-8")
        return name

    def running(self) -> list[str]:
        """The ids of the running sandboxes of these programs."""
        lines = self("--local", "sandbox", "list", "--app", "cli").splitlines()
        return [line.split("\t")[0] for line in lines[1:]]


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is missing; install it with `apt-get install busybox-static`")
    root = tmp_path_factory.mktemp("root")
    for folder in ("bin", "root", "tmp"):
        (root / folder).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for applet in ("sh", "cat", "echo", "env", "id", "ls", "nc", "pwd", "sleep", "stty", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture
def openmodal(tmp_path: Path, tiny_root: Path) -> CommandLine:
    return CommandLine(tmp_path, tiny_root)


@pytest.fixture
def sandbox(openmodal: CommandLine) -> Iterator[str]:
    """The id of a running sandbox, whose main command prints a little and stays."""
    program = openmodal.program(
        "@app.local_entrypoint()\ndef main():\n"
        "    print(create('sh', '-c', 'echo out; echo err >&2; exec sleep 60', name='main', tags={'for': 'cli'}).id)\n"
    )
    id = openmodal("--local", "run", "--detach", program).strip()
    yield id
    openmodal("--local", "sandbox", "stop", id)
