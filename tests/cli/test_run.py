"""`openmodal run`: which function is called with what, how errors look, and that no sandbox outlives its run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine

MAIN = "@app.local_entrypoint()\ndef main({parameters}):\n    {body}\n"
TYPES = """
import enum, pathlib
from typing import Annotated, Literal
class Color(enum.Enum):
    red = 1
    blue = 2
@app.local_entrypoint()
def main(count: int, *rest: str, ratio: float = 0.5, verbose: bool = False, mode: Literal["fast", 3] = "fast",
         color: Color = Color.red, maybe: int | None = None, tag: list[str] = ["none"], path: pathlib.Path = pathlib.Path("."),
         deep_level: Annotated[int, "how deep"] = 1, plain="x"):
    \"\"\"Do something.\"\"\"
    print(repr((count, rest, ratio, verbose, mode, color.name, maybe, tag, path.name, deep_level, plain)))
"""


# ----------------------------------------------------------------------------------- what is called


def test_the_only_entrypoint_is_called(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="print('called')"))
    assert openmodal("--local", "run", program) == "called\n"


def test_the_engine_may_be_said_behind_the_command_too(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="print('called')"))
    assert openmodal("run", "--local", program) == "called\n"


def test_an_entrypoint_may_be_a_coroutine(openmodal: CommandLine) -> None:
    program = openmodal.program("@app.local_entrypoint()\nasync def main():\n    print('awaited')\n")
    assert openmodal("--local", "run", program) == "awaited\n"


def test_one_of_several_entrypoints_is_named(openmodal: CommandLine) -> None:
    text = MAIN.format(parameters="", body="print('one')") + MAIN.format(parameters="", body="print('two')").replace(
        "main", "two"
    )
    program = openmodal.program(text)
    assert openmodal("--local", "run", f"{program}::two") == "two\n"
    assert "several entrypoints: main, two" in openmodal.error("--local", "run", program)


def test_parameters_are_options_of_their_types(openmodal: CommandLine) -> None:
    program = openmodal.program(TYPES)
    assert openmodal("--local", "run", program, "--count", "3") == (
        "(3, (), 0.5, False, 'fast', 'red', None, ['none'], '', 1, 'x')\n"
    )
    given = "--count 3 --ratio 2 --verbose --mode 3 --color blue --maybe 4 --tag a --tag b --path /a/b --deep-level 2 --plain y p q"
    assert openmodal("--local", "run", program, *given.split()) == (
        "(3, ('p', 'q'), 2.0, True, 3, 'blue', 4, ['a', 'b'], 'b', 2, 'y')\n"
    )


def test_the_programs_help_shows_its_options(openmodal: CommandLine) -> None:
    shown = openmodal("--local", "run", openmodal.program(TYPES), "--help")
    for text in ("Do something.", "--count INTEGER", "[red|blue]", "how deep", "[default: 0.5]"):
        assert text in shown


def test_modules_beside_the_file_can_be_imported(openmodal: CommandLine) -> None:
    (openmodal.folder / "beside.py").write_text("value = 42\n", encoding="utf-8")
    program = openmodal.program("import beside\n" + MAIN.format(parameters="", body="print(beside.value)"))
    assert openmodal("--local", "run", program) == "42\n"


def test_a_file_without_entrypoint_that_does_something_is_run_as_a_script(openmodal: CommandLine) -> None:
    program = openmodal.program("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n    sys.exit(3)\n")
    assert openmodal("--local", "run", program, "a", "--b", code=3) == "['a', '--b']\n"


def test_the_program_sees_the_engine_that_was_chosen(openmodal: CommandLine) -> None:
    program = openmodal.program(
        "import os\n" + MAIN.format(parameters="", body="print(os.environ['OPENMODAL_ENGINE'])")
    )
    assert openmodal("--engine", "embedded", "run", program) == "embedded\n"
    assert openmodal("run", program, env={"OPENMODAL_ENGINE": "local"}) == "local\n"


# ----------------------------------------------------------------------------- errors in a sentence


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run", "p.py"], 1, "no engine is chosen: say `openmodal --local run"),
        (["--local", "run", "missing.py"], 1, "cannot be read: no such file"),
        (["--local", "run", "."], 1, "is a directory"),
        (["--local", "run", "broken.py"], 1, "broken.py, line 2: '(' was never closed"),
        (["--local", "run", "nothing.py"], 1, "has no entrypoint; write @app.local_entrypoint()"),
        (["--local", "run", "p.py::other"], 1, "no entrypoint 'other'; it has main"),
        (["--local", "run", "p.py"], 2, "Missing option '--count'"),
        (["--local", "run", "p.py", "--count", "many"], 2, "'many' is no whole number"),
        (["--local", "run", "p.py", "--count", "1", "--bogus"], 2, "there is no option --bogus"),
        (["--local", "run", "odd.py"], 1, "has the type dict[str, int]"),
        (["--engine", "nope", "run", "p.py"], 2, "there is no engine 'nope'"),
        (["--engine", "no.such:Engine", "run", "p.py"], 2, "cannot be imported"),
        (["--local", "--engine", "docker", "run", "p.py"], 2, "exclude each other"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["ls"], 2, "no command 'ls', but `openmodal sandbox list`"),
        (["sandbox", "terminate", "x"], 2, "but `openmodal sandbox stop`"),
        (["sandbox", "lst"], 2, "but `openmodal sandbox list`"),
        (["image", "rm"], 2, "Missing argument 'NAME'"),
        (["pool", "rm"], 2, "but `openmodal pool delete`"),
        (["sandbox", "frobnicate"], 2, "No such command 'frobnicate'"),
        (["--local", "sandbox", "exec", "no-such-1", "ls"], 1, "no sandbox 'no-such-1'"),
        (["--local", "sandbox", "exec", "../../etc", "ls"], 1, "an id looks like"),
        (["--local", "sandbox", "stop"], 2, "say which"),
        (["--local", "sandbox", "cp", "a", "b"], 2, "one of the two is in a sandbox"),
    ],
)
def test_error_is_one_sentence_with_the_remedy(
    openmodal: CommandLine, arguments: list[str], code: int, text: str, tmp_path: Path
) -> None:
    openmodal.program(MAIN.format(parameters="count: int", body="print(count)"), "p.py")
    openmodal.program(MAIN.format(parameters="odd: dict[str, int]", body="pass"), "odd.py")
    openmodal.program("", "nothing.py")
    (tmp_path / "broken.py").write_text("x = 1\ny = (\n", encoding="utf-8")
    nothing_configured = {"XDG_CONFIG_HOME": str(tmp_path), "OPENMODAL_HOME": str(tmp_path / "home")}
    assert text in openmodal.error(*arguments, code=code, env=nothing_configured)


def test_debug_shows_the_traceback_of_an_error(openmodal: CommandLine) -> None:
    done = openmodal.run("--debug", "--local", "run", "missing.py")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_exception_of_the_program_keeps_its_traceback_without_our_frames(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="create(env=3)"))
    done = openmodal.run("--local", "run", program)
    assert done.returncode == 1
    assert "line 8, in main" in done.stderr
    assert "InvalidError: env must be a dict" in done.stderr
    assert "openmodal/sandbox.py" not in done.stderr
    assert "openmodal/cli" not in done.stderr


def test_a_daemon_that_is_not_there_is_said_once(openmodal: CommandLine) -> None:
    openmodal.program("create()\n")
    done = openmodal.run("--engine", "docker", "run", "program.py")
    assert done.returncode == 1
    first, *_, where, _, last = [line for line in done.stderr.splitlines() if "^^" not in line]
    assert first.startswith("Traceback")
    assert '/program.py", line ' in where
    assert last.startswith("openmodal.errors.EngineError: the Docker daemon at ")


def test_sys_exit_of_the_program_is_the_exit_code(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="raise SystemExit('two of four failed')"))
    done = openmodal.run("--local", "run", program)
    assert (done.returncode, done.stderr) == (1, "two of four failed\n")


# --------------------------------------------------------------------------- no sandbox outlives it


@pytest.mark.embedded
def test_sandboxes_end_with_the_run(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="print(create().exec('echo', 'hi').stdout.read())"))
    done = openmodal.run("--local", "run", program)
    assert done.stdout == "hi\n\n"
    assert "ended 1 sandbox of this run" in done.stderr
    assert openmodal.running() == []


@pytest.mark.embedded
def test_sandboxes_end_when_the_program_fails(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="create(); 1 / 0"))
    done = openmodal.run("--local", "run", program)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert openmodal.running() == []


@pytest.mark.embedded
def test_sandboxes_of_a_script_and_of_its_child_processes_end_too(openmodal: CommandLine) -> None:
    child = "import subprocess, sys\nif sys.argv[1:] != ['child']: subprocess.run([sys.executable, __file__, 'child'], check=True)\n"
    program = openmodal.program(child + "create(); print('created', flush=True)\n")
    assert openmodal("--local", "run", program) == "created\ncreated\n"
    assert openmodal.running() == []


@pytest.mark.embedded
def test_a_sandbox_that_a_thread_creates_after_the_end_of_main_ends_too(openmodal: CommandLine) -> None:
    body = "import threading, time; threading.Thread(target=lambda: (time.sleep(0.5), create())).start()"
    openmodal("--local", "run", openmodal.program(MAIN.format(parameters="", body=body)))
    assert openmodal.running() == []


@pytest.mark.embedded
def test_detach_leaves_them(openmodal: CommandLine) -> None:
    program = openmodal.program(MAIN.format(parameters="", body="print(create().id)"))
    id = openmodal("--local", "run", "--detach", program).strip()
    assert openmodal.running() == [id]
    assert openmodal("--local", "sandbox", "stop", id) == f"{id}\n"


@pytest.mark.embedded
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_sandboxes_at_once_also_when_threads_wait_for_them(
    openmodal: CommandLine, number: signal.Signals
) -> None:
    body = """from concurrent.futures import ThreadPoolExecutor
    def agent(n):
        sandbox = create()
        print("ready", flush=True)
        sandbox.exec("sleep", "50")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(agent, range(3)))"""
    program = openmodal.program(MAIN.format(parameters="", body=body))
    with openmodal.start("--local", "run", program) as process:
        assert process.stdout
        seen = 0
        while seen < 3 and (line := process.stdout.readline()):
            seen += line.count("ready")  # threads may share a line
        assert seen == 3
        time.sleep(0.3)  # until all three wait for their command
        os.kill(process.pid, number)
        begin = time.monotonic()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, output
    assert time.monotonic() - begin < 10
    assert "interrupted" in output
    assert openmodal.running() == []


# -------------------------------------------------------------------------------------------- speed


def test_help_and_version_are_quick_and_import_no_engine(openmodal: CommandLine) -> None:
    assert openmodal("--version").startswith("openmodal 0.")
    import sys

    program = "import sys; from openmodal.cli import main; main(['--help'])"
    command = [sys.executable, "-X", "importtime", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for heavy in ("openmodal.sandbox", "openmodal.engines", "rich.console", "httpx2", "asyncio"):
        assert f"| {heavy}\n" not in done.stderr.replace("   ", ""), heavy
    assert re.search(r"run +Run a Python file", done.stdout)
