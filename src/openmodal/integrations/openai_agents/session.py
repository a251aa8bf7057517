"""A sandbox as the OpenAI Agents SDK uses it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from agents.sandbox import errors
from agents.sandbox.session import BaseSandboxClientOptions, BaseSandboxSession, SandboxSessionState
from agents.sandbox.session.pty_types import PtyExecUpdate, clamp_pty_yield_time_ms, resolve_pty_write_yield_time_ms
from agents.sandbox.session.runtime_helpers import RESOLVE_WORKSPACE_PATH_HELPER, RuntimeHelperScript
from agents.sandbox.session.workspace_payloads import coerce_write_payload
from agents.sandbox.types import ExecResult, ExposedPortEndpoint, User
from agents.sandbox.util.tar_utils import UnsafeTarMemberError, validate_tar_bytes
from pydantic import Field

from openmodal.errors import Error, ExecTimeoutError
from openmodal.filesystem import Filesystem
from openmodal.integrations import Errors, errors_as
from openmodal.integrations.openai_agents.running import Running
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox


class OpenModalOptions(BaseSandboxClientOptions):
    """What sandboxes are made of."""

    type: Literal["openmodal"] = "openmodal"
    image: str = Field(
        default="", description="Of a registry, or a Dockerfile's absolute path; Debian with Python if empty."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of Sandbox.create.")
    exposed_ports: tuple[int, ...] = ()


class OpenModalState(SandboxSessionState):
    """What a session is resumed from."""

    type: Literal["openmodal"] = "openmodal"
    sandbox_id: str
    options: OpenModalOptions


class OpenModalSession(BaseSandboxSession):
    """A session; `sandbox` is what runs its commands and has its files."""

    def __init__(self, state: OpenModalState, sandbox: Sandbox) -> None:
        self.state: OpenModalState = state
        self.sandbox = sandbox
        self._commands = Running()

    # ------------------------------------------------------------------------------------ commands

    async def exec(
        self,
        *command: str | Path,
        timeout: float | None = None,
        shell: bool | list[str] = True,
        user: str | User | None = None,
    ) -> ExecResult:
        """Run a command; as another user without sudo."""
        argv = self._prepare_exec_command(*command, shell=shell, user=None)
        with _told(argv, timeout):
            process = await self.sandbox.exec.aio(*argv, text=False, timeout=timeout, **await self._where(user))
        out, err = await process.stdout.read.aio(), await process.stderr.read.aio()
        return ExecResult(stdout=out, stderr=err, exit_code=process.returncode or 0)

    async def _exec_internal(self, *command: str | Path, timeout: float | None = None) -> ExecResult:
        return await self.exec(*command, timeout=timeout, shell=False)

    def supports_pty(self) -> bool:
        return True

    async def pty_exec_start(
        self,
        *command: str | Path,
        timeout: float | None = None,
        shell: bool | list[str] = True,
        user: str | User | None = None,
        tty: bool = False,
        yield_time_s: float | None = None,
        max_output_tokens: int | None = None,
    ) -> PtyExecUpdate:
        """Start a command, and tell what it writes within so many seconds; it may run on."""
        argv = self._prepare_exec_command(*command, shell=shell, user=None)
        stderr = StreamType.PIPE if tty else StreamType.STDOUT
        with _told(argv, timeout):
            where = await self._where(user)
            process = await self.sandbox.spawn.aio(*argv, timeout=timeout, pty=tty, stderr=stderr, **where)
        number = await self._commands.add(process, talks=tty)
        wait = clamp_pty_yield_time_ms(int(1000 * (10 if yield_time_s is None else yield_time_s)))
        return await self._commands.update(number, wait / 1000, max_output_tokens)

    async def pty_write_stdin(
        self,
        *,
        session_id: int,
        chars: str,
        yield_time_s: float | None = None,
        max_output_tokens: int | None = None,
    ) -> PtyExecUpdate:
        """Type something to a command, and tell what it writes then."""
        await self._commands.write(session_id, chars)
        wanted = int(1000 * (0.25 if yield_time_s is None else yield_time_s))
        wait = resolve_pty_write_yield_time_ms(yield_time_ms=wanted, input_empty=not chars)
        return await self._commands.update(session_id, wait / 1000, max_output_tokens)

    async def pty_terminate_all(self) -> None:
        await self._commands.end()

    async def _where(self, user: str | User | None) -> dict[str, Any]:
        """In which folder, with which variables, and as whom a command runs."""
        manifest = self.state.manifest
        return {"workdir": manifest.root, "env": await manifest.environment.resolve(), "user": _name(user)}

    # --------------------------------------------------------------------------------------- files

    async def read(self, path: Path, *, user: str | User | None = None) -> io.IOBase:
        return io.BytesIO(await self._bytes(path, None, user))

    async def _read_bounded(self, path: Path, *, max_bytes: int) -> bytes:
        return await self._bytes(path, max_bytes, None)

    async def write(self, path: Path, data: io.IOBase, *, user: str | User | None = None) -> None:
        payload = coerce_write_payload(path=path, data=data).stream.read()
        target = await self._validate_path_access(path, for_write=True)
        with errors_as({OSError: lambda text: errors.WorkspaceArchiveWriteError(path=target, message=text)}):
            await self._files(user).write_bytes.aio(str(target), payload)

    async def persist_workspace(self) -> io.IOBase:
        """The workspace as a tar archive. The image needs tar."""
        root = self.state.manifest.root
        left_out = [f"--exclude=./{path.as_posix()}" for path in sorted(self._persist_workspace_skip_relpaths())]
        process = await self.sandbox.spawn.aio("tar", *left_out, "-C", root, "-cf", "-", ".", text=False)
        data = await process.stdout.read.aio()
        if await process.wait.aio():
            said = await process.stderr.read.aio()
            raise errors.WorkspaceArchiveReadError(path=Path(root), context={"stderr": said.decode(errors="replace")})
        return io.BytesIO(data)

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        """Unpack such an archive into the workspace."""
        root = self.state.manifest.root
        payload = coerce_write_payload(path=Path(root), data=data).stream.read()
        refused: Errors = {
            UnsafeTarMemberError: lambda text: errors.WorkspaceArchiveWriteError(path=Path(root), message=text)
        }
        with errors_as(refused):
            validate_tar_bytes(payload, allow_external_symlink_targets=False)
        process = await self.sandbox.exec.aio("tar", "-C", root, "-xf", "-", stdin=payload)
        if process.returncode:
            said = await process.stderr.read.aio()
            raise errors.WorkspaceArchiveWriteError(path=Path(root), context={"stderr": said})

    async def _bytes(self, path: Path, limit: int | None, user: str | User | None) -> bytes:
        target = await self._validate_path_access(path)
        theirs: Errors = {
            FileNotFoundError: lambda _: errors.WorkspaceReadNotFoundError(path=path),
            OSError: lambda text: errors.WorkspaceArchiveReadError(path=path, context={"reason": text}),
        }
        with errors_as(theirs):
            return await self._files(user).read_bytes.aio(str(target), limit=limit)

    def _files(self, user: str | User | None) -> Filesystem:
        files, name = self.sandbox.filesystem, _name(user)
        return files.as_user(name) if name else files

    async def _validate_path_access(self, path: Path | str, *, for_write: bool = False) -> Path:
        checked: Path = await self._validate_remote_path_access(path, for_write=for_write)
        return checked

    def _runtime_helpers(self) -> tuple[RuntimeHelperScript, ...]:
        return (RESOLVE_WORKSPACE_PATH_HELPER,)

    def _current_runtime_helper_cache_key(self) -> object:
        return self.sandbox.id

    # ----------------------------------------------------------------------------------- lifecycle

    async def running(self) -> bool:
        return not (await self.sandbox.status.aio()).ended

    async def _resolve_exposed_port(self, port: int) -> ExposedPortEndpoint:
        tunnel = (await self.sandbox.tunnels.aio())[port]
        return ExposedPortEndpoint(host=tunnel.host, port=tunnel.port)

    async def _prepare_backend_workspace(self) -> None:
        """Make the workspace's folder, which belongs to the image's user, as commands run in it."""
        root, files = self.state.manifest.root, self.sandbox.filesystem.as_user("root")
        if not await files.exists.aio(root):
            await files.make_directory.aio(root)
            who = await self.sandbox.exec.aio("id", "-u", workdir="/")
            await files.chown.aio(root, (await who.stdout.read.aio()).strip())

    async def _shutdown_backend(self) -> None:
        await self.sandbox.terminate.aio()


def _name(user: str | User | None) -> str | None:
    return user.name if isinstance(user, User) else user or None


@contextmanager
def _told(argv: list[str], timeout: float | None) -> Iterator[None]:
    """A command's errors as the SDK's."""
    theirs: Errors = {
        ExecTimeoutError: lambda _: errors.ExecTimeoutError(command=argv, timeout_s=timeout),
        Error: lambda text: errors.ExecTransportError(command=argv, message=text),
    }
    with errors_as(theirs):
        yield
