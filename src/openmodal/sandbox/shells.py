"""What stays in a sandbox and is talked with: shells and interpreters."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openmodal import _args
from openmodal._dual import dual
from openmodal._options import exec_spec
from openmodal._wire import Flag
from openmodal.errors import ExecError
from openmodal.process import StreamType
from openmodal.sandbox.commands import Commands
from openmodal.secret import Secret

if TYPE_CHECKING:
    from openmodal.interpreter import Interpreter
    from openmodal.shell import Shell


class Shells(Commands):
    """Shells and interpreters that stay."""

    @dual
    async def shell(
        self,
        shell: str = "",
        *,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        user: str | None = None,
    ) -> Shell:
        """Start a shell that stays, and return it when it takes commands.

        Args:
            shell: its program; "" is bash where the image has it, else sh.
            workdir, env, secrets, user: as in `exec`.

        Raises:
            ExecError: the image has no such shell, or no stty.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        from openmodal.shell import START, VARIABLES, Shell

        argv = ("sh", "-c", START, "sh", _args.string("shell", shell))
        options = {
            "workdir": workdir,
            "env": {**VARIABLES, **dict(_args.variables("env", env))},
            "secrets": secrets,
            "user": user,
            "pty": True,
        }
        command = self._new_command()
        pid = await command.start(exec_spec("spawn", argv, options, Flag.STDIN))
        made = Shell(command, pid, functools.partial(self._exec_unnoted, user=user))
        try:
            await made._begin()
        except BaseException:
            await made._close()
            raise
        return made

    @dual
    async def interpreter(
        self,
        *argv: str,
        warm: Sequence[str] = (),
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        user: str | None = None,
    ) -> Interpreter:
        """Start a Python that stays, and return it when it takes code.

        Args:
            argv: its program and options; none: "python3".
            warm: modules that it imports now, so that forks of it have them.
            workdir, env, secrets, user: as in `exec`.

        Raises:
            ExecError: the image has no such program, or a module cannot be imported.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        from openmodal.interpreter import Interpreter

        program = argv or ("python3",)
        options = {
            "workdir": workdir,
            "env": env,
            "secrets": secrets,
            "user": user,
            "stderr": StreamType.STDOUT,
        }
        spec = exec_spec("spawn", (*program, "-u", "-c", _driver()), options, Flag.STDIN)
        command = self._new_command()
        await command.start(spec)
        made = Interpreter(command, program, self._new_command, functools.partial(self._exec_unnoted, user=user))
        try:
            await made._begin()
            for module in warm:
                if error := (await made._run(f"import {_args.string('warm', module)}")).error:
                    raise ExecError(f"{module!r} of warm= cannot be imported: {error.name}: {error.value}")
        except BaseException:
            await made._close()
            raise
        return made


@functools.cache
def _driver() -> str:
    return Path(__file__).with_name("driver.py").read_text("utf-8")
