"""Shell: a shell that stays, for commands that build on each other.

It is an interactive shell with a terminal that does not echo. A command's text reaches it as
printable ASCII in short lines, which no terminal changes. The mark that ends an answer (see
`_talk`) is printed to the terminal by its name, so no redirection moves it, and its name is printed
in two halves, so `set -x` and `set -v` do not show it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from openmodal import _args
from openmodal._command import Command
from openmodal._dual import DualContext, Sleep, dual, within
from openmodal._talk import Answer, Talk, new_name
from openmodal.errors import Error, ExecError, InvalidError, ShellTimeoutError, StdinClosedError

T = TypeVar("T")

MAX_OUTPUT = 1 << 20
"""How many bytes of a command's output `run` gives if nothing is said."""

START = """\
stty -echo -onlcr noflsh || exit
[ "$1" ] || { command -v bash >/dev/null && set -- bash || set -- sh; }
case ${1##*/} in
bash) exec "$1" --norc --noprofile --noediting -i ;;
*) exec "$1" -i ;;
esac
"""
"""What becomes the shell: argument 1, or bash where the image has it, or sh."""

VARIABLES = {"PS1": "", "PS2": "", "ENV": "", "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "MANPAGER": "cat"}
"""So that nothing asks for a key, colours its output or prints a prompt."""

# gVisor cannot open /dev/tty: there the terminal has its own name only.
#
# An interruption may hit bash after a fork, before bash waits for the child. Then bash reads on
# while the child has the terminal, and an error of that read (EIO) ends bash. So before bash reads,
# whatever has the terminal in its place is killed, and a subshell, for which bash waits, brings the
# terminal back (fields 5 and 8 of proc(5)'s stat).
_READY = """\
_om_tty=/dev/tty; (: >$_om_tty) 2>/dev/null || _om_tty=$(tty); readonly _om_tty
PS1= PS2=; unset MAILCHECK HISTFILE
_om_own() { read -r _om_stat </proc/$$/stat || return 0; set -- ${_om_stat##*)}; [ "${6:-0}" -le 1 ] || [ "$6" = "$3" ] || { kill -9 "-$6"; (:); }; }
case ${BASH_VERSION-} in ?*) set +H +o history; IGNOREEOF=100; PROMPT_COMMAND='{ _om_own; } 2>/dev/null' ;; esac
"""  # noqa: E501
_REPAIR = "stty sane -echo -onlcr noflsh <$_om_tty 2>/dev/null\n"
_LOST_LINE = "\n"  # an interruption takes the line with it that the shell reads next
_LINE = 700  # characters of a command in one line: shells and terminals take 1,024
_LONGEST_LINE = 4095  # what a terminal takes from a program's user
_INTERRUPT = b"\x03"
_DEATH_SECONDS = 0.1  # how soon a program that is interrupted has ended, as a rule
_UNSAFE = re.compile(rb"[^A-Za-z0-9 _./:=,+@^~-]")

# A shell that runs one program after another loses an interruption that reaches a program which has
# just ended: the shell starts the next one. If the foreground process group has changed since, the
# interruption is sent again. A program that takes its time to end gets it only once.
INTERRUPT_AGAIN = """\
shell=$1 round=0 before=
while [ "$round" -lt 200 ] && read -r line <"/proc/$shell/stat"; do
    set -- ${line##*)}
    [ "$6" -gt 1 ] && [ "$6" != "$before" ] || exit 0
    [ -z "$before" ] || if [ "$6" = "$3" ]; then kill -2 "$shell"; else kill -2 "-$6"; fi
    before=$6 round=$((round + 1))
    sleep 0.01
done 2>/dev/null
"""

# The foreground's process group is killed, unless that is the shell itself. A loop of the shell
# would begin the next: the shell is interrupted, and as it forgets what comes while it waits for a
# child, that is done until it has the terminal again. gVisor does not tell the foreground (0): there
# nothing is killed, and the shell is interrupted.
KILL_FOREGROUND = """\
shell=$1 round=0
while [ "$round" -lt 200 ] && read -r line <"/proc/$shell/stat"; do
    set -- ${line##*)}
    [ "$6" -gt 1 ] || { kill -2 "$shell"; exit; }
    [ "$6" != "$3" ] || exit 0
    kill -9 "-$6"
    kill -2 "$shell"
    round=$((round + 1))
done 2>/dev/null
"""

# What is typed, how many seconds the shell has to answer, and what is done if it does not.
_ENDING = (
    (_INTERRUPT, _DEATH_SECONDS, INTERRUPT_AGAIN),
    (b"", 2.0, KILL_FOREGROUND),
    *((_INTERRUPT, seconds, KILL_FOREGROUND) for seconds in (*[0.5] * 4, 4.0, 6.0, 8.0, 10.0)),
)
_ENDING_SECONDS = 10.0  # as long as that may take where somebody else interrupts


@dataclass(frozen=True, slots=True)
class ShellResult:
    """What came of a command in a shell.

    Attributes:
        output: what it wrote, stdout and stderr in the order in which they came.
        returncode: its exit code, as in `$?`; None: it goes on, for `expect` was found.
        cwd: the shell's working folder.
        omitted: how many bytes are left out in the middle of `output`.
    """

    output: str
    returncode: int | None
    cwd: str
    omitted: int = 0


class Shell(DualContext):
    """A shell in a sandbox: its folder, variables, functions and jobs stay from `run` to `run`.

    One call at a time, but for `interrupt`. A `with` block ends it, with all that it started.
    """

    def __init__(self, command: Command, pid: int, execute: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        """`execute`: runs another command in the sandbox, as the shell's user."""
        self._talk = Talk(command)
        self._pid = pid
        self._execute = execute
        self._names: list[str] = []
        self._cwd = ""
        self._busy = False
        self._reads = False  # a program in it has the terminal
        self._front = False  # and waits for what is said to it
        self._returncode: int | None = None

    @property
    def returncode(self) -> int | None:
        """How the shell itself ended; None: it was not seen to end."""
        return self._returncode

    @dual
    async def run(
        self,
        command: str,
        *,
        timeout: float | None = None,
        expect: str | re.Pattern[str] | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> ShellResult:
        """Run a command, or several, to the end, and return what came of it.

        It reads nothing, unless `expect` is given: then it has the terminal. If that text is found,
        `run` returns while the command goes on, and the next `run` is a line that is said to it.

        Args:
            command: any text that the shell takes.
            timeout: seconds until the command is interrupted (Ctrl-C) and, if that does not help,
                killed. The shell, its folder and its variables stay. None: none.
            expect: a text, or a pattern, that is waited for in the output; it is found in the
                newest 64 KiB.
            max_output: how many bytes of output are given: the first and the newest, half of each.

        Raises:
            ShellTimeoutError: the timeout was reached; `.result` has the output so far.
            ExecError: the shell has ended, or runs another command.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        text = _args.string("command", command)
        seconds = _args.optional_seconds("timeout", timeout)
        pattern = _pattern(expect)
        answer = Answer(_args.whole("max_output", max_output, 2, 1 << 30))
        async with self._one_at_a_time():
            try:
                with self._noted(text) as line:
                    result = await _limited(seconds, self._ask(text, answer, pattern))
                    line["detail"] = "" if result.returncode is None else f"exit code {result.returncode}"
                return result
            except TimeoutError as error:
                if isinstance(error, Error):  # the sandbox's own end
                    raise
                result = await self._recover(answer)
                raise ShellTimeoutError(
                    f"the command {text[:60]!r} was ended because its timeout of {seconds:g} s expired", result
                ) from None

    @dual
    async def interrupt(self) -> None:
        """Interrupt what runs in it, as Ctrl-C does; may be called while `run` waits."""
        with suppress(StdinClosedError):
            await self._talk.send(_INTERRUPT)
            if self._busy and not self._reads:
                await self._in_sandbox(INTERRUPT_AGAIN)
                await self._talk.send((_LOST_LINE + self._mark()).encode())

    @dual
    async def close(self) -> None:
        """End it with all that it started. Does nothing if it has ended."""
        await self._close()

    async def _close(self) -> None:
        await self._talk.kill()
        if self._returncode is None:
            self._returncode = 137

    async def _begin(self) -> None:
        """Wait until it takes commands."""
        answer = Answer(1000)
        self._name_next()
        with suppress(StdinClosedError):  # it ends: what it still said comes all the same
            await self._talk.send((_READY + self._mark()).encode())
        found = await self._talk.until(self._names, answer)
        if not found:
            await self._note_end()
            raise ExecError(
                f"no shell could be started: {answer.text().strip() or f'exit code {self._returncode}'}; "
                "the image needs sh and stty"
            )
        self._note(found)

    async def _ask(self, text: str, answer: Answer, pattern: re.Pattern[bytes] | None) -> ShellResult:
        if not self._front:
            self._reads = pattern is not None
        lines = _said(text) if self._front else self._script(text)
        with suppress(StdinClosedError):  # it ends: what it still said comes all the same
            await self._talk.send(lines.encode())
        found = await self._talk.until(self._names, answer, pattern)
        self._front = bool(found and found.re is pattern)
        if self._front:
            return self._result(answer, None)
        return self._result(answer, self._note(found) if found else await self._note_end())

    async def _recover(self, answer: Answer) -> ShellResult:
        """End what runs: interrupt it, then kill it; a shell that does not answer is killed."""
        for typed, seconds, script in _ENDING:
            with suppress(StdinClosedError):
                await self._talk.send(typed)
                if typed and self._reads:  # it would take the mark's line for its own before it dies
                    await Sleep(_DEATH_SECONDS)
                await self._talk.send(
                    (_LOST_LINE + (_REPAIR if script is KILL_FOREGROUND else "") + self._mark()).encode()
                )
            try:
                found = await within(seconds, self._talk.until(self._names, answer))
            except TimeoutError as error:
                if isinstance(error, Error):
                    raise
                await self._in_sandbox(script)
                continue
            self._front = self._reads = False
            return self._result(answer, self._note(found) if found else await self._note_end())
        await self._close()
        return self._result(answer, self._returncode)

    async def _in_sandbox(self, script: str) -> None:
        await self._execute("sh", "-c", script, "sh", str(self._pid))

    def _noted(self, text: str) -> AbstractContextManager[dict[str, Any]]:
        """Note a command. What is said to a program in the shell may be a password."""
        command = self._talk.command
        return command.agent.journal.call("shell", command=command.id.hex(), argv=() if self._front else (text,))

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """Refuse a second call; if the block is interrupted, end the command."""
        if self._returncode is not None:
            raise ExecError(f"this shell has ended with {self._returncode}; start another with sandbox.shell()")
        if self._busy:
            raise ExecError("this shell runs another command; wait for it, interrupt() it, or start a second shell")
        self._busy = True
        try:
            yield
        except (Error, GeneratorExit):
            raise
        except BaseException:
            with suppress(Error, OSError):
                await within(_ENDING_SECONDS, self._recover(Answer(2)))
            raise
        finally:
            self._busy = False

    def _script(self, command: str) -> str:
        """The lines that make the shell run a command and print a mark."""
        self._name_next()
        encoded = _UNSAFE.sub(lambda found: b"\\0%03o" % found.group()[0], command.encode("utf-8", "surrogateescape"))
        text = encoded.decode("ascii")
        pieces = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
        return (
            "{ _om=; } 2>/dev/null\n"
            + "".join(f"{{ _om=$_om'{piece}'; }} 2>/dev/null\n" for piece in pieces)
            # An interruption may have taken a line: what is not whole is not run.
            + f'{{ [ ${{#_om}} = {len(text)} ] && _om=$(printf %b "$_om"); }} 2>/dev/null && {{ command eval "$_om"; }}'
            + ("; " if self._reads else " </dev/null; ")
            + self._mark()
        )

    def _mark(self) -> str:
        """The line that prints the mark."""
        name = self._names[-1]
        return (
            f"{{ _om=$?; PS1= PS2=; printf '\\036%s%s:%s:%s\\036' {name[:8]} {name[8:]} "
            '"$_om" "$PWD" >"$_om_tty"; } 2>/dev/null\n'
        )

    def _name_next(self) -> None:
        """Marks that an interruption left may still come; those of long ago do not."""
        self._names = [*self._names[-8:], new_name()]

    def _note(self, mark: re.Match[bytes]) -> int:
        code, _, cwd = mark[1].partition(b":")
        self._cwd = cwd.decode("utf-8", "surrogateescape")
        return int(code)

    async def _note_end(self) -> int:
        record = await self._talk.end()
        self._returncode = record.returncode if record else 137
        return self._returncode

    def _result(self, answer: Answer, returncode: int | None) -> ShellResult:
        return ShellResult(answer.text(), returncode, self._cwd, answer.omitted)

    def __repr__(self) -> str:
        return f"<Shell of process {self._pid}{'' if self._returncode is None else ' (ended)'}>"


def _pattern(expect: object) -> re.Pattern[bytes] | None:
    if expect is None:
        return None
    if isinstance(expect, str) and expect:
        return re.compile(re.escape(expect.encode()))
    if isinstance(expect, re.Pattern) and isinstance(expect.pattern, str):
        return re.compile(expect.pattern.encode(), expect.flags & ~re.UNICODE)
    raise InvalidError(f"expect must be a text that is not empty, or a compiled pattern of str, not {expect!r}")


def _said(text: str) -> str:
    """What is said to a program: lines, as somebody types them."""
    if any(len(line.encode()) >= _LONGEST_LINE for line in text.split("\n")):
        raise InvalidError(
            f"a program in a terminal takes lines of at most {_LONGEST_LINE} bytes; write more to a file in the sandbox"
        )
    return text + "\n"


async def _limited(seconds: float | None, core: Coroutine[Any, Any, T]) -> T:
    return await (core if seconds is None else within(seconds, core))


__all__ = ["MAX_OUTPUT", "Shell", "ShellResult"]
