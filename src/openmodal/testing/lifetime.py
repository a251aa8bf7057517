"""How sandboxes end: by their timeout, by `terminate`, by their main command; and what is said to who uses them afterwards."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmodal.engines import Engine
from openmodal.errors import (
    Error,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
)
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.exec import DAEMONS
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, SandboxClass, eventually, promise, python, python_starts


class TestLifetime:
    def test_the_timeout_ends_it_soon(self, create: Create) -> None:
        sandbox = create(timeout=1)
        created = sandbox.status().created
        with pytest.raises(SandboxTimeoutError, match="timeout") as caught:
            sandbox.wait()
        assert isinstance(caught.value, TimeoutError)
        assert (sandbox.returncode, sandbox.poll()) == (124, 124)
        status = sandbox.status()
        assert status.ended
        assert (status.ended.reason, status.ended.returncode) == ("timeout", 124)
        assert -0.1 <= status.ended.ended - (created + 1) <= 10

    def test_the_timeout_ends_everything_in_it(self, create: Create) -> None:
        sandbox = create("sh", "-c", f"{DAEMONS} trap '' TERM INT HUP; while :; do :; done", timeout=1)
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait()
        assert sandbox.returncode == 124

    def test_a_command_under_way_is_told_of_the_timeout(self, create: Create) -> None:
        sandbox = create(timeout=1)
        with pytest.raises(SandboxTimeoutError, match="timeout"):
            sandbox.exec("sleep", "54321")

    def test_a_reader_under_way_is_told_of_the_timeout(self, create: Create) -> None:
        sandbox = create(timeout=3)  # for a busy machine to come to the reading
        process = sandbox.spawn("sh", "-c", "echo ready; sleep 54321")
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(SandboxTimeoutError):
            process.stdout.read()
        with pytest.raises(SandboxTimeoutError):
            process.wait()

    def test_a_main_command_that_ends_earlier_wins(self, create: Create) -> None:
        assert create("sh", "-c", "exit 5", timeout=50).wait() == 5

    def test_create_survives_timeouts_that_are_over_at_once(self, create: Create) -> None:
        for timeout in (0.001, 0.01, 0.05):
            try:
                sandbox = create(timeout=timeout)
            except Error:  # it was over before anybody could use it
                continue
            with pytest.raises(SandboxTimeoutError):
                sandbox.wait()

    @promise("idle_timeout")
    def test_it_ends_when_nothing_happens_in_it(self, create: Create) -> None:
        sandbox = create(idle_timeout=0.5)
        with pytest.raises(SandboxTimeoutError, match="idle"):
            sandbox.wait(timeout=300)
        assert sandbox.returncode == 124

    @promise("idle_timeout")
    def test_a_command_keeps_it_from_being_idle(self, create: Create) -> None:
        sandbox = create(idle_timeout=0.5)
        assert sandbox.exec("sleep", "1.5").returncode == 0
        for _ in range(10):
            sandbox.exec("sleep", "0.1")
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait(timeout=300)

    @promise("idle_timeout")
    @pytest.mark.parametrize("main", ["sleep 172800", "while :; do sleep 0.1; done"])
    def test_its_main_command_does_not_keep_it_from_being_idle(self, create: Create, main: str) -> None:
        """A sandbox with `sleep 172800` and an idle_timeout lived to its timeout."""
        sandbox = create("sh", "-c", main, idle_timeout=0.5)
        assert sandbox.exec("sleep", "1.5").returncode == 0
        with pytest.raises(SandboxTimeoutError, match="idle"):
            sandbox.wait(timeout=300)

    @promise("idle_timeout")
    def test_who_reads_its_main_command_keeps_it_from_being_idle(self, create: Create) -> None:
        sandbox = create("sh", "-c", "sleep 1.5; echo late; exec sleep 172800", idle_timeout=0.5)
        assert sandbox.stdout.readline() == "late\n"

    @promise("idle_timeout")
    def test_who_only_looks_does_not_keep_it_from_being_idle(self, create: Create) -> None:
        """To list its commands, and to look at its output, kept it alive for as long as somebody
        did. A command keeps it from being idle (above): the control."""
        sandbox = create("sh", "-c", "sleep 172800", idle_timeout=1)

        def looks() -> None:
            for _ in range(3000):
                sandbox.commands()
                sandbox.logs(timeout=0.1)

        with pytest.raises(SandboxTimeoutError, match="idle"):
            looks()

    @promise("many_processes")
    def test_it_lives_on_when_the_process_that_made_it_dies(
        self, sandboxes: SandboxClass, engine: Engine, engine_name: str, image: Image
    ) -> None:
        source = """
            app = openmodal.App("contract")
            sandbox = openmodal.Sandbox.create(app=app, image=image, engine=argv[0], timeout=60)
            sandbox.filesystem.write_text("/tmp/mark", "x")
            print(sandbox.id, flush=True)
            os.kill(os.getpid(), 9)
        """
        with python_starts(source, engine_name, image=image) as child:
            assert child.stdout
            id = child.stdout.readline().strip()
            assert child.wait(300) == -9
        sandbox = sandboxes.from_id(id, engine=engine)
        assert sandbox.exec("cat", "/tmp/mark").stdout.read() == "x"
        sandbox.terminate()

    @promise("many_processes")
    def test_the_timeout_ends_it_also_when_its_maker_is_dead(
        self, sandboxes: SandboxClass, engine: Engine, engine_name: str, image: Image
    ) -> None:
        source = """
            app = openmodal.App("contract")
            print(openmodal.Sandbox.create(app=app, image=image, engine=argv[0], timeout=2).id)
        """
        sandbox = sandboxes.from_id(python(source, engine_name, image=image).strip(), engine=engine)
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait(timeout=300)


class TestTermination:
    def test_terminate_ends_it_with_137(self, sandbox: Sandbox) -> None:
        sandbox.terminate()
        assert sandbox.poll() == 137
        assert sandbox.returncode == 137
        assert sandbox.wait(raise_on_termination=False) == 137
        with pytest.raises(SandboxTerminatedError):
            sandbox.wait()

    def test_terminate_is_idempotent(self, sandbox: Sandbox, sandboxes: SandboxClass, engine: Engine) -> None:
        for _ in range(3):
            sandbox.terminate()
        sandboxes.from_id(sandbox.id, engine=engine).terminate()
        assert sandbox.poll() == 137

    def test_terminate_after_the_end_does_not_change_how_it_ended(self, create: Create) -> None:
        sandbox = create("sh", "-c", "exit 3")
        sandbox.wait()
        sandbox.terminate()
        status = sandbox.status()
        assert status.ended
        assert (status.ended.reason, status.ended.returncode) == ("exited", 3)

    def test_terminate_ends_commands_that_resist(self, sandbox: Sandbox) -> None:
        for script in (
            "trap '' TERM INT HUP QUIT; echo up; while :; do :; done",
            f"{DAEMONS} echo up; sleep 54321",
            "echo up; exec <&- >&- 2>&-; sleep 54321",
        ):
            assert sandbox.spawn("sh", "-c", script).stdout.readline() == "up\n"
        sandbox.terminate()
        assert sandbox.poll() == 137

    def test_a_command_under_way_is_told_of_the_termination(self, sandbox: Sandbox, face: Face) -> None:
        calls = [face.start(sandbox.exec, "sh", "-c", f"touch /tmp/{n}; sleep 54321") for n in range(3)]
        eventually(lambda: len(sandbox.filesystem.list_files("/tmp")) == 3)
        sandbox.terminate()
        for call in calls:
            with pytest.raises(SandboxTerminatedError, match="terminated"):
                call.result(30)

    def test_readers_and_waiters_are_told_of_the_termination(self, sandbox: Sandbox, face: Face) -> None:
        process = sandbox.spawn("sh", "-c", "echo ready; sleep 54321")
        assert process.stdout.readline() == "ready\n"
        readers = [face.start(process.stdout.read), face.start(process.stderr.read)]
        waiters = [face.start(process.wait), face.start(sandbox.wait)]
        sandbox.terminate()
        for error in [call.exception(30) for call in readers] + [call.exception(30) for call in waiters]:
            assert isinstance(error, SandboxTerminatedError)

    def test_many_terminate_at_once(
        self, sandbox: Sandbox, sandboxes: SandboxClass, face: Face, engine: Engine
    ) -> None:
        calls = [face.start(sandboxes.from_id(sandbox.id, engine=engine).terminate) for _ in range(8)]
        for call in calls:
            call.result(30)
        assert sandbox.poll() == 137

    def test_each_of_many_that_terminate_finds_it_ended(self, create: Create, engine: Engine) -> None:
        """The second one could return while the first was still at it, and `poll` said None."""

        def end(id: str, delay: float) -> int | None:
            time.sleep(delay)
            Sandbox.from_id(id, engine=engine).terminate()
            return Sandbox.from_id(id, engine=engine).poll()

        with ThreadPoolExecutor(8) as threads:
            for _ in range(3):
                id = create().id
                assert set(threads.map(end, [id] * 8, [0.002 * number for number in range(8)])) == {137}

    @promise("many_processes")
    def test_another_process_terminates_while_a_command_runs(
        self, sandbox: Sandbox, face: Face, engine_name: str
    ) -> None:
        call = face.start(sandbox.exec, "sh", "-c", "touch /tmp/up; sleep 54321")
        eventually(lambda: sandbox.filesystem.exists("/tmp/up"))
        python("openmodal.Sandbox.from_id(argv[1], engine=argv[0]).terminate()", engine_name, sandbox.id)
        with pytest.raises(SandboxTerminatedError):
            call.result(30)
        with pytest.raises(SandboxTerminatedError):
            sandbox.wait()

    @promise("many_processes")
    def test_two_processes_terminate_one_sandbox(self, sandbox: Sandbox, engine_name: str) -> None:
        source = """
            sandbox = openmodal.Sandbox.from_id(argv[1], engine=argv[0])
            print("ready", flush=True)
            sys.stdin.readline()
            sandbox.terminate()
            print(sandbox.poll())
        """
        with (
            python_starts(source, engine_name, sandbox.id) as one,
            python_starts(source, engine_name, sandbox.id) as two,
        ):
            for child in (one, two):
                assert child.stdout
                assert child.stdout.readline() == "ready\n"
            outputs = []
            for child in (one, two):
                assert child.stdin
                child.stdin.write("go\n")
                child.stdin.flush()
            for child in (one, two):
                outputs.append(child.communicate(timeout=600)[0])
                assert child.returncode == 0
        assert outputs == ["137\n", "137\n"]

    def test_a_with_block_terminates_at_its_end(self, create: Create) -> None:
        with create() as sandbox:
            assert sandbox.exec("true").returncode == 0
        assert sandbox.poll() == 137

    def test_a_with_block_terminates_on_an_exception(self, create: Create) -> None:
        made = create()
        with pytest.raises(ZeroDivisionError), made:
            raise ZeroDivisionError
        assert made.poll() == 137

    def test_a_with_block_may_hold_a_sandbox_that_ended(self, create: Create) -> None:
        with create("true") as sandbox:
            sandbox.wait()
        assert sandbox.poll() == 0


USES: dict[str, Callable[[Sandbox], object]] = {
    "exec": lambda sandbox: sandbox.exec("true"),
    "spawn": lambda sandbox: sandbox.spawn("true"),
    "read a file": lambda sandbox: sandbox.filesystem.read_text("/etc/passwd"),
    "write a file": lambda sandbox: sandbox.filesystem.write_text("/tmp/x", "x"),
    "list files": lambda sandbox: sandbox.filesystem.list_files("/"),
    "set tags": lambda sandbox: sandbox.set_tags({"a": "b"}),
}


class TestEnd:
    """Using a sandbox that has ended tells why it ended."""

    @pytest.mark.parametrize("use", USES)
    def test_use_of_a_terminated_sandbox_by(self, sandbox: Sandbox, use: str) -> None:
        sandbox.terminate()
        for _ in range(2):
            with pytest.raises(SandboxTerminatedError, match="terminated") as caught:
                USES[use](sandbox)
            assert isinstance(caught.value, SandboxNotRunningError)
            assert sandbox.id in str(caught.value)
            told = "".join(traceback.format_exception(caught.value))
            assert told.count("Traceback (most recent call last)") == 1, "how its connection broke is not told"

    def test_use_after_its_timeout(self, create: Create) -> None:
        sandbox = create(timeout=0.5)
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait()
        with pytest.raises(SandboxTimeoutError, match="timeout"):
            sandbox.exec("true")

    def test_use_after_its_main_command(self, create: Create) -> None:
        sandbox = create("sh", "-c", "exit 41")
        sandbox.wait()
        with pytest.raises(SandboxNotRunningError, match="41"):
            sandbox.exec("true")

    def test_streams_of_a_process_after_the_end(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("cat")
        sandbox.terminate()
        for use in (process.stdout.read, process.wait, process.poll, process.kill):
            with pytest.raises(SandboxTerminatedError):
                use()

    def test_another_sandbox_is_not_affected(self, create: Create) -> None:
        first, second = create(), create()
        first.terminate()
        assert second.exec("echo", "alive").stdout.read() == "alive\n"


__all__ = ["TestEnd", "TestLifetime", "TestTermination"]
