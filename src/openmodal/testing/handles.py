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

from openmodal.errors import ExecTimeoutError
from openmodal.process import Process, StreamType
from openmodal.sandbox import Sandbox
from openmodal.testing.exec import DAEMONS
from openmodal.testing.faces import Face, plain
from openmodal.testing.fixtures import Create, eventually, python, running

T = TypeVar("T")


class TestInterrupted:
    """Who is interrupted while he runs or starts a command has no handle to it: nothing of it lives on."""

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


__all__ = ["TestInterrupted", "TestOtherProcesses"]
