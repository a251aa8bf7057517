"""Commands and streams. A command's id is the client's, and the agent keeps its output: a client
that lost its door asks another one from where it is.

The door looks at output without taking it (PEEK), and lets the agent forget what the client has
read: a connection that breaks with bytes under way loses nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from grpclib.const import Status as Code
from grpclib.exceptions import GRPCError
from modal_proto import task_command_router_pb2 as router

from openmodal import _args, _wire
from openmodal._command import Command
from openmodal._options import environment
from openmodal._spec import ExecSpec, ExitRecord, OutputGap
from openmodal._wire import Flag, Progress, State, Want
from openmodal.errors import Error, InvalidError, NotFoundError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.serve import fields, ids
from openmodal.serve.calls import Call, serves
from openmodal.serve.door import Door
from openmodal.serve.files import FORGET, HELPER, FileCall
from openmodal.serve.readers import Readers
from openmodal.serve.sandboxes import network_asked, ready_at_last

_BEHIND = 4 << 20
"""How many bytes that the client's library has read are kept for another connection: the program
may not have got them."""

_STEP = 2 << 20
"""How many bytes more are forgotten at once."""

_KEEP = 1 << 30
"""How many bytes of each stream may wait on the sandbox's disk until the client has read them."""

_LATER = 0.5
"""Seconds after the client's own end of a command's time that we end the command."""

_WAIT_MS = 30_000


@dataclass
class Pieces:
    """Output as it comes."""

    parts: list[bytes] = field(default_factory=list[bytes])
    gaps: list[OutputGap] = field(default_factory=list[OutputGap])

    def write(self, data: memoryview) -> None:
        self.parts.append(bytes(data))

    def skip(self, gap: OutputGap) -> None:
        self.gaps.append(gap)


class Router:
    """Serves the calls about the commands of one sandbox."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._files: dict[tuple[str, str], FileCall] = {}  # the one that was used last comes last
        self._readers = Readers()

    # ---------------------------------------------------------------------------------------- start

    @serves("TaskExecStart")
    async def start(self, request: Any, call: Call) -> Any:
        fields.check(request, fields.EXEC, call)
        sandbox = self._sandbox(request)
        if list(request.command_args[:1]) == [HELPER]:
            self._start_file(request, sandbox)
            return router.TaskExecStartResponse()
        for wire, exec_id in self._readers.needless():
            _ = self._door.begin(_forget(_command(self._door.sandbox(wire), exec_id)))
        await self._door.finish(_command(sandbox, request.exec_id).start(self._spec(request)))
        return router.TaskExecStartResponse()

    def _start_file(self, request: Any, sandbox: Sandbox) -> None:
        """Begin a call of the file helper, once; forget those that nobody asked about for long."""
        while self._files and (oldest := next(iter(self._files))) and self._files[oldest].rested > FORGET:
            self._files.pop(oldest).close()
        if not self._file(request):
            key = (request.task_id, request.exec_id)
            self._files[key] = FileCall(sandbox, list(request.command_args[1:]), self._door.limits.upload)

    def _file(self, request: Any) -> FileCall | None:
        """The call of the file helper that a request is about; None: it is about a command."""
        key = (request.task_id, request.exec_id)
        if found := self._files.pop(key, None):
            self._files[key] = found
            found.use()
        return found

    def _spec(self, request: Any) -> ExecSpec:
        pty = request.pty_info
        env = self._door.variables(request.secret_ids, request.secret_sources)
        if pty.enabled:
            env |= {"TERM": pty.env_term or "xterm-256color"}
        env |= dict(request.env)
        flags = Flag.STDIN | (Flag.PTY if pty.enabled else 0)
        if request.stdout_config == router.TASK_EXEC_STDOUT_CONFIG_DEVNULL:
            flags |= Flag.STDOUT_NULL
        if request.stderr_config == router.TASK_EXEC_STDERR_CONFIG_DEVNULL:
            flags |= Flag.STDERR_NULL
        if request.stderr_config == router.TASK_EXEC_STDERR_CONFIG_STDOUT:
            flags |= Flag.STDERR_TO_STDOUT
        return ExecSpec(
            argv=_args.argv("exec", tuple(request.command_args)),
            env=environment(env, ()),
            workdir=_args.path("workdir", request.workdir) if request.workdir else "",
            timeout=request.timeout_secs + _LATER if request.timeout_secs else None,
            flags=flags,
            rows=pty.winsz_rows or 24,
            columns=pty.winsz_cols or 80,
            keep=_KEEP,
        )

    # -------------------------------------------------------------------------------------- streams

    @serves("TaskExecStdioRead")
    async def read(self, request: Any, call: Call) -> AsyncIterator[Any]:
        number = 1 if request.file_descriptor == router.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT else 2
        if found := self._file(request):
            async for data in found.output(number, request.offset):
                yield router.TaskExecStdioReadResponse(data=data)
            return
        command = _command(self._sandbox(request), request.exec_id)
        async with self._readers.reading(_wire_of(request), request.exec_id, number):
            at = request.offset
            async for begins, data in output(self._door, command, number, at, call):
                if begins > at:
                    call.warn(
                        f"{begins - at} bytes of output are lost: more than 1 GiB waited unread, or the sandbox's disk "
                        "was full; have the command write to a file, and read that"
                    )
                at = begins + len(data)
                yield router.TaskExecStdioReadResponse(data=data)

    @serves("SandboxStdioReadV2")
    async def read_main(self, request: Any, call: Call) -> AsyncIterator[Any]:
        number = 1 if request.file_descriptor == router.SANDBOX_STDIO_FILE_DESCRIPTOR_STDOUT else 2
        async for begins, data in main_output(self._door, self._sandbox(request).id, number, request.offset, call):
            yield router.SandboxStdioReadV2Response(data=data, starting_offset=begins)

    @serves("TaskExecStdinWrite")
    async def write(self, request: Any, call: Call) -> Any:
        if found := self._file(request):
            found.write(request.offset, request.data, ends=request.eof)
            return router.TaskExecStdinWriteResponse()
        command = _command(self._sandbox(request), request.exec_id)
        await written(self._door, command, request.offset, request.data, ends=request.eof)
        return router.TaskExecStdinWriteResponse()

    @serves("TaskExecStdinWriteStream")
    async def write_stream(self, first: Any, call: Call) -> Any:
        request, offset = first.start, first.start.offset
        found, command = self._file(request), None
        if found is None:
            command = _command(self._sandbox(request), request.exec_id)
        ended = False
        async for message in call.stream:
            ended = message.HasField("end")
            data = b"" if ended else message.data
            if found:
                found.write(offset, data, ends=ended)
            elif command:
                await written(self._door, command, offset, data, ends=ended)
            offset += len(data)
        return router.TaskExecStdinWriteStreamResponse()

    @serves("TaskExecStdinStatus")
    async def stdin_status(self, request: Any, call: Call) -> Any:
        if found := self._file(request):
            return router.TaskExecStdinStatusResponse(num_bytes_written=found.written, closed=found.closed)
        command = _command(self._sandbox(request), request.exec_id)
        progress = await self._door.run(command.io(Want(0), [0, 0, 0], {}, wait=0))
        return router.TaskExecStdinStatusResponse(
            num_bytes_written=progress.stdin, closed=bool(progress.state & State.STDIN_CLOSED)
        )

    @serves("SandboxStdinWriteV2")
    async def write_main(self, request: Any, call: Call) -> Any:
        sandbox = self._sandbox(request)
        command = Command(sandbox._agent, _wire.MAIN)
        try:
            await written(self._door, command, request.offset, request.data, ends=request.eof)
        except SandboxNotRunningError as error:
            raise GRPCError(Code.FAILED_PRECONDITION, str(error)) from error
        return router.SandboxStdinWriteV2Response()

    @serves("SandboxWaitUntilReady")
    async def wait_until_ready(self, request: Any, call: Call) -> Any:
        try:
            ready_at = await ready_at_last(self._sandbox(request), request.timeout)
        except TimeoutError as error:
            raise GRPCError(Code.DEADLINE_EXCEEDED, str(error)) from error
        return router.SandboxWaitUntilReadyTcrResponse(ready_at=ready_at)

    @serves("TaskSetNetworkAccess")
    async def set_network(self, request: Any, call: Call) -> Any:
        blocked, cidrs, domains = network_asked(request.network_access)
        await self._sandbox(request).set_network.aio(
            block_network=blocked, outbound_cidr_allowlist=cidrs, outbound_domain_allowlist=domains
        )
        return router.TaskSetNetworkAccessResponse()

    @serves("TaskReloadVolumes")
    async def reload_volumes(self, request: Any, call: Call) -> Any:
        await self._sandbox(request).reload_volumes.aio()
        return router.TaskReloadVolumesResponse()

    # -------------------------------------------------------------------------------------- the end

    @serves("TaskExecWait")
    async def wait(self, request: Any, call: Call) -> Any:
        if found := self._file(request):
            return router.TaskExecWaitResponse(code=await found.wait())
        sandbox = self._sandbox(request)
        command = _command(sandbox, request.exec_id)
        try:
            while (progress := await self._exit(command, _WAIT_MS)).record is None:
                pass
        except SandboxNotRunningError:
            return router.TaskExecWaitResponse(signal=9)
        wrote = self._readers.begun(_wire_of(request), request.exec_id)
        # If it ended meanwhile: how the command ended is known.
        with contextlib.suppress(SandboxNotRunningError):
            wrote = wrote or not (progress.state & State.NO_OUTPUT or await self._is_silent(command))
        if wrote:
            await self._readers.printed(_wire_of(request), request.exec_id)
        self._readers.told(_wire_of(request), request.exec_id)
        return _ended(router.TaskExecWaitResponse, progress.record)

    @serves("TaskExecPoll")
    async def poll(self, request: Any, call: Call) -> Any:
        if found := self._file(request):
            return router.TaskExecPollResponse() if found.code is None else router.TaskExecPollResponse(code=found.code)
        command = _command(self._sandbox(request), request.exec_id)
        try:
            record = (await self._exit(command, 0)).record
        except SandboxNotRunningError:
            return router.TaskExecPollResponse(signal=9)
        return _ended(router.TaskExecPollResponse, record) if record else router.TaskExecPollResponse()

    async def _exit(self, command: Command, wait: int) -> Progress:
        """How a command ended, if it does within so many ms."""
        return await self._door.run(command.io(Want.EXIT, [0, 0, 0], {}, wait=wait))

    async def _is_silent(self, command: Command) -> bool:
        """Whether there is no output of a command."""
        taken = {number: Pieces() for number in (1, 2)}
        both = Want.STDOUT | Want.STDERR | Want.PEEK
        await self._door.run(command.io(both, [0, 0, 0], taken, most=1, wait=0))
        return not any(any(pieces.parts) or pieces.gaps for pieces in taken.values())

    def _sandbox(self, request: Any) -> Sandbox:
        return self._door.sandbox(_wire_of(request))


def _wire_of(request: Any) -> str:
    return ids.sandbox_of_task(request.task_id)


async def _forget(command: Command) -> None:
    """Have the agent forget a command that has ended, and its output."""
    with contextlib.suppress(Error):  # it did already, or its sandbox has ended
        await command.forget()


def _command(sandbox: Sandbox, exec_id: str) -> Command:
    if not exec_id:
        raise InvalidError("the command has no id")
    return Command(sandbox._agent, ids.command(exec_id))


async def written(door: Door, command: Command, offset: int, data: bytes, *, ends: bool) -> int:
    """Have a command accept all of it, but for what it accepted before, or until it has closed its
    stdin; how many bytes it has accepted since its start."""
    offsets = [offset, 0, 0]
    end = offset + len(data)
    while True:
        piece = data[offsets[0] - offset : offsets[0] - offset + _wire.MAX_DATA // 4]
        last = offsets[0] + len(piece) >= end
        progress = await door.run(command.io(Want.STDIN, offsets, {}, data=piece, ends=ends and last, wait=_WAIT_MS))
        if progress.state & State.STDIN_CLOSED or offsets[0] >= end:
            return offsets[0]


async def output(
    door: Door, command: Command, number: int, offset: int, call: Call
) -> AsyncIterator[tuple[int, bytes]]:
    """A stream of a command from an offset on, to its end: pieces, and where each begins.

    What the client of the call has read is forgotten.
    """
    want, end = {1: (Want.STDOUT, State.STDOUT_END), 2: (Want.STDERR, State.STDERR_END)}[number]
    # Nobody knows what a reader before this one had the agent forget.
    offsets, forgotten = [0, 0, 0], 0
    offsets[number] = offset
    while True:
        taken = Pieces()
        progress = await door.run(command.io(want | Want.PEEK, offsets, {number: taken}, wait=_WAIT_MS))
        at = offsets[number] - sum(map(len, taken.parts))
        for part in taken.parts:
            yield at, part
            at += len(part)
        read = at - call.unread
        if read - forgotten >= _BEHIND + _STEP:
            forgotten = read - _BEHIND
            received = [0, 0, 0]
            received[number] = forgotten
            await door.run(command.io(want, received, {}, most=0, wait=0))
        if progress.state & end:
            return


async def main_output(door: Door, id: str, number: int, offset: int, call: Call) -> AsyncIterator[tuple[int, bytes]]:
    """A stream of a sandbox's main command: while it runs, and what is kept of it after its end."""
    command = Command(door.sandbox(ids.sandbox_on_wire(id))._agent, _wire.MAIN)
    try:
        async for begins, data in output(door, command, number, offset, call):
            yield begins, data
            offset = begins + len(data)
        return
    except (NotFoundError, SandboxNotRunningError):
        pass
    # It has ended, or has no main command: then its streams end with it.
    end = await door.run(door.engine.wait(id))
    kept = await door.run(door.engine.main_output(id, number))
    begins = end.written[number - 1] - len(kept)
    if missing := kept[max(0, offset - begins) :]:
        yield max(offset, begins), missing


def _ended(response: Any, record: ExitRecord) -> Any:
    return response(signal=record.code) if record.signaled else response(code=record.code)


__all__ = ["Router", "main_output", "written"]
