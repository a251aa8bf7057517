"""`openmodal run FILE`: run the user's program; when it ends, however it ends, its sandboxes end.

The run's id is in the environment, so that it covers every sandbox of the program: of any app,
thread or child process, and those created when the file is imported. Only SIGKILL leaves sandboxes,
until their own timeout.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import click

from openmodal import _config
from openmodal.cli import _ending, _parameters, _program, _traceback
from openmodal.cli._errors import say
from openmodal.cli._output import count, tell
from openmodal.cli._session import Session, build_options, engine_options, pass_session
from openmodal.engines import load, runs
from openmodal.errors import Error, InvalidError


@click.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    options_metavar="[--detach] [--quiet] [--progress HOW]",
)
@click.option("--detach", is_flag=True, help="Leave the sandboxes running until their own timeout.")
@click.argument("file", metavar="FILE[::NAME]")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@build_options
@engine_options
@pass_session
def run(session: Session, detach: bool, file: str, arguments: tuple[str, ...]) -> Callable[[], int]:
    """Run a Python file: its @app.local_entrypoint() function, whose parameters are options in
    ARGS.

    With several entrypoints, FILE::NAME says which. A file without any is run as a script, and ARGS
    are its sys.argv. The sandboxes that it creates end with the run, also on Ctrl-C and on an
    error.
    """
    engine = _chosen(session)
    path, name = _program.split(file)
    program = _program.read(path)
    watch = Run(engine, detach=detach)
    return lambda: watch.run(lambda: _execute(program, name, arguments), debug=session.debug)


def _chosen(session: Session) -> str:
    """The engine's name. A run does not guess: a program that was meant for a cluster shall not fill this machine."""
    name = session.engine_name or _config.engine()
    if not name:
        raise InvalidError(
            "no engine is chosen: say `openmodal --local run ...` to use this machine, "
            f'or configure a cluster with a line such as engine = "kubernetes" in {_config.config_file()}'
        )
    session.engine_name = name
    _ = session.engine  # fails now, not in the middle of the program
    return name


def _execute(program: _program.Program, name: str, arguments: tuple[str, ...]) -> int:
    sys.argv = [str(program.path), *arguments]
    if program.is_script and not name:
        _program.load(program, name="__main__")
        return 0
    module = _program.load(program)
    with _one_sentence():
        function = _program.entrypoint(program, module, name)
        call = _parameters.parse(function, arguments, program=f"openmodal run {program.path.name}")
    if inspect.iscoroutinefunction(function):
        asyncio.run(call())
    else:
        call()
    return 0


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """What is wrong with the command line is said without a traceback, and the function is not called."""
    try:
        yield
    except click.exceptions.Exit as done:  # --help
        raise SystemExit(done.exit_code) from None
    except click.ClickException as error:
        raise SystemExit(say(error)) from None
    except InvalidError as error:
        tell(f"Error: {error}")
        raise SystemExit(1) from None


class Run:
    """A run of the user's program: knows its sandboxes and ends them."""

    def __init__(self, engine: str, *, detach: bool) -> None:
        self._engine = engine
        self._detach = detach
        self._id = secrets.token_hex(8)
        self._signal = 0
        self._told = False
        self._died_of = ""
        self._over = threading.Event()
        self._sweeper: threading.Thread | None = None

    def run(self, program: Callable[[], int], *, debug: bool = False) -> int:
        """Call the program and return its exit code; its own exceptions pass."""
        os.environ["OPENMODAL_ENGINE"] = self._engine
        os.environ["OPENMODAL_RUN"] = self._id
        for number in (signal.SIGINT, *_ending.heeded()):
            signal.signal(number, self._on_signal)
        if not debug:
            sys.excepthook = _traceback.show
        # At exit, Python first waits for threads that still work; what they created meanwhile is
        # found here.
        atexit.register(self._last_sweep)
        try:
            return program()
        except KeyboardInterrupt:
            return 128 + (self._signal or signal.SIGINT)
        except Error as error:
            self._died_of = str(error)
            raise
        finally:
            self._end()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """End the sandboxes at once: the program may wait for commands in them, in threads that no
        exception reaches."""
        first, self._signal = not self._signal, self._signal or number
        if self._over.is_set():
            return
        if first and not self._detach:
            tell("openmodal: interrupted, ending the sandboxes of this run")
            self._sweeper = threading.Thread(target=self._sweep_until_over, daemon=True)
            self._sweeper.start()
        raise KeyboardInterrupt

    def _sweep_until_over(self) -> None:
        while not self._over.wait(0.1):
            self._sweep()

    def _end(self) -> None:
        if not self._detach:
            ended = self._sweep()
            if ended and not self._signal:
                what = count(ended, "sandbox")
                tell(f"openmodal: ended {what} of this run (--detach leaves them running)")

    def _last_sweep(self) -> None:
        self._over.set()
        if self._sweeper:
            self._sweeper.join(10)
        if not self._detach:
            self._sweep(at_once=1)

    def _sweep(self, *, at_once: int = 8) -> int:
        """End the run's sandboxes; how many. An engine that cannot be asked must not hide what the
        program itself died of."""
        try:
            return runs.end(load(self._engine), self._id, at_once=at_once)
        except Error as error:
            if not self._told and str(error) != self._died_of:  # else it never came to a sandbox, and says why
                self._told = True
                tell(f"openmodal: sandboxes of this run, if any, end at their timeout only: {error}")
            return 0
