"""What was done with a sandbox is told, from any process, and after its end, too."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from openmodal.engines import Engine
from openmodal.errors import SandboxFileNotFoundError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.fixtures import Create, SandboxClass, promise


class TestTimeline:
    @promise("journal")
    def test_calls_and_their_results_are_told_also_after_the_end(
        self, create: Create, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        sandbox = create("sleep", "1000")
        sandbox.exec("sh", "-c", "exit 3")
        sandbox.filesystem.write_text("/tmp/a", "four")
        with pytest.raises(SandboxFileNotFoundError):
            sandbox.filesystem.read_text("/tmp/b")
        spawned = sandbox.spawn("sleep", "1000")
        running = {event.command: event for event in sandboxes.from_id(sandbox.id, engine=engine).timeline()}
        assert running[spawned.id].record is None
        spawned.kill()
        spawned.wait()
        sandbox.terminate()
        events = sandboxes.from_id(sandbox.id, engine=engine).timeline()
        assert [event.at for event in events] == sorted(event.at for event in events)
        found = {event.call: event for event in events}
        assert found["create"].argv[-2:] == ("sleep", "1000")
        assert found["exec"].argv == ("sh", "-c", "exit 3")
        assert found["exec"].record
        assert found["exec"].record.returncode == 3
        assert (found["write"].path, found["write"].size) == ("/tmp/a", 4)
        assert (found["read"].path, found["read"].error) == ("/tmp/b", "SandboxFileNotFoundError")
        assert found["spawn"].record
        assert found["spawn"].record.returncode == 137
        assert found["end"].detail
        assert [event.call for event in events][-1] in ("end", "terminate")

    @promise("journal")
    def test_a_command_that_runs_is_told_and_no_secret_or_content_is_noted(
        self, sandbox: Sandbox, engine: Engine
    ) -> None:
        sandbox.filesystem.write_text("/tmp/a", "hidden-in-a-file")
        sandbox.filesystem.read_text("/tmp/a")
        secret = Secret.from_dict({"TOKEN": "hidden-in-a-variable"})
        waits = sandbox.spawn("sh", "-c", 'cat /tmp/a; echo "$TOKEN"; read line', secrets=[secret])
        (event,) = (event for event in sandbox.timeline() if event.command == waits.id)
        assert (event.call, event.record, event.seconds) == ("spawn", None, None)
        waits.stdin.write("hidden-in-stdin\n")
        waits.stdin.drain()
        assert "hidden" in waits.stdout.read()
        waits.wait()
        noted = engine.journal(sandbox.id).read_text("utf-8")
        assert waits.id in noted
        assert "hidden" not in noted

    @promise("journal")
    @promise("usage")
    @promise("idle_timeout")
    def test_to_look_on_is_no_use(self, create: Create) -> None:
        sandbox = create("sleep", "1000", idle_timeout=2)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and sandbox.poll() is None:
            sandbox.timeline()
            with suppress(SandboxNotRunningError):
                sandbox.usage()
            time.sleep(0.1)
        assert sandbox.poll() == 124

    @promise("journal")
    @promise("checkpoint")
    @promise("reset")
    def test_what_changes_its_state_is_told(self, sandbox: Sandbox) -> None:
        start = sandbox.checkpoint()
        sandbox.reset(start)
        told = [event.call for event in sandbox.timeline()]
        assert [call for call in told if call in ("create", "checkpoint", "reset")] == ["create", "checkpoint", "reset"]
