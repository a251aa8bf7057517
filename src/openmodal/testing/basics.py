"""Sandboxes: their ids and names, how they are found, their main command."""

from __future__ import annotations

import re
import time
from typing import Any, cast

import pytest

from openmodal._spec import OutputGap, Status
from openmodal.app import App
from openmodal.engines import Engine
from openmodal.errors import (
    AlreadyExistsError,
    Error,
    InvalidError,
    NotFoundError,
    OutputLostWarning,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
)
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face, plain
from openmodal.testing.fixtures import Create, SandboxClass, eventually, promise, python


class Asked:
    """An engine that notes which single sandboxes it is asked about."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.about: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def inspect(self, id: str) -> Status:
        self.about.append(id)
        return await self._engine.inspect(id)


class TestSandbox:
    def test_id_is_the_apps_name_and_eight_hexadecimal_digits(self, create: Create) -> None:
        ids = {create().id for _ in range(3)}
        assert len(ids) == 3
        assert all(re.fullmatch(r"contract-[0-9a-f]{8}", id) for id in ids)

    def test_id_begins_with_the_apps_name(self, create: Create) -> None:
        assert re.fullmatch(r"My_app\.2-[0-9a-f]{8}", create(app=App("My_app.2")).id)

    def test_object_id_is_the_id(self, sandbox: Sandbox) -> None:
        assert sandbox.object_id == sandbox.id

    def test_without_a_main_command_it_stays(self, sandbox: Sandbox) -> None:
        assert sandbox.poll() is None
        assert sandbox.returncode is None
        assert sandbox.exec("true").returncode == 0
        with pytest.raises(TimeoutError):
            sandbox.wait(timeout=0.2)
        assert sandbox.exec("true").returncode == 0

    def test_status_tells_what_it_is(self, create: Create, engine: Engine) -> None:
        before = time.time()
        sandbox = create(name="the-name", tags={"role": "test"}, timeout=77)
        status = sandbox.status()
        assert (status.id, status.app, status.name, status.engine) == (sandbox.id, "contract", "the-name", engine.name)
        assert status.tags == (("role", "test"),)
        assert before - 1 <= status.created <= time.time() + 1
        assert status.expires - status.created == pytest.approx(77, abs=1)
        assert status.ended is None

    def test_secrets_are_shown_nowhere(self, create: Create, engine: Engine) -> None:
        from openmodal.secret import Secret

        secret = Secret.from_dict({"KEY": "do-not-show-4711"})
        sandbox = create(secrets=[secret])
        assert sandbox.exec("sh", "-c", "echo $KEY").stdout.read() == "do-not-show-4711\n", "the control"
        assert "4711" not in repr(secret)
        assert "4711" not in repr(sandbox.status())

    def test_repr_tells_its_id(self, sandbox: Sandbox) -> None:
        assert sandbox.id in repr(sandbox)

    def test_many_are_made_and_ended_at_once(
        self, sandboxes: SandboxClass, face: Face, app: App, image: Image, engine: Engine
    ) -> None:
        calls = [
            face.start(sandboxes.create, "sh", "-c", f"exit {n}", app=app, image=image, engine=engine, timeout=60)
            for n in range(16)
        ]
        made = [call.result(60) for call in calls]
        assert [sandbox.wait() for sandbox in made] == list(range(16))

    def test_one_object_serves_many_threads_or_tasks(self, sandbox: Sandbox, face: Face) -> None:
        calls = [face.start(sandbox.filesystem.write_text, f"/tmp/{n}", str(n)) for n in range(30)]
        for call in calls:
            call.result(60)
        assert len(sandbox.filesystem.list_files("/tmp")) == 30


class TestNames:
    def test_a_name_is_unique_among_running_sandboxes_of_the_app(self, create: Create) -> None:
        first = create(name="unique")
        with pytest.raises(AlreadyExistsError, match="unique"):
            create(name="unique")
        assert first.exec("true").returncode == 0

    def test_a_name_is_free_again_after_the_end(self, create: Create) -> None:
        create(name="again").terminate()
        create(name="again")

    def test_a_name_is_free_again_after_the_main_command(self, create: Create) -> None:
        create("true", name="again").wait()
        create("true", name="again").wait()

    def test_another_app_may_use_the_name(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        first, second = create(name="shared"), create(name="shared", app=App("other"))
        assert sandboxes.from_name("contract", "shared", engine=engine).id == first.id
        assert sandboxes.from_name("other", "shared", engine=engine).id == second.id

    def test_of_many_at_once_one_gets_the_name(
        self, face: Face, sandboxes: SandboxClass, app: App, image: Image, engine: Engine
    ) -> None:
        calls = [
            face.start(sandboxes.create, app=app, image=image, engine=engine, name="race", timeout=60) for _ in range(8)
        ]
        made, refused = [], []
        for call in calls:
            try:
                made.append(call.result(60))
            except AlreadyExistsError as error:
                refused.append(error)
        for sandbox in made:
            sandbox.terminate()
        assert (len(made), len(refused)) == (1, 7)


class TestFinding:
    def test_from_id_gives_the_same_sandbox(self, sandbox: Sandbox, sandboxes: SandboxClass, engine: Engine) -> None:
        sandbox.filesystem.write_text("/tmp/mark", "x")
        again = sandboxes.from_id(sandbox.id, engine=engine)
        assert again.id == sandbox.id
        assert again.filesystem.read_text("/tmp/mark") == "x"

    @pytest.mark.parametrize("id", ["contract-00000000", "nonsense", "", "../../etc", "a/b", "contract-0000000\n"])
    def test_from_id_of_nothing_is_not_found(self, sandboxes: SandboxClass, engine: Engine, id: str) -> None:
        with pytest.raises((NotFoundError, InvalidError)):
            sandboxes.from_id(id, engine=engine)

    def test_from_id_finds_one_that_ended_lately(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        id = create("sh", "-c", "exit 3").id
        again = sandboxes.from_id(id, engine=engine)
        assert again.wait() == 3
        later = sandboxes.from_id(id, engine=engine)
        assert later.poll() == 3
        assert later.returncode == 3
        with pytest.raises(SandboxNotRunningError):
            later.exec("true")

    @promise("ended")
    def test_those_that_ended_lately_are_listed_with_why(
        self, create: Create, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        running, ended = create(tags={"which": "runs"}), create(tags={"which": "ended"})
        ended.terminate()
        found = sandboxes.list(tags={"which": "ended"}, ended=True, engine=engine)
        assert found[-1].id == ended.id, "the newest end comes last"
        status = found[-1].last_status
        assert status
        assert status.ended
        assert status.ended.reason == "terminated"
        assert running.id not in [sandbox.id for sandbox in sandboxes.list(ended=True, engine=engine)]
        assert ended.id not in [sandbox.id for sandbox in sandboxes.list(engine=engine)]

    def test_from_name_gives_the_running_sandbox(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        id = create(name="found").id
        assert sandboxes.from_name("contract", "found", engine=engine).id == id
        sandboxes.from_name("contract", "found", engine=engine).terminate()
        with pytest.raises(NotFoundError, match="found"):
            sandboxes.from_name("contract", "found", engine=engine)

    def test_list_tells_the_running_ones_oldest_first(
        self, create: Create, sandboxes: SandboxClass, app: App, engine: Engine
    ) -> None:
        made = [create().id for _ in range(3)]
        other = create(app=App("other")).id
        assert [sandbox.id for sandbox in sandboxes.list(app=app, engine=engine)] == made
        assert [sandbox.id for sandbox in sandboxes.list(app="contract", engine=engine)] == made
        assert {*made, other} <= {sandbox.id for sandbox in sandboxes.list(engine=engine)}
        sandboxes.from_id(made[1], engine=engine).terminate()
        assert [sandbox.id for sandbox in sandboxes.list(app=app, engine=engine)] == [made[0], made[2]]

    def test_list_tells_how_they_are_and_asks_for_none_by_itself(
        self, create: Create, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        made = [create(name=f"listed-{number}", tags={"number": str(number)}) for number in range(2)]
        asked = Asked(engine)
        told = [sandbox.last_status for sandbox in sandboxes.list(app="contract", engine=cast("Engine", asked))]
        assert asked.about == []
        assert [(status.id, status.name, status.tags, status.ended) for status in told if status] == [
            (sandbox.id, f"listed-{number}", (("number", str(number)),), None) for number, sandbox in enumerate(made)
        ]
        assert made[0].last_status is None
        made[0].terminate()
        assert made[0].poll() == 137
        assert made[0].last_status == made[0].status()

    def test_list_takes_tags(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        both = create(tags={"role": "worker", "stage": "one"}).id
        one = create(tags={"role": "worker"}).id
        create()

        def ids(**tags: str) -> list[str]:
            return [sandbox.id for sandbox in sandboxes.list(app="contract", tags=tags, engine=engine)]

        assert ids(role="worker") == [both, one]
        assert ids(role="worker", stage="one") == [both]
        assert ids(role="other") == []
        assert len(ids()) == 3

    def test_tags_can_be_replaced(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        sandbox = create(tags={"a": "1", "b": "2"})
        assert sandbox.get_tags() == {"a": "1", "b": "2"}
        sandbox.set_tags({"b": "3"})
        again = sandboxes.from_id(sandbox.id, engine=engine)
        assert again.get_tags() == {"b": "3"}
        assert [found.id for found in sandboxes.list(tags={"b": "3"}, engine=engine)] == [sandbox.id]
        assert sandboxes.list(app="contract", tags={"a": "1"}, engine=engine) == []

    def test_tags_of_an_ended_sandbox_cannot_be_set(self, sandbox: Sandbox) -> None:
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            sandbox.set_tags({"a": "1"})

    @promise("many_processes")
    def test_another_process_finds_it(self, create: Create, engine_name: str) -> None:
        sandbox = create(name="from-elsewhere")
        sandbox.filesystem.write_text("/tmp/mark", "seen")
        source = """
            sandbox = openmodal.Sandbox.from_name("contract", "from-elsewhere", engine=argv[0])
            print(sandbox.id, sandbox.filesystem.read_text("/tmp/mark"), end="")
        """
        assert python(source, engine_name) == f"{sandbox.id} seen"


class TestMainCommand:
    def test_the_sandbox_ends_when_it_ends(self, create: Create) -> None:
        sandbox = create("sh", "-c", "exit 7")
        assert sandbox.wait() == 7
        assert (sandbox.returncode, sandbox.poll()) == (7, 7)

    def test_its_output_can_be_read_after_the_end(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo out; echo err >&2; exit 7")
        sandbox.wait()
        assert (sandbox.stdout.read(), sandbox.stderr.read()) == ("out\n", "err\n")
        assert (sandbox.stdout.read(), sandbox.stderr.read()) == ("", "")

    def test_its_output_can_be_read_from_elsewhere_after_the_end(
        self, create: Create, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        sandbox = create("sh", "-c", "echo out; echo err >&2")
        sandbox.wait()
        again = sandboxes.from_id(sandbox.id, engine=engine)
        assert (again.stdout.read(), again.stderr.read()) == ("out\n", "err\n")

    def test_its_output_is_live(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo ready; sleep 54321")
        assert sandbox.stdout.readline() == "ready\n"
        assert sandbox.poll() is None

    def test_its_output_comes_whole_when_it_ends_while_it_is_read(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo ready; while ! [ -e /tmp/go ]; do :; done; seq 1 100000")
        assert sandbox.stdout.readline() == "ready\n"
        sandbox.filesystem.write_text("/tmp/go", "")
        assert sandbox.stdout.read() == "".join(f"{n}\n" for n in range(1, 100_001))
        assert sandbox.wait() == 0

    def test_it_reads_what_is_written(self, create: Create) -> None:
        sandbox = create("sh", "-c", "read x; echo got $x; exit 3")
        sandbox.stdin.write("hello\n")
        sandbox.stdin.close()
        assert sandbox.wait() == 3
        assert sandbox.stdout.read() == "got hello\n"

    def test_lines_of_it_come_by_iteration(self, create: Create) -> None:
        assert list(create("seq", "1", "3").stdout) == ["1\n", "2\n", "3\n"]

    def test_death_by_a_signal_is_128_and_its_number(self, create: Create) -> None:
        assert create("sh", "-c", "kill -9 $$").wait() == 137
        assert create("sh", "-c", "kill -TERM $$").wait() == 143

    def test_a_missing_executable_ends_it_with_127(self, create: Create) -> None:
        sandbox = create("no-such-command")
        assert sandbox.wait() == 127
        assert "no-such-command" in sandbox.stderr.read()

    def test_it_runs_in_the_workdir_with_the_environment(self, create: Create) -> None:
        sandbox = create("sh", "-c", "pwd; echo $NAME $FROM_IMAGE", workdir="/tmp", env={"NAME": "value"})
        sandbox.wait()
        assert sandbox.stdout.read() == "/tmp\nvalue image\n"

    def test_commands_run_beside_it_and_end_with_it(self, create: Create, face: Face) -> None:
        sandbox = create("sh", "-c", "while ! [ -e /tmp/go ]; do :; done; exit 3")
        assert sandbox.exec("echo", "beside").stdout.read() == "beside\n"
        other = face.start(sandbox.exec, "sh", "-c", "touch /tmp/go; sleep 54321")
        with pytest.raises(SandboxNotRunningError, match="3"):
            other.result(60)
        assert sandbox.wait() == 3

    def test_children_it_leaves_end_with_the_sandbox(self, create: Create) -> None:
        sandbox = create("sh", "-c", "setsid sleep 54321 & exit 0")
        assert sandbox.wait() == 0

    def test_without_one_there_are_no_streams(self, sandbox: Sandbox) -> None:
        with pytest.raises(Error, match="main command"):
            sandbox.stdout.read()
        with pytest.raises(InvalidError, match="main command"):
            sandbox.logs()

    def test_its_output_is_looked_at_without_being_taken(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo out; echo err >&2; while ! [ -e /tmp/go ]; do :; done; echo more")
        assert sandbox.logs(2, timeout=60).data == b"err\n"
        eventually(lambda: sandbox.logs().data == b"out\n")
        piece = sandbox.logs(1, 4)
        assert (piece.at, piece.data, piece.ended) == (4, b"", False)
        sandbox.exec("touch", "/tmp/go")
        sandbox.wait()
        piece = sandbox.logs(1, 2)
        assert (piece.at, piece.data, piece.ended) == (2, b"t\nmore\n", True)
        assert sandbox.stdout.read() == "out\nmore\n"

    def test_output_without_a_reader_keeps_the_newest(self, create: Create) -> None:
        rest = "A" * 120
        sandbox = create("sh", "-c", f"seq 1 100000 | sed 's/$/ {rest}/'")
        assert sandbox.wait() == 0
        with pytest.warns(OutputLostWarning, match=r"\d+ bytes of output are missing here.*sandbox's end"):
            text = sandbox.stdout.read()
        whole = "".join(f"{number} {rest}\n" for number in range(1, 100_001))
        assert text.endswith(f"\n99999 {rest}\n100000 {rest}\n")
        assert whole.endswith(text)
        assert 2 << 20 < len(text) <= 8 << 20
        assert sandbox.stdout.gaps == (OutputGap(at=0, size=len(whole) - len(text)),)

    def test_who_read_a_part_of_its_output_gets_the_rest_after_the_end(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo first; while ! [ -e /tmp/go ]; do :; done; echo second; echo third")
        assert sandbox.stdout.readline() == "first\n"
        sandbox.filesystem.write_text("/tmp/go", "")
        assert sandbox.wait() == 0
        assert sandbox.stdout.read() == "second\nthird\n"
        assert sandbox.stdout.gaps == ()

    def test_its_last_words_stay_when_the_timeout_ends_it(self, create: Create) -> None:
        for timeout in (2, 10):  # for a busy machine to come to the words
            sandbox = create("sh", "-c", "echo last words; sleep 54321", timeout=timeout)
            with pytest.raises(SandboxTimeoutError):
                sandbox.wait()
            if sandbox.stdout.read() == "last words\n":
                return
        pytest.fail("they are not there")

    def test_a_finished_stream_is_one_object(self, create: Create) -> None:
        sandbox = create("seq", "1", "3")
        sandbox.wait()
        assert sandbox.stdout.readline() == "1\n"
        assert sandbox.stdout.read() == "2\n3\n"
        assert plain(sandbox.stdout) is plain(sandbox.stdout)


__all__ = ["TestFinding", "TestMainCommand", "TestNames", "TestSandbox"]
