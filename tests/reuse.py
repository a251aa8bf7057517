"""One sandbox for a class of tests, where a sandbox costs long: tests of what happens in it share one, swept between them.

A module with the contract suite imports the fixtures, after the suite's own, and may override `shared_options`. The embedded engine, whose
sandboxes cost milliseconds, runs the same tests with a fresh one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import openmodal.testing as suite
from openmodal.app import App
from openmodal.engines import Engine
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from tests.leaks import Check

INSIDE = (
    suite.TestAttached,
    suite.TestConnections,
    suite.TestCopying,
    suite.TestExec,
    suite.TestExecInput,
    suite.TestExecOutput,
    suite.TestExecTimeout,
    suite.TestFileErrors,
    suite.TestFiles,
    suite.TestFlow,
    suite.TestLostLinks,
    suite.TestMistakes,
    suite.TestOutputLimits,
    suite.TestPrograms,
    suite.TestShell,
    suite.TestSpawn,
    suite.TestStdin,
    suite.TestTerminal,
)
"""The tests of what happens in a sandbox."""

# Not `kill -9 -1`: it would reach the agent's process that watches over this very command.
_SWEEP = """
for process in /proc/[0-9]*; do
    case ${process#/proc/} in 1 | $$ | $PPID) ;; *) kill -9 ${process#/proc/} ;; esac
done 2>/dev/null
for folder in /tmp /srv /root /home/agent; do find $folder -mindepth 1 -maxdepth 1 -exec rm -rf {} +; done
"""


def swept(sandbox: Sandbox) -> bool:
    """Whether what tests left in it could be removed: processes and files."""
    return sandbox.exec("sh", "-c", _SWEEP, timeout=20).returncode == 0


class Reused:
    """One sandbox, and another when a test has ended it."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._sandbox: Sandbox | None = None

    @contextmanager
    def sandbox(self, check: Check) -> Iterator[Sandbox]:
        """It, to be swept at the end. `check` is told of a new one, which is not the test's to end."""
        if self._sandbox is None:
            self._sandbox = Sandbox.create(**self._options)
            check.renew()
        yield self._sandbox
        if self._sandbox.poll() is not None or not swept(self._sandbox):
            self.close()

    def close(self) -> None:
        if self._sandbox:
            self._sandbox.terminate()
        self._sandbox = None


@pytest.fixture(scope="session")
def shared_options() -> dict[str, Any]:
    """More arguments of `Sandbox.create`."""
    return {}


@pytest.fixture(scope="class")
def reused(engine: Engine, image: Image, shared_options: dict[str, Any]) -> Iterator[Reused]:
    sandbox = Reused(app=App("shared"), image=image, engine=engine, timeout=3600, **shared_options)
    yield sandbox
    sandbox.close()


@pytest.fixture
def sandbox(
    request: pytest.FixtureRequest, create: suite.Create, face: Face, reused: Reused, no_leaks: Check
) -> Iterator[Sandbox]:
    """A fresh sandbox, or one that is as good as that."""
    if request.cls not in INSIDE:
        yield create()
        return
    with reused.sandbox(no_leaks) as one:
        yield face(one)
