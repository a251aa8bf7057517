"""What a model may do with sandboxes: each method of `Tools` is a tool, its docstring what the
model reads about it.

A command's time-out is a result and no error. Output has at most 30,000 characters, its beginning
and its end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from pydantic import Field

from openmodal._journal import plain
from openmodal.errors import Error, ExecTimeoutError, InterpreterTimeoutError, InvalidError
from openmodal.integrations import in_shell
from openmodal.integrations.mcp.sandboxes import Room, Sandboxes
from openmodal.process import Process, StreamType

MOST = 30_000
"""Characters of output that one answer has."""

READ_MOST = 8 << 20
LINES_MOST = 2000
ENTRIES_MOST = 1000
COMMAND_SECONDS = 120.0
WAIT_MOST = 60.0

_MORE_SECONDS = 0.1  # what comes right behind other output belongs to it

Id = Annotated[str, Field(description="The sandbox; empty: this session's own, made at its first use.")]
Path_ = Annotated[str, Field(description="A path in the sandbox; a relative one counts from its working folder.")]
Seconds = Annotated[float, Field(gt=0, description="The command is killed after so many seconds.")]


@dataclass
class Created:
    """A new sandbox."""

    id: str


@dataclass
class Listed:
    """A sandbox that runs."""

    id: str
    image: str
    created: float
    expires: float


@dataclass
class Output:
    """What a command wrote, and how it ended: exit code 124 if its time was over; none while it
    runs on, as `process`."""

    output: str
    exit_code: int | None
    timed_out: bool = False
    truncated: bool = False
    process: str = ""


@dataclass
class Ran:
    """What code wrote, the value of its last line, and the exception that ended it."""

    output: str
    result: str | None
    error: str | None
    timed_out: bool = False
    truncated: bool = False


@dataclass
class Lines:
    """Lines of a file, each behind its number."""

    text: str
    lines: int
    truncated: bool


@dataclass
class Entry:
    """Something in a folder."""

    name: str
    kind: Literal["file", "directory", "symlink", "other"]
    size: int


@dataclass
class Entries:
    """What is in a folder."""

    entries: list[Entry]
    truncated: bool


@dataclass
class Done:
    """What was done."""

    done: str


@dataclass
class Url:
    """Where the machine of the server reaches a port."""

    url: str


class Tools:
    """The tools, for one server."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        # One copy at a time: none looks at a path while another makes links there.
        self._copying = asyncio.Lock()

    async def create_sandbox(
        self,
        image: Annotated[str, Field(description="An image of a registry, such as python:3.13; empty: the usual.")] = "",
        apt_packages: Annotated[list[str] | None, Field(description="Debian packages to install.")] = None,
        pip_packages: Annotated[list[str] | None, Field(description="Python packages to install.")] = None,
        timeout_seconds: Annotated[float | None, Field(gt=0, description="Its lifetime, within the limit.")] = None,
        network: Annotated[bool, Field(description="Whether it reaches the internet, if that is allowed.")] = True,
    ) -> Created:
        """Create another sandbox: a fresh Linux machine. It is needed for a special image or
        several machines only: a session has a sandbox of its own already."""
        room = await self._sandboxes.create(image, apt_packages or [], pip_packages or [], timeout_seconds, network)
        return Created(room.sandbox.id)

    async def list_sandboxes(self) -> list[Listed]:
        """Tell of the sandboxes that run; times are seconds of the Unix clock."""
        found = [sandbox.last_status for sandbox in await self._sandboxes.running()]
        return [Listed(each.id, each.image, each.created, each.expires) for each in found if each]

    async def terminate_sandbox(self, id: str) -> Done:
        """End a sandbox. Everything in it is lost."""
        room = await self._sandboxes.get(id, "")
        await room.sandbox.terminate.aio()
        self._sandboxes.forget(room.sandbox.id)
        return Done(f"sandbox {room.sandbox.id} has ended")

    async def exec_command(
        self,
        ctx: Context[Any, Any],
        command: Annotated[str, Field(description="Any text that bash takes, or sh where no bash is.")],
        id: Id = "",
        workdir: Annotated[str, Field(description="Where it runs; empty: the sandbox's working folder.")] = "",
        timeout_seconds: Seconds = COMMAND_SECONDS,
        background: Annotated[bool, Field(description="Return at once, while it runs on.")] = False,
    ) -> Output:
        """Run a command in a sandbox. Its output is both streams in their order. Each command has a
        shell of its own: folder and variables do not stay. Start what serves or takes long with
        background=true."""
        room = await self._room(id, ctx)
        argv, folder = in_shell(command), workdir or None
        if background:
            process = await room.sandbox.spawn.aio(*argv, stderr=StreamType.STDOUT, workdir=folder)
            return Output("", None, process=self._sandboxes.keep_process(room, process))
        ran: Process[bytes]
        try:
            ran = await room.sandbox.exec.aio(
                *argv,
                stderr=StreamType.STDOUT,
                timeout=timeout_seconds,
                max_output=MOST,
                text=False,
                workdir=folder,
            )
        except ExecTimeoutError as error:
            ran = error.process
        text = _kept(await ran.stdout.read.aio(), ran.stdout.dropped)
        code = 124 if ran.timed_out else ran.returncode
        return Output(text, code, timed_out=ran.timed_out, truncated=ran.stdout.dropped > 0)

    async def read_output(
        self,
        process: str,
        wait_seconds: Annotated[float, Field(ge=0, le=WAIT_MOST, description="To wait for output at most.")] = 1.0,
    ) -> Output:
        """Read what a command in the background wrote since the last time."""
        found = self._sandboxes.process(process)
        text = await _since(found, wait_seconds)
        code = await found.poll.aio()
        shown, left_out = _cut(text)
        return Output(shown, code, truncated=left_out, process=process)

    async def write_input(
        self,
        process: str,
        text: str,
        end: Annotated[bool, Field(description="Close its standard input afterwards.")] = False,
    ) -> Done:
        """Write to the standard input of a command in the background; end lines with a newline."""
        found = self._sandboxes.process(process)
        found.stdin.write(text)
        if end:
            found.stdin.write_eof()
        await found.stdin.drain.aio()
        return Done(f"{len(text)} characters were written")

    async def kill_process(self, process: str) -> Done:
        """Kill a command in the background, with all that it started."""
        await self._sandboxes.process(process).kill.aio()
        return Done(f"process {process} was killed")

    async def run_python(
        self,
        ctx: Context[Any, Any],
        code: str,
        id: Id = "",
        timeout_seconds: Seconds = COMMAND_SECONDS,
    ) -> Ran:
        """Run Python code in a sandbox; names stay from one call to the next. The value of the last
        line is given as `result`."""
        room = await self._room(id, ctx)
        timed_out = False
        async with room.lock:
            room.interpreter = room.interpreter or await room.sandbox.interpreter.aio()
            try:
                ran = await room.interpreter.run.aio(code, timeout=timeout_seconds, max_output=MOST)
            except InterpreterTimeoutError as error:
                if not error.execution:
                    raise
                ran, timed_out = error.execution, True
            except Error:
                room.interpreter = None  # the next call starts another
                raise
            if ran.error and ran.error.name == "Killed":
                room.interpreter = None
        text, result = _cut(ran.text), _cut(ran.result or "")
        raised = ran.error and (ran.error.traceback or f"{ran.error.name}: {ran.error.value}")
        return Ran(
            text[0],
            None if ran.result is None else result[0],
            None if raised is None else _cut(str(raised))[0],
            timed_out,
            truncated=ran.omitted > 0 or text[1] or result[1],
        )

    async def read_file(
        self,
        ctx: Context[Any, Any],
        path: Path_,
        id: Id = "",
        offset: Annotated[int, Field(ge=1, description="The first line.")] = 1,
        limit: Annotated[int, Field(ge=1, le=LINES_MOST, description="How many lines.")] = LINES_MOST,
    ) -> Lines:
        """Read lines of a text file, each behind its number."""
        room = await self._room(id, ctx)
        data = await room.sandbox.filesystem.read_bytes.aio(path, limit=READ_MOST + 1)
        lines = data[:READ_MOST].decode("utf-8", "replace").splitlines()
        shown = lines[offset - 1 : offset - 1 + limit]
        text, is_cut = _cut("\n".join(f"{number:>6}\t{line}" for number, line in enumerate(shown, offset)))
        return Lines(text, len(lines), is_cut or len(data) > READ_MOST or offset - 1 + limit < len(lines))

    async def write_file(self, ctx: Context[Any, Any], path: Path_, text: str, id: Id = "") -> Done:
        """Write a text file, in place of what is there; missing folders are made."""
        room = await self._room(id, ctx)
        await room.sandbox.filesystem.write_text.aio(path, text)
        return Done(f"{path} has {len(text)} characters")

    async def edit_file(
        self,
        ctx: Context[Any, Any],
        path: Path_,
        old: Annotated[str, Field(min_length=1, description="A text that the file has exactly once.")],
        new: Annotated[str, Field(description="What stands there instead.")],
        id: Id = "",
    ) -> Done:
        """Replace a text in a file."""
        files = (await self._room(id, ctx)).sandbox.filesystem
        data = await files.read_bytes.aio(path, limit=READ_MOST + 1)
        if len(data) > READ_MOST:
            raise InvalidError(f"{path} has more than {READ_MOST} bytes; edit it with a command")
        count = data.count(old.encode())
        if count != 1:
            raise InvalidError(
                f"the text to replace is {count} times in {path}, and must be there once; "
                + ("write more of what is around it" if count else "read the file, and copy the text exactly")
            )
        await files.write_bytes.aio(path, data.replace(old.encode(), new.encode()))
        return Done(f"{path} was changed at line {data[: data.index(old.encode())].count(10) + 1}")

    async def list_files(self, ctx: Context[Any, Any], path: Path_ = ".", id: Id = "") -> Entries:
        """List a folder."""
        found = await (await self._room(id, ctx)).sandbox.filesystem.list_files.aio(path)
        kinds: Any = [Entry(plain(each.name), each.kind, each.size) for each in found[:ENTRIES_MOST]]  # type: ignore[arg-type]
        return Entries(kinds, len(found) > ENTRIES_MOST)

    async def make_directory(self, ctx: Context[Any, Any], path: Path_, id: Id = "") -> Done:
        """Make a folder, with its parents."""
        await (await self._room(id, ctx)).sandbox.filesystem.make_directory.aio(path)
        return Done(f"{path} is there")

    async def move(self, ctx: Context[Any, Any], path: Path_, new_path: Path_, id: Id = "") -> Done:
        """Give a file or folder another path; a file of that name is replaced."""
        await (await self._room(id, ctx)).sandbox.filesystem.rename.aio(path, new_path)
        return Done(f"{path} is {new_path} now")

    async def remove(
        self,
        ctx: Context[Any, Any],
        path: Path_,
        id: Id = "",
        recursive: Annotated[bool, Field(description="Also what is in a folder.")] = False,
    ) -> Done:
        """Remove a file or folder."""
        await (await self._room(id, ctx)).sandbox.filesystem.remove.aio(path, recursive=recursive)
        return Done(f"{path} was removed")

    async def port_url(
        self,
        ctx: Context[Any, Any],
        port: Annotated[int, Field(ge=1, le=65535, description="What a program in the sandbox listens on.")],
        id: Id = "",
    ) -> Url:
        """Give the address at which the user's machine reaches a port of a sandbox."""
        room = await self._room(id, ctx)
        async with room.lock:
            if port not in room.forwards:
                room.forwards[port] = await room.sandbox.forward.aio(port)
        return Url(room.forwards[port].url)

    async def upload(
        self,
        ctx: Context[Any, Any],
        local_path: Annotated[str, Field(description="Below the folder that the operator allows.")],
        path: Path_,
        id: Id = "",
    ) -> Done:
        """Copy a file or folder of the user's machine into a sandbox."""
        room = await self._room(id, ctx)
        async with self._copying:
            await room.sandbox.filesystem.copy_from_local.aio(self._local(local_path), path)
        return Done(f"{path} is there")

    async def download(
        self,
        ctx: Context[Any, Any],
        path: Path_,
        local_path: Annotated[str, Field(description="Below the folder that the operator allows.")],
        id: Id = "",
    ) -> Done:
        """Copy a file or folder of a sandbox to the user's machine."""
        room = await self._room(id, ctx)
        async with self._copying:
            await room.sandbox.filesystem.copy_to_local.aio(path, self._local(local_path))
        return Done(f"{local_path} is there")

    async def _room(self, id: str, ctx: Context[Any, Any]) -> Room:
        return await self._sandboxes.get(id, _session(ctx))

    def _local(self, path: str) -> Path:
        """A path of this machine; links are followed first, so that none leads out."""
        root = self._sandboxes.limits.local
        assert root, "without it these are no tools"
        found = (root / path).resolve()
        if not found.is_relative_to(root.resolve()):
            raise InvalidError(f"{path} is not below {root}, the only folder that the operator allows")
        return found


def _session(ctx: Context[Any, Any]) -> str:
    """Who asks: over HTTP a client's session, where it has one."""
    headers = getattr(ctx, "headers", None) or {}
    return str(headers.get("mcp-session-id", ""))


async def _since(process: Process[str], seconds: float) -> str:
    """What a command writes within so many seconds, up to its first pause."""
    pieces: list[str] = []
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(max(seconds, _MORE_SECONDS)) as limit:
            while sum(map(len, pieces)) < MOST and (piece := await process.stdout.read_some.aio()):
                pieces.append(piece)
                limit.reschedule(loop.time() + _MORE_SECONDS)
    except TimeoutError as error:
        if isinstance(error, Error):  # the sandbox's own end
            raise
    return "".join(pieces)


def _kept(data: bytes, dropped: int) -> str:
    """Output as text, with a line where a part of it was left out."""
    if not dropped:
        return data.decode("utf-8", "replace")
    half = MOST - MOST // 2
    return _joined(data[:half].decode("utf-8", "replace"), dropped, "bytes", data[half:].decode("utf-8", "replace"))


def _cut(text: str) -> tuple[str, bool]:
    """A text, and whether its middle is left out."""
    if len(text) <= MOST:
        return text, False
    half = MOST // 2
    return _joined(text[:half], len(text) - 2 * half, "characters", text[-half:]), True


def _joined(head: str, left_out: int, what: str, tail: str) -> str:
    return f"{head}\n[... {left_out} {what} are left out here ...]\n{tail}"


__all__ = ["MOST", "Tools"]
