"""The examples, as their first lines say to run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.embedded, pytest.mark.slow, pytest.mark.timeout(900)]  # the first one makes the base image


def run(openmodal: CommandLine, name: str, *arguments: str) -> str:
    done = openmodal.run("--local", "run", str(EXAMPLES / name), *arguments, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.network
def test_sandbox_prints_what_the_page_shows(openmodal: CommandLine) -> None:
    line = r"Agent {} \(sandbox-test-[0-9a-f]{{8}}\): create=\d+\.\ds total=\d+\.\ds\n"
    agents = "".join(line.format(number) for number in range(4))
    wanted = rf"Launching 4 sandboxes in parallel\.\.\.\n\n{agents}\nAll 4 agents passed in \d+\.\ds\n"
    assert re.fullmatch(wanted, run(openmodal, "sandbox.py"))


def test_async_agents(openmodal: CommandLine) -> None:
    assert "5 agents counted to [5, 6, 7, 8, 9]" in run(openmodal, "async_agents.py", "--agents", "5")


def test_untrusted_code(openmodal: CommandLine) -> None:
    shown = run(openmodal, "untrusted_code.py")
    for text in ("honest:         exit code 0", "killed after 3 s", "killed: out of memory", "Network is unreachable"):
        assert text in shown


@pytest.mark.network
def test_eval_run(openmodal: CommandLine) -> None:
    shown = run(openmodal, "eval_run.py", "--rounds", "1")
    assert shown.splitlines()[-1] == "1 of 3 attempts passed"


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text]
