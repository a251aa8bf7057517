"""NeMo Gym: the sandbox provider `openmodal`, which it finds by an entry point.

docs/integrations/nemo_gym.md is the user's page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_gym.sandbox.providers.base import (
    SandboxCreateError,
    SandboxExecResult,
    SandboxHandle,
    SandboxSpec,
    SandboxStatus,
)

from openmodal.app import App
from openmodal.errors import Error, ExecTimeoutError, NotFoundError
from openmodal.integrations import LIFETIME, errors_as, image_from, in_shell, that_ends_with_us
from openmodal.process import Process
from openmodal.sandbox import Sandbox

APP = App("nemo-gym")


class OpenModalProvider:
    """Makes the sandboxes that NeMo Gym asks for."""

    name = "openmodal"

    def __init__(self, **options: Any) -> None:
        """`options`: further arguments of `Sandbox.create`, for all sandboxes."""
        self._options = options

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        """Create a sandbox; `files` are in it when this returns."""
        resources = spec.resources
        given: dict[str, Any] = {
            "cpu": getattr(resources, "cpu", None),
            "memory": getattr(resources, "memory_mib", None),
            "gpu": getattr(resources, "gpu", None) or None,
            "workdir": spec.workdir,
            "env": spec.env,
            "timeout": spec.ttl_s or LIFETIME,
            **self._options,
            **spec.provider_options,
        }
        image = image_from(spec.image or "")
        with errors_as({Error: SandboxCreateError}):
            sandbox = await Sandbox.create.aio(
                *(spec.entrypoint or ()), app=APP, image=image, **that_ends_with_us(given)
            )
        handle = SandboxHandle(sandbox.id, self.name, sandbox)
        try:
            for path, text in spec.files.items():
                await sandbox.filesystem.write_text.aio(path, text)
        except BaseException:
            await self.close(handle)
            raise
        return handle

    async def exec(
        self,
        handle: SandboxHandle,
        command: str,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_s: int | float | None = None,
        user: str | int | None = None,
    ) -> SandboxExecResult:
        """Run a command; one whose time is over has the exit code 124 and the error type "timeout"."""
        process: Process[str]
        late = None
        try:
            process = await handle.raw.exec.aio(
                *in_shell(command),
                workdir=cwd,
                env=env,
                timeout=timeout_s,
                user=None if user is None else str(user),
            )
        except ExecTimeoutError as error:
            process, late = error.process, "timeout"
        code = 124 if late else process.returncode or 0
        return SandboxExecResult(await process.stdout.read.aio(), await process.stderr.read.aio(), code, late)

    async def upload_file(self, handle: SandboxHandle, source_path: Path, target_path: str) -> None:
        await handle.raw.filesystem.copy_from_local.aio(source_path, target_path)

    async def download_file(self, handle: SandboxHandle, source_path: str, target_path: Path) -> None:
        await handle.raw.filesystem.copy_to_local.aio(source_path, target_path)

    async def status(self, handle: SandboxHandle) -> SandboxStatus:
        try:
            status = await handle.raw.status.aio()
        except NotFoundError:
            return SandboxStatus.STOPPED
        return SandboxStatus.STOPPED if status.ended else SandboxStatus.RUNNING

    async def close(self, handle: SandboxHandle) -> None:
        await handle.raw.terminate.aio()

    async def aclose(self) -> None:
        """Nothing is kept beside the sandboxes."""


__all__ = ["OpenModalProvider"]
