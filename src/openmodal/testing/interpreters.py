"""`Sandbox.interpreter`: code that builds on what code before it made, and forks of it."""

from __future__ import annotations

import pytest

from openmodal.errors import ExecError, InterpreterTimeoutError, InvalidError
from openmodal.image import Image
from openmodal.interpreter import Interpreter
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually

PATIENCE = 300.0


@pytest.mark.slow
class TestInterpreter:
    """All in few sandboxes: they need an image with Python, a Debian."""

    @pytest.fixture
    def with_python(self, create: Create) -> Sandbox:
        return create(image=Image.debian_slim(), block_network=False)

    @pytest.fixture
    def python(self, with_python: Sandbox) -> Interpreter:
        return with_python.interpreter(warm=["json"])

    def test_names_stay_and_everything_that_code_does_is_told(self, python: Interpreter) -> None:
        assert python.run("import os, sys\nx = 6\ndef f(): return 1 / 0").result is None
        said = python.run("print('out'); print('err', file=sys.stderr); os.system('echo program'); x * 7")
        assert (said.result, said.error, said.text) == ("42", None, "out\nerr\nprogram\n")
        failed = python.run("f()").error
        assert failed
        assert failed.name == "ZeroDivisionError"
        assert "def f(): return 1 / 0" in failed.traceback
        for code, name in (("a b", "SyntaxError"), ("exit(3)", "SystemExit"), ("input()", "EOFError")):
            error = python.run(code).error
            assert error
            assert error.name == name
        assert python.run("json.loads('[1]')").result == "[1]", "what is warm has a name"
        much = python.run("print('y' * 100_000); sys.stdout.close()", max_output=100)
        assert much.omitted == 100_001 - 100
        assert python.run("print(x)").text == "6\n", "the code has its streams again"

    def test_a_timeout_leaves_the_names(self, python: Interpreter) -> None:
        python.run("import signal, time; x = 5")
        with pytest.raises(InterpreterTimeoutError) as caught:
            python.run("print('begun', flush=True); time.sleep(12345)", timeout=0.5)
        assert caught.value.execution
        assert caught.value.execution.text == "begun\n"
        assert python.run("x").result == "5"
        with pytest.raises(InterpreterTimeoutError):
            python.run("signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", timeout=0.5)
        with pytest.raises(ExecError, match=r"sandbox\.interpreter\(\)"):
            python.run("x")

    def test_forks_have_what_it_has_and_go_their_own_ways(self, with_python: Sandbox, python: Interpreter) -> None:
        python.run("import os, random; names = [1]; random.seed(1)")
        forks = python.fork(3)
        for number, fork in enumerate(forks):
            fork.run(f"names.append({number})")
        assert [fork.run("names").result for fork in forks] == ["[1, 0]", "[1, 1]", "[1, 2]"]
        assert python.run("names").result == "[1]"
        python.close()
        (grandchild,) = forks[0].fork()
        assert grandchild.run("print('text'); names").result == "[1, 0]"
        assert len({one.pid for one in (*forks, grandchild, python)}) == 5
        with pytest.raises(InterpreterTimeoutError):
            forks[1].run("while True: pass", timeout=0.5)
        assert forks[1].run("names").result == "[1, 1]"
        with pytest.raises(ExecError, match="ended"):
            forks[2].run("os._exit(3)")
        with pytest.raises(ExecError, match="ended"):  # its fork holds none of its streams
            forks[0].run("print('last'); os._exit(3)", timeout=PATIENCE)
        assert grandchild.run("names").result == "[1, 0]"
        for one in (*forks, grandchild):
            one.close()
        eventually(lambda: not any(with_python.filesystem.exists(f"/proc/{one.pid}") for one in (*forks, grandchild)))

    def test_what_is_wrong_is_told(self, with_python: Sandbox, python: Interpreter) -> None:
        with pytest.raises(ExecError, match="nosuch"):
            with_python.interpreter(warm=["nosuch"])
        with pytest.raises(ExecError, match="nosuch"):
            with_python.interpreter("nosuch")
        with pytest.raises(InvalidError, match="count"):
            python.fork(0)
        with pytest.raises(InvalidError, match="timeout"):
            python.run("1", timeout=-1)
        assert python.run("1").result == "1"


__all__ = ["TestInterpreter"]
