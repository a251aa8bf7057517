"""The commands of a sandbox: run to their end, started, and found again by their ids."""

from __future__ import annotations

from typing import Any, cast

from openmodal import _args
from openmodal._command import Command, Spool, listed
from openmodal._dual import dual
from openmodal._journal import SILENT, Journal
from openmodal._options import ExecCall, ProcessCall, SpawnCall, exec_spec, feed, why_missing
from openmodal._sources import Kept, Live
from openmodal._spec import CommandStatus
from openmodal._wire import Flag, Want
from openmodal.errors import NotFoundError
from openmodal.process import Process, failed, timed_out
from openmodal.sandbox.handle import Handle

# Computed once: an enum's `|` takes longer than the check of a command's keywords.
_PLAIN, _FED = int(Flag.ATTACHED), int(Flag.ATTACHED | Flag.STDIN)


class Commands(Handle):
    """Running commands."""

    async def _exec(self, /, *argv: str, text: bool = True, **options: Any) -> Process[Any]:
        """Run a command to its end and return the finished process; no shell, unless you name one.

        The exit code is a value: 127 if there is no such executable, 128 + n for signal n. A
        background child that outlives the command does not delay the result.

        Args:
            argv: the program and its arguments.
            text: whether its streams give str; False: bytes.
            options: the keywords of `ExecOptions`.

        Raises:
            CommandFailedError: `check=True`, and its exit code is not 0; `.process` has its output.
            ExecTimeoutError: its timeout expired; `.process` has its output so far.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        return await self._finished(self._journal, argv, text, options)

    async def _exec_unnoted(self, /, *argv: str, **options: Any) -> Process[Any]:
        """As `exec`, for what serves a call that is noted itself, or is none of the user's."""
        return await self._finished(SILENT, argv, True, options)

    async def _finished(
        self, journal: Journal, argv: tuple[str, ...], text: bool, options: dict[str, Any]
    ) -> Process[Any]:
        source, check = feed(options.pop("stdin", None)), options.pop("check", False)
        spec = exec_spec("exec", argv, options, _FED if source else _PLAIN)
        most = sum(spec.output) if spec.output else None
        command, stdout, stderr = self._new_command(), Spool(most), Spool(most)
        with journal.call("exec", command=command.id.hex(), argv=spec.argv) as line:
            pid, record = await command.run(spec, source, {1: stdout, 2: stderr})
            line["record"] = record
        why = why_missing("exec", options)
        process: Process[Any] = Process(
            command,
            spec.argv,
            pid=pid,
            stdout=Kept(stdout, why),
            stderr=Kept(stderr, why),
            text=text,
            stdin=None,
            record=record,
        )
        if record.timed_out:
            raise timed_out(process)
        if record.returncode and check:
            raise failed(process, stderr.end() or stdout.end())
        return process

    async def _spawn(self, /, *argv: str, text: bool = True, **options: Any) -> Process[Any]:
        """Start a command and return at once, with live stdin, stdout and stderr.

        Args:
            argv: the program and its arguments; no shell, unless you name one.
            text: whether its streams give str; False: bytes.
            options: the keywords of `SpawnOptions`.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        spec = exec_spec("spawn", argv, options, Flag.STDIN)
        command = self._new_command()
        pid = await command.start(spec)
        why = why_missing("spawn", options)
        return Process(
            command,
            spec.argv,
            pid=pid,
            stdout=Live(command, 1, why),
            stderr=Live(command, 2, why),
            text=text,
            stdin=0,
        )

    async def _process(
        self,
        id: str,
        *,
        text: bool = True,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> Process[Any]:
        """Return the command of that `Process.id`; any process of yours may have spawned it.

        Output that another handle has read is gone, which `dropped` counts. Only one handle at a
        time should write to stdin.

        Args:
            id: its `Process.id`.
            text: as in `spawn`.
            stdout_offset, stderr_offset: where reading begins, in bytes from the stream's start; if
                that is gone, the read warns. None: at the first byte that is kept.

        Raises:
            NotFoundError: the sandbox has no such command.
        """
        command = Command(self._agent, _args.command_id(id))
        why = why_missing("process", {})
        stdout = Live(command, 1, why, _args.optional_count("stdout_offset", stdout_offset))
        stderr = Live(command, 2, why, _args.optional_count("stderr_offset", stderr_offset))
        try:
            found = await command.io(Want.EXIT, [0, 0, 0], {}, wait=0)
        except NotFoundError:
            raise NotFoundError(
                f"sandbox {self._id} has no command {id}; it was started in another one, or by exec(), which "
                "forgets it at its end"
            ) from None
        return Process(
            command, (), pid=0, stdout=stdout, stderr=stderr, text=text, stdin=found.stdin, record=found.record
        )

    @dual
    async def commands(self) -> list[CommandStatus]:
        """Tell of its commands, in the order of their starts: those that run, and those that ended
        and can be found by `process`.

        Its main command has the id of 32 zeros. What `exec` runs is there until it has ended.
        Asking does not count as use of the sandbox: idle time goes on.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        return await listed(self._observer)

    exec = cast("ExecCall", dual(_exec))
    spawn = cast("SpawnCall", dual(_spawn))
    process = cast("ProcessCall", dual(_process))
