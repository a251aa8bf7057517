"""The command line of the stock client behind a door."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import Door, environment
from tests.serve.test_door import BEGIN

pytestmark = pytest.mark.embedded

MAIN = "echo from its main command; echo and an error >&2; exec sleep 1000"
RUN = """
@app.local_entrypoint()
def main(word: str):
    made = modal.Sandbox.create("echo", word, app=app, image=image, timeout=600)
    print("it says", made.stdout.read())
"""


class CommandLine:
    """`modal …` of a version of the client."""

    def __init__(self, door: Door, version: str) -> None:
        self._environment = environment(version, door.variables | {"COLUMNS": "200"})

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "modal", *arguments))]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, *arguments: str) -> str:
        out, errors = self.begin(*arguments).communicate(timeout=300)
        assert out, errors
        return out

    @contextlib.contextmanager
    def sandbox(self, argv: list[str]) -> Iterator[tuple[str, str]]:
        """A sandbox and its task."""
        create = f"made = modal.Sandbox.create(*{argv}, app=app, image=image, timeout=600)"
        tell = "print(made.object_id, made._get_task_id() if hasattr(made, '_get_task_id') else '')"
        sandbox, task = self.said("-c", f"{BEGIN}\n{create}\n{tell}").split()
        try:
            yield sandbox, task
        finally:
            self.said("-c", f"import modal; print(modal.Sandbox.from_id({sandbox!r}).terminate())")


@pytest.mark.parametrize("version", ["1.6", *(pytest.param(old, marks=pytest.mark.slow) for old in ("1.5", "1.4"))])
def test_containers_are_listed_entered_read_and_stopped(door: Door, version: str) -> None:
    modal = CommandLine(door, version)
    with modal.sandbox(["sh", "-c", MAIN]) as (sandbox, task):
        begun = {
            "list": modal.begin("container", "list", "--json"),
            "exec": modal.begin("container", "exec", task, "--", "sh", "-c", "echo in it; exit 0"),
            "shell": modal.begin("shell", "--cmd", "sh -c 'echo in a shell'", sandbox),
            "logs": modal.begin("container", "logs", task),
            "all": modal.begin("container", "logs", "--all", "--source", "stderr", task),
        }
        done = {name: process.communicate(timeout=300) for name, process in begun.items()}
        assert task in done["list"][0], done["list"]
        assert done["exec"][0] == "in it\n", done["exec"]
        assert "in a shell\n" in done["shell"][0], done["shell"]
        assert done["logs"][0] == "from its main command\nand an error\n", done["logs"]
        assert done["all"][0] == "and an error\n", done["all"]
        following = modal.begin("container", "logs", "-f", task)
        modal.begin("container", "stop", "-y", task).communicate(timeout=300)
        followed, errors = following.communicate(timeout=300)
        assert "from its main command\n" in followed, errors
        assert "[]" in modal.said("container", "list", "--json")


def test_a_program_is_run(door: Door, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BEGIN.replace('modal.App.lookup("door", create_if_missing=True)', 'modal.App("program")') + RUN)
    assert "it says a-word\n" in CommandLine(door, "1.6").said("run", str(program), "--word", "a-word")
