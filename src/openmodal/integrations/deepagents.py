"""deepagents: `create_deep_agent(backend=OpenModalBackend(sandbox))`.

The framework makes its file tools of commands and transfers; both are here.
docs/integrations/deepagents.md is the user's page.
"""

from __future__ import annotations

from deepagents.backends.protocol import (
    ExecuteResponse,
    FileDownloadResponse,
    FileOperationError,
    FileUploadResponse,
)
from deepagents.backends.sandbox import BaseSandbox

from openmodal.errors import ExecTimeoutError, InvalidError
from openmodal.integrations import in_shell
from openmodal.process import Process, StreamType
from openmodal.sandbox import Sandbox

MOST = 1 << 20
"""Bytes of a command's output that are given: its beginning and its end."""

_REASONS: dict[type[Exception], FileOperationError] = {
    FileNotFoundError: "file_not_found",
    PermissionError: "permission_denied",
    IsADirectoryError: "is_directory",
    NotADirectoryError: "invalid_path",
    InvalidError: "invalid_path",
}


class OpenModalBackend(BaseSandbox):
    """A sandbox as deepagents uses it; who made the sandbox ends it."""

    enable_capture_offload = True

    def __init__(self, sandbox: Sandbox, *, timeout: float = 30 * 60.0) -> None:
        """`timeout`: seconds that a command may take for which none are said."""
        self.sandbox = sandbox
        self._timeout = timeout

    @property
    def id(self) -> str:
        return self.sandbox.id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a command; one whose time is over has the exit code 124."""
        process: Process[str]
        try:
            process = self.sandbox.exec(
                *in_shell(command), stderr=StreamType.STDOUT, timeout=timeout or self._timeout, max_output=MOST
            )
        except ExecTimeoutError as error:
            process = error.process
        code = 124 if process.timed_out else process.returncode
        output = process.stdout.read()
        return ExecuteResponse(output, code, truncated=process.stdout.dropped > 0)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return [FileUploadResponse(path, self._upload(path, data)) for path, data in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        return [self._download(path) for path in paths]

    def _upload(self, path: str, data: bytes) -> FileOperationError | None:
        if not path.startswith("/"):
            return "invalid_path"
        try:
            self.sandbox.filesystem.write_bytes(path, data)
        except tuple(_REASONS) as error:
            return _reason(error)
        return None

    def _download(self, path: str) -> FileDownloadResponse:
        if not path.startswith("/"):
            return FileDownloadResponse(path, error="invalid_path")
        try:
            return FileDownloadResponse(path, self.sandbox.filesystem.read_bytes(path))
        except tuple(_REASONS) as error:
            return FileDownloadResponse(path, error=_reason(error))


def _reason(error: Exception) -> FileOperationError:
    return next(reason for kind, reason in _REASONS.items() if isinstance(error, kind))


__all__ = ["OpenModalBackend"]
