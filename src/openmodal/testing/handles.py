"""Handles whose holder is interrupted, copied, or another process."""

from __future__ import annotations

import base64
import copy
import errno
import io
import itertools
import os
import pickle
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

import pytest

from openmodal.engines import Engine
from openmodal.errors import ExecTimeoutError, InvalidError, NotFoundError, OutputLostWarning, StdinClosedError
from openmodal.process import Process, StreamType
from openmodal.sandbox import Sandbox
from openmodal.testing.exec import DAEMONS
from openmodal.testing.faces import Face, plain
from openmodal.testing.fixtures import Create, SandboxClass, eventually, promise, python, running

T = TypeVar("T")


class TestInterrupted:
    """Who is interrupted in running a command has no handle to it: nothing of it lives on."""

    COMMAND = ("sh", "-c", f"{DAEMONS} while :; do sleep 54321; done")

    @pytest.mark.parametrize("stdin", [None, "x" * 5_000_000], ids=["no input", "input that nobody reads"])
    def test_an_exec_that_is_cancelled_is_killed_with_its_descendants(
        self, sandbox: Sandbox, face: Face, stdin: str | None
    ) -> None:
        other = sandbox.spawn("sleep", "999")
        if face.name == "async":
            call = face.start(sandbox.exec, *self.COMMAND, stdin=stdin)
            eventually(lambda: len(running(sandbox, "sleep 54321")) >= 3)
            call.cancel()
        else:
            watch = face.start(_when_it_runs, sandbox, lambda: os.kill(os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                sandbox.exec(*self.COMMAND, stdin=stdin)
            watch.result()
            assert running(sandbox, "54321") == [], "it is dead when the call returns"
        eventually(lambda: running(sandbox, "54321") == [])
        assert other.poll() is None, "others are spared"

    @pytest.mark.parametrize("call", ["exec", "spawn"])
    def test_at_whatever_instant_nothing_lives_on(self, create: Create, call: str) -> None:
        for instant in range(8):
            sandbox = plain(create())
            with sandbox:
                core = getattr(sandbox, call).core(*self.COMMAND, stdout=StreamType.DEVNULL, timeout=3)
                if not _interrupted(core, instant):
                    assert instant > 0 or call == "spawn", "only a start may be over before it waits"
                    return
                eventually(lambda: running(sandbox, "54321") == [])  # noqa: B023

    def test_an_input_that_cannot_be_read_ends_the_command(self, sandbox: Sandbox) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            sandbox.exec(*self.COMMAND, stdin=Broken())
        eventually(lambda: running(sandbox, "54321") == [])


def _pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


class TestOtherProcesses:
    """Handles and errors are the same in another process (pickle), and as copies."""

    def elsewhere(self, call: Callable[[], T]) -> T | Exception:
        """Call it in another process, as a process pool does; return the result, or what it raised."""
        source = """
            call = pickle.loads(base64.b64decode(argv[0]))
            try:
                done = call()
            except openmodal.Error as error:
                done = error
            print(base64.b64encode(pickle.dumps(done)).decode())
        """
        packed = base64.b64encode(pickle.dumps(call)).decode()
        return cast("T | Exception", pickle.loads(base64.b64decode(python(source, packed))))

    def test_a_call_that_another_process_makes_gives_its_result(self, sandbox: Sandbox) -> None:
        process = self.elsewhere(partial(plain(sandbox).exec, "sh", "-c", "echo out; echo err >&2; exit 5"))
        assert isinstance(process, Process)
        assert (process.returncode, process.stdout.read(), process.stderr.read()) == (5, "out\n", "err\n")

    def test_an_error_of_another_process_comes_whole(self, sandbox: Sandbox) -> None:
        """Unpickling it failed, and a multiprocessing.Pool then waits for ever."""
        late = self.elsewhere(partial(plain(sandbox).exec, "sh", "-c", "echo partial; sleep 9", timeout=0.5))
        assert isinstance(late, ExecTimeoutError)
        assert late.process.timed_out
        assert late.process.stdout.read() == "partial\n"
        missing = self.elsewhere(partial(plain(sandbox).filesystem.read_text, "/nothing"))
        assert isinstance(missing, FileNotFoundError)
        assert (missing.errno, missing.filename) == (errno.ENOENT, "/nothing")

    def test_a_finished_process_keeps_its_output_and_its_place_in_it(self, create: Create) -> None:
        sandbox = create()
        process = plain(sandbox).exec("sh", "-c", r"printf 'one\ntwo\303'; printf '\244\n'; seq 3000000")
        sandbox.terminate()
        assert process.stdout.readline() == "one\n"
        again = pickle.loads(pickle.dumps(process))
        assert copy.deepcopy(again).stdout.read() == process.stdout.read()
        assert again.stdout.readline() == "twoä\n"
        assert (again.args, again.pid, again.record) == (process.args, process.pid, process.record)

    def test_a_running_process_goes_on_where_it_was(self, sandbox: Sandbox) -> None:
        process = plain(sandbox.spawn("sh", "-c", "echo one; read x; echo $x; exit 4"))
        assert process.stdout.readline() == "one\n"
        again = pickle.loads(pickle.dumps(process))
        again.stdin.write("two\n")
        again.stdin.drain()
        assert again.stdout.readline() == "two\n"
        assert (again.wait(), process.wait()) == (4, 4)

    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, _pickled])
    def test_copies_of_a_sandbox_are_the_same_sandbox(self, sandbox: Sandbox, how: Callable[[Any], Any]) -> None:
        again = how(plain(sandbox))
        assert again.id == sandbox.id
        again.filesystem.write_text("/tmp/file", "text")
        assert how(plain(sandbox.filesystem)).read_text("/tmp/file") == "text"
        again.terminate()
        assert how(again).poll() == 137


class TestAttached:
    """A command that somebody else has started, found by its id."""

    TALK = ("sh", "-c", "echo begun; echo err >&2; while read x; do echo got $x; done; exit 4")

    def test_it_is_read_written_to_and_waited_for(
        self, sandbox: Sandbox, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        process = sandbox.spawn(*self.TALK)
        process.stdin.write("one\n")
        process.stdin.drain()
        again = sandboxes.from_id(sandbox.id, engine=engine).process(process.id)
        assert (again.id, again.returncode) == (process.id, None)
        assert [again.stdout.readline(), again.stdout.readline()] == ["begun\n", "got one\n"]
        again.stdin.write("two\n")
        again.stdin.close()
        assert (again.stdout.read(), again.stderr.read(), again.stdout.dropped) == ("got two\n", "err\n", 0)
        assert (again.wait(), process.wait()) == (4, 4)

    def test_reading_goes_on_where_the_last_reader_was_or_at_an_offset(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "printf 0123456789; read x; printf abc", text=False)
        assert process.stdout.read_some() == b"0123456789"
        again = sandbox.process(process.id, text=False, stdout_offset=4)
        assert again.stdout.read_some() == b"456789", "a reader that was cut off may ask for the last piece again"
        process.stdin.close()
        assert process.stdout.read_some() == b"abc"
        assert sandbox.process(process.id, stdout_offset=11).stdout.read() == "bc"
        later = sandbox.process(process.id)
        assert later.stdout.read() == "", "all is read, and that is no loss"

    def test_what_was_read_elsewhere_counts_as_dropped_for_who_wants_all(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "printf 0123456789; read x; printf abc")
        assert process.stdout.read_some() == "0123456789"
        process.stdin.close()
        assert process.stdout.read_some() == "abc"
        again = sandbox.process(process.id, stdout_offset=0)
        with pytest.warns(OutputLostWarning, match="10 bytes"):
            assert again.stdout.read() == "abc"
        assert again.stdout.dropped == 10

    def test_all_are_listed(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        sandbox = create("sleep", "600")
        first = sandbox.spawn("sh", "-c", "echo out; exit 3")
        first.wait()
        second = sandbox.spawn("sleep", "54321", user="1000:1000")
        sandbox.exec("true")
        long = sandbox.spawn("sh", "-c", "exec sleep 54322", *["argument" * 100] * 3)
        listed = sandboxes.from_id(sandbox.id, engine=engine).commands
        # `create` does not wait for the main command, which is listed once it has begun.
        eventually(lambda: listed()[0].id == "0" * 32)
        main, *others = listed()
        assert (main.id, main.argv, main.returncode) == ("0" * 32, ("sleep", "600"), None)
        assert [(found.id, found.pid) for found in others] == [(made.id, made.pid) for made in (first, second, long)]
        assert [found.user for found in others] == ["root", "1000:1000", "root"]
        assert [found.returncode for found in others] == [3, None, None]
        assert others[0].record == first.record
        assert (others[1].argv, others[1].cut) == (("sleep", "54321"), False)
        assert (others[2].argv[:4], others[2].cut) == (("sh", "-c", "exec sleep 54322", "argument" * 100), True)
        assert sandbox.process(others[0].id, stdout_offset=0).stdout.read() == "out\n"

    def test_it_is_killed(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", f"{DAEMONS} while :; do sleep 54321; done")
        eventually(lambda: len(running(sandbox, "sleep 54321")) >= 3)
        again = sandbox.process(process.id)
        again.kill()
        assert (again.wait(), process.wait(), running(sandbox, "54321")) == (137, 137, [])

    def test_one_that_has_ended_is_known_at_once(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo out; exit 3")
        assert process.wait() == 3
        again = sandbox.process(process.id)
        assert (again.returncode, again.record, again.stdout.read()) == (3, process.record, "out\n")
        again.stdin.write("late")
        with pytest.raises(StdinClosedError):
            again.stdin.drain()

    def test_its_timeout_is_told(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sleep", "54321", timeout=0.3)
        with pytest.raises(ExecTimeoutError, match=process.id):
            sandbox.process(process.id).wait()

    def test_what_is_not_there_is_told(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("echo", "text")
        for unknown in ("0" * 31 + "1", sandbox.exec("true").id):
            with pytest.raises(NotFoundError, match=unknown):
                sandbox.process(unknown)
        for wrong in ("", "x", process.id.upper() + "0"):
            with pytest.raises(InvalidError, match="id"):
                sandbox.process(wrong)
        with pytest.raises(InvalidError, match="stdout_offset"):
            sandbox.process(process.id, stdout_offset=-1)
        process.wait()
        with pytest.raises(InvalidError, match="stdout has 5 bytes so far, and the offset 6 lies behind them"):
            sandbox.process(process.id, stdout_offset=6).stdout.read()

    @promise("many_processes")
    def test_a_command_outlives_the_program_that_started_it(self, sandbox: Sandbox, engine_name: str) -> None:
        source = """
            sandbox = openmodal.Sandbox.from_id(argv[0], engine=argv[1])
            print(sandbox.spawn(*argv[2:]).id, end="")
        """
        id = python(source, sandbox.id, engine_name, *self.TALK)
        again = sandbox.process(id)
        again.stdin.write("more\n")
        again.stdin.close()
        assert (again.stdout.read(), again.wait()) == ("begun\ngot more\n", 4)

    @promise("many_processes")
    def test_another_program_takes_part(self, sandbox: Sandbox, engine_name: str) -> None:
        process = sandbox.spawn(*self.TALK)
        source = """
            process = openmodal.Sandbox.from_id(argv[0], engine=argv[1]).process(argv[2])
            process.stdin.write("there\\n")
            process.stdin.close()
            print(process.stdout.read(), process.wait(), end="")
        """
        assert python(source, sandbox.id, engine_name, process.id) == "begun\ngot there\n 4"
        assert process.wait() == 4


def _when_it_runs(sandbox: Sandbox, act: Callable[[], object]) -> None:
    eventually(lambda: len(running(sandbox, "sleep 54321")) >= 3)
    act()


def _interrupted(core: Coroutine[Any, Any, Any], instant: int) -> bool:
    """Run core code to its end in this thread, with Ctrl-C at its n-th wait; False if it ended before."""
    resume: Callable[[], Any] = partial(core.send, None)
    for waits in itertools.count():
        try:
            effect = resume()
        except (StopIteration, ExecTimeoutError):
            return False
        except KeyboardInterrupt:
            return True
        try:
            if waits == instant:
                raise KeyboardInterrupt
            resume = partial(core.send, effect.block())
        except BaseException as error:  # noqa: BLE001  (it belongs to the core's await)
            resume = partial(core.throw, error)
    raise AssertionError


__all__ = ["TestAttached", "TestInterrupted", "TestOtherProcesses"]
