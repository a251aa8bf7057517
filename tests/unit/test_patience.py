"""For how long an agent that does not answer is asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from openmodal import _agent, _dual
from openmodal._command import Command, Spool
from openmodal._link import SocketStream
from openmodal._spec import ExecSpec
from openmodal.errors import EngineError
from tests.unit.agents import FakeAgent, FakeCommand

OUT = b"output\n" * 1000
Run = Callable[[Coroutine[Any, Any, Any]], Any]
FACES: list[Run] = [_dual.run_sync, lambda core: asyncio.run(_dual.run_async(core))]
pytestmark = pytest.mark.parametrize("run", FACES, ids=["blocking", "async"])


@pytest.mark.parametrize(
    "begin", [Command.start, lambda command, spec: command.run(spec, None, {})], ids=["start", "run"]
)
@pytest.mark.parametrize(("timeout", "seconds"), [(0.1, 0.2), (0.4, 0.4), (None, 1.5)])
def test_a_command_that_nobody_can_have_started_is_tried_no_longer_than_its_timeout(
    monkeypatch: pytest.MonkeyPatch, run: Run, begin: Any, timeout: float | None, seconds: float
) -> None:
    """It took 30 s. Links open, but no agent says hello, as where a process dials it. The control
    has no time-out."""
    monkeypatch.setattr(_agent, "_RECONNECT_SECONDS", 1.5)
    monkeypatch.setattr(_agent, "_LEAST_SECONDS", 0.2)
    agent = FakeAgent(FakeCommand(OUT), cuts=[16] * 1000)
    began = time.monotonic()
    with pytest.raises(EngineError, match="does not answer"):
        run(begin(Command(agent, bytes(16)), ExecSpec(("x",), timeout=timeout)))
    took = time.monotonic() - began
    assert took > seconds and (took < 1.5) == bool(timeout)
    agent.close()


def test_a_command_that_may_have_been_started_is_asked_for_longer_than_its_timeout(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Its answer may be waiting: the agent has said hello before the link broke."""
    monkeypatch.setattr(_agent, "_LEAST_SECONDS", 0.05)
    agent = FakeAgent(FakeCommand(OUT), cuts=[50])
    inner, refuses_until = agent._open, time.monotonic() + 0.5

    async def opened() -> SocketStream:
        if agent.command.starts and time.monotonic() < refuses_until:
            raise ConnectionRefusedError
        return await inner()

    agent._links._connect = opened
    out = Spool()
    run(Command(agent, bytes(16)).run(ExecSpec(("x",), timeout=0.1), None, {1: out}))
    agent.close()
    assert (agent.command.starts, out.read(0, 1 << 30)) == (1, OUT)
