"""Interpreter: a Python that stays, for code that builds on what code before it made.

Its program is `sandbox/driver.py`. A fork of it is the same program in another process, and is
talked with over a connection.
"""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from openmodal import _args
from openmodal._command import Command
from openmodal._dual import DualContext, dual, within
from openmodal._talk import Answer, Talk, new_name
from openmodal.connection import connect
from openmodal.errors import Error, ExecError, InterpreterTimeoutError, ProtocolError, StdinClosedError

MAX_OUTPUT = 1 << 20
MOST_FORKS = 256

_GRACE_SECONDS = 2.0
_CONNECT_SECONDS = 30.0
_KILL = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True, slots=True)
class CodeError:
    """The exception that code raised.

    Attributes:
        name: its class.
        value: its text.
        traceback: as Python prints it.
    """

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of code.

    Attributes:
        result: the `repr` of its last line, if that is an expression; None: it is none, or is None.
        text: what it wrote, stdout and stderr in the order in which they came.
        error: the exception that ended it.
        omitted: how many bytes are left out in the middle of `text`.
    """

    result: str | None
    text: str
    error: CodeError | None
    omitted: int = 0


class Interpreter(DualContext):
    """A Python in a sandbox: names stay from one `run` to the next.

    One call at a time. A `with` block ends it; its forks go on.
    """

    def __init__(
        self, command: Command, argv: tuple[str, ...], another: Callable[[], Command], execute: Callable[..., Any]
    ) -> None:
        """`another`: a new command of the sandbox; `execute`: runs one as the same user."""
        self._talk = Talk(command)
        self._argv = argv
        self._another = another
        self._execute = execute
        self._pid = 0
        self._busy = False
        self._ended = ""
        self._forked = False

    @property
    def pid(self) -> int:
        """Its process id in the sandbox."""
        return self._pid

    @dual
    async def run(self, code: str, *, timeout: float | None = None, max_output: int = MAX_OUTPUT) -> Execution:
        """Run code, and return what came of it. An exception of the code is a value, `error`.

        Args:
            code: lines of Python.
            timeout: seconds until it is interrupted (KeyboardInterrupt), which leaves all names,
                and, if that does not help, killed with the interpreter. None: none.
            max_output: how many bytes of output are given: the first and the newest, half of each.

        Raises:
            InterpreterTimeoutError: the timeout was reached; `.execution` has the output so far.
            ExecError: the interpreter has ended, perhaps by this code, or runs other code.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        return await self._run(code, timeout, max_output)

    async def _run(self, code: str, timeout: float | None = None, max_output: int = MAX_OUTPUT) -> Execution:
        request = {"do": "run", "code": _args.string("code", code)}
        seconds = _args.optional_seconds("timeout", timeout)
        answer = Answer(_args.whole("max_output", max_output, 2, 1 << 30))
        command = self._talk.command
        with command.agent.journal.call("python", command=command.id.hex(), argv=(request["code"],)) as line:
            said = await self._ask(request, answer, seconds)
            error = CodeError(**said["error"]) if said["error"] else None
            line["detail"] = error.name if error else ""
        execution = Execution(said["result"], answer.text(), error, answer.omitted)
        if said.get("late"):
            text = f"the code was interrupted because its timeout of {seconds:g} s expired"
            raise InterpreterTimeoutError(text, execution)
        return execution

    @dual
    async def fork(self, count: int = 1) -> list[Interpreter]:
        """Return `count` interpreters with all names of this one, each in a process of its own.

        What was loaded and made is shared until it is changed, so a fork costs milliseconds.
        Threads of the code are not in it. All are made, or none.

        Raises:
            ExecError: they could not be made.
        """
        token = secrets.token_hex(16)
        count = _args.whole("count", count, 1, MOST_FORKS)
        answer = Answer(1000)
        self._forked = True
        said = await self._ask({"do": "fork", "count": count, "token": token}, answer, None)
        made: list[Interpreter] = []
        try:
            for _ in range(count):
                made.append(await self._joined(said["port"], token))  # noqa: PERF401
        except BaseException:
            for one in made:
                with suppress(Error, OSError):
                    await one._close()
            raise
        return made

    @dual
    async def close(self) -> None:
        """End it, with the programs that its code started, unless it was forked: its forks go on.

        Does nothing if it has ended.
        """
        await self._close()

    async def _close(self) -> None:
        if not self._ended:
            await self._kill()

    async def _begin(self) -> None:
        """Wait until it takes code."""
        answer = Answer(2000)
        self._pid = (await self._ask({"do": "hello"}, answer, None))["pid"]

    async def _joined(self, port: int, token: str) -> Interpreter:
        """A fork, found at its port."""
        connection = await connect(self._another(), port, _CONNECT_SECONDS)
        made = Interpreter(connection._command, self._argv, self._another, self._execute)
        await made._talk.send(token.encode() + b"\n")
        await made._begin()
        return made

    async def _ask(self, request: dict[str, Any], answer: Answer, seconds: float | None) -> dict[str, Any]:
        """Send a request and return what is in its mark."""
        if self._ended:
            raise ExecError(f"this interpreter has ended ({self._ended}); start another with sandbox.interpreter()")
        if self._busy:
            raise ExecError("this interpreter runs other code; wait for it, or fork() it first")
        name = new_name()
        self._busy = True
        try:
            asked = self._exchange(json.dumps({**request, "mark": name}).encode() + b"\n", name, answer)
            return await (asked if seconds is None else within(seconds, asked))
        except TimeoutError as error:
            if isinstance(error, Error):  # the sandbox's own end
                raise
            return {**await self._interrupted(name, answer), "late": True}
        except (Error, GeneratorExit):
            raise
        except BaseException:
            with suppress(Error, OSError):
                await within(2 * _GRACE_SECONDS, self._interrupted(name, answer))
            raise
        finally:
            self._busy = False

    async def _exchange(self, line: bytes, name: str, answer: Answer) -> dict[str, Any]:
        with suppress(StdinClosedError):  # it has ended: what it said before comes all the same
            await self._talk.send(line)
        return await self._answered(name, answer)

    async def _answered(self, name: str, answer: Answer) -> dict[str, Any]:
        mark = await self._talk.until([name], answer)
        if mark is None:
            self._ended = "its process ended"
            raise ExecError(f"the interpreter ended; it wrote last: {answer.text()[-500:].strip()!r}")
        try:
            said: dict[str, Any] = json.loads(mark[1])
        except ValueError:
            raise ProtocolError("the interpreter's answer makes no sense; start another") from None
        return said

    async def _interrupted(self, name: str, answer: Answer) -> dict[str, Any]:
        """Interrupt the code; if it does not end, kill the interpreter."""
        await self._signal(signal.SIGINT)
        try:
            return await within(_GRACE_SECONDS, self._answered(name, answer))
        except TimeoutError as error:
            if isinstance(error, Error):
                raise
        await self._kill()
        ended = CodeError("Killed", "it ignored its interruption, so the interpreter was killed", "")
        return {"result": None, "error": {"name": ended.name, "value": ended.value, "traceback": ""}}

    async def _kill(self) -> None:
        self._ended = "killed"
        with suppress(Error):
            await self._signal(signal.SIGKILL)
        if not self._forked:  # its forks are in the tree of its command, and go on
            await self._talk.kill()

    async def _signal(self, number: int) -> None:
        if self._pid:
            await self._execute(*self._argv, "-c", _KILL, str(self._pid), str(int(number)))

    def __repr__(self) -> str:
        return f"<Interpreter of process {self._pid}{' (ended)' if self._ended else ''}>"


__all__ = ["MAX_OUTPUT", "CodeError", "Execution", "Interpreter"]
