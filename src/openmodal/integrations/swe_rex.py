"""SWE-ReX: `OpenModalDeployment(image="python:3.13")`, with no server in the sandbox.

A session is a shell that stays. docs/integrations/swe_rex.md is the user's page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from swerex import exceptions
from swerex.deployment.abstract import AbstractDeployment
from swerex.runtime import abstract
from swerex.runtime.abstract import AbstractRuntime, BashAction, BashObservation
from swerex.utils.log import get_logger

from openmodal.app import App
from openmodal.errors import ExecTimeoutError, ShellTimeoutError
from openmodal.image import Image
from openmodal.integrations import errors_as, image_from, that_ends_with_us
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox
from openmodal.shell import Shell

APP = App("swe-rex")


class OpenModalRuntime(AbstractRuntime):
    """Runs commands and sessions in a sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._sessions: dict[str, Shell] = {}

    async def is_alive(self, *, timeout: float | None = None) -> abstract.IsAliveResponse:
        status = await self.sandbox.status.aio()
        return abstract.IsAliveResponse(is_alive=not status.ended, message=status.ended.text if status.ended else "")

    async def create_session(self, request: Any) -> abstract.CreateBashSessionResponse:
        if request.session in self._sessions:
            raise exceptions.SessionExistsError(f"session {request.session} exists; close it, or take another name")
        shell = self._sessions[request.session] = await self.sandbox.shell.aio("bash")
        said = [await shell.run.aio(f"source {path}") for path in request.startup_source]
        return abstract.CreateBashSessionResponse(output="".join(result.output for result in said))

    async def run_in_session(self, action: Any) -> BashObservation:
        """Run a command in a session; one whose time is over is ended, and the session stays."""
        shell = self._session(action.session)
        if not isinstance(action, BashAction):
            await shell.interrupt.aio()
            return BashObservation(exit_code=0)
        interactive = action.is_interactive_command or action.is_interactive_quit
        if not interactive:
            await self._check_syntax(action.command)
        expect = re.compile("|".join(f"(?:{text})" for text in action.expect)) if action.expect else None
        with errors_as({ShellTimeoutError: exceptions.CommandTimeoutError}):
            result = await shell.run.aio(action.command, timeout=action.timeout, expect=expect)
        found = [text for text in action.expect if re.search(text, result.output)] if result.returncode is None else []
        code = None if action.check == "ignore" or interactive else result.returncode
        if action.check == "raise" and code:
            why = f"{action.error_msg}: " if action.error_msg else ""
            raise exceptions.NonZeroExitCodeError(
                f"{why}command {action.command!r} ended with {code}; it wrote {result.output!r}"
            )
        return BashObservation(output=result.output, exit_code=code, expect_string=found[0] if found else "")

    async def close_session(self, request: Any) -> abstract.CloseBashSessionResponse:
        await self._session(request.session).close.aio()
        del self._sessions[request.session]
        return abstract.CloseBashSessionResponse()

    async def execute(self, command: abstract.Command) -> abstract.CommandResponse:
        words = [command.command] if isinstance(command.command, str) else command.command
        argv = ("sh", "-c", " ".join(words)) if command.shell else tuple(words)
        with errors_as({ExecTimeoutError: exceptions.CommandTimeoutError}):
            process = await self.sandbox.exec.aio(
                *argv,
                timeout=command.timeout,
                env=command.env,
                workdir=command.cwd,
                stderr=StreamType.STDOUT if command.merge_output_streams else StreamType.PIPE,
            )
        stdout, stderr = await process.stdout.read.aio(), await process.stderr.read.aio()
        if command.check and process.returncode:
            why = f"{command.error_msg}: " if command.error_msg else ""
            raise exceptions.NonZeroExitCodeError(
                f"{why}command {command.command!r} ended with {process.returncode}; it wrote {stdout!r}, {stderr!r}"
            )
        return abstract.CommandResponse(stdout=stdout, stderr=stderr, exit_code=process.returncode)

    async def read_file(self, request: abstract.ReadFileRequest) -> abstract.ReadFileResponse:
        data = await self.sandbox.filesystem.read_bytes.aio(request.path)
        return abstract.ReadFileResponse(content=data.decode(request.encoding or "utf-8", request.errors or "strict"))

    async def write_file(self, request: abstract.WriteFileRequest) -> abstract.WriteFileResponse:
        await self.sandbox.filesystem.write_text.aio(request.path, request.content)
        return abstract.WriteFileResponse()

    async def upload(self, request: abstract.UploadRequest) -> abstract.UploadResponse:
        await self.sandbox.filesystem.copy_from_local.aio(request.source_path, request.target_path)
        return abstract.UploadResponse()

    async def close(self) -> abstract.CloseResponse:
        for shell in self._sessions.values():
            await shell.close.aio()
        self._sessions.clear()
        return abstract.CloseResponse()

    def _session(self, name: str) -> Shell:
        if name not in self._sessions:
            raise exceptions.SessionDoesNotExistError(f"there is no session {name!r}; create it first")
        return self._sessions[name]

    async def _check_syntax(self, command: str) -> None:
        checked = await self.sandbox.exec.aio("bash", "-n", stdin=command)
        if checked.returncode:
            said = await checked.stderr.read.aio()
            raise exceptions.BashIncorrectSyntaxError(
                f"bash does not understand {command!r}: {said}", extra_info={"bash_stdout": "", "bash_stderr": said}
            )


class OpenModalDeployment(AbstractDeployment):
    """A sandbox for a runtime; it ends with `stop`, or with this process."""

    def __init__(
        self, image: str | Image | None = None, *, logger: logging.Logger | None = None, **options: Any
    ) -> None:
        """`image`: of a registry, a Dockerfile's absolute path, or an Image; None: Debian with Python.
        `options`: further arguments of `Sandbox.create`."""
        self.logger = logger or get_logger("rex-deploy")
        self._image = image if isinstance(image, Image) else image_from(image or "")
        self._options: Mapping[str, Any] = options
        self._runtime: OpenModalRuntime | None = None

    def add_hook(self, hook: Any) -> None:
        """Nothing here calls hooks."""

    async def is_alive(self, *, timeout: float | None = None) -> abstract.IsAliveResponse:
        return await self.runtime.is_alive(timeout=timeout)

    async def start(self) -> None:
        sandbox = await Sandbox.create.aio(app=APP, image=self._image, **that_ends_with_us(self._options))
        self._runtime = OpenModalRuntime(sandbox)

    async def stop(self) -> None:
        if self._runtime:
            await self._runtime.sandbox.terminate.aio()
            self._runtime = None

    @property
    def runtime(self) -> OpenModalRuntime:
        if self._runtime is None:
            raise exceptions.DeploymentNotStartedError
        return self._runtime


__all__ = ["OpenModalDeployment", "OpenModalRuntime"]
