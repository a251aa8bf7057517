"""OpenHands SDK: `Conversation(agent, workspace=OpenModalWorkspace(working_dir="/srv"))`.

Its commands, files and looks at git are those of a sandbox. docs/integrations/openhands.md is the
user's page.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from openhands.sdk.git.exceptions import GitCommandError
from openhands.sdk.git.models import GitChange, GitChangeStatus, GitDiff
from openhands.sdk.workspace.base import BaseWorkspace
from openhands.sdk.workspace.models import CommandResult, FileOperationResult
from pydantic import Field, PrivateAttr

from openmodal.app import App
from openmodal.errors import Error, ExecTimeoutError
from openmodal.integrations import image_from, in_shell, that_ends_with_us
from openmodal.process import Process
from openmodal.sandbox import Sandbox

APP = App("openhands")
_STATUS = {"A": GitChangeStatus.ADDED, "?": GitChangeStatus.ADDED, "D": GitChangeStatus.DELETED}


class OpenModalWorkspace(BaseWorkspace):
    """A sandbox, made at its first use; it ends with the `with` block, or with this process."""

    image: str = Field("", description="Of a registry, or a Dockerfile's absolute path; Debian with Python if empty.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of Sandbox.create.")
    _sandbox: Sandbox | None = PrivateAttr(default=None)

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox."""
        if self._sandbox is None:
            made = Sandbox.create(app=APP, image=image_from(self.image), **that_ends_with_us(self.options))
            made.filesystem.make_directory(self.working_dir)
            self._sandbox = made
        return self._sandbox

    def __exit__(self, *raised: Any) -> None:
        if self._sandbox:
            self._sandbox.terminate()

    def execute_command(self, command: str, cwd: str | Path | None = None, timeout: float = 30.0) -> CommandResult:
        """Run a command; one whose time is over has the exit code -1, as in OpenHands' own."""
        process: Process[str]
        try:
            process = self.sandbox.exec(*in_shell(command), workdir=self._path(cwd or ""), timeout=timeout)
        except ExecTimeoutError as error:
            process = error.process
        return CommandResult(
            command=command,
            exit_code=-1 if process.timed_out else process.returncode or 0,
            stdout=process.stdout.read(),
            stderr=process.stderr.read(),
            timeout_occurred=process.timed_out,
        )

    def file_upload(self, source_path: str | Path, destination_path: str | Path) -> FileOperationResult:
        target = self._path(destination_path)
        try:
            self.sandbox.filesystem.copy_from_local(source_path, target)
        except (Error, OSError) as error:
            return _failed(source_path, target, error)
        return _done(source_path, target, os.path.getsize(source_path))

    def file_download(self, source_path: str | Path, destination_path: str | Path) -> FileOperationResult:
        source = self._path(source_path)
        try:
            Path(destination_path).parent.mkdir(parents=True, exist_ok=True)
            self.sandbox.filesystem.copy_to_local(source, destination_path)
        except (Error, OSError) as error:
            return _failed(source, destination_path, error)
        return _done(source, destination_path, os.path.getsize(destination_path))

    def git_changes(self, path: str | Path) -> list[GitChange]:
        """What differs from the last commit."""
        said = self._git(path, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".")
        found = [(line[:2].strip()[0], line[3:]) for line in said.split("\0") if line]
        return [GitChange(status=_STATUS.get(code, GitChangeStatus.UPDATED), path=Path(name)) for code, name in found]

    def git_diff(self, path: str | Path) -> GitDiff:
        """A file as it is, and as it was at the last commit."""
        folder, name = os.path.split(self._path(path))
        modified = self.sandbox.filesystem.read_text(os.path.join(folder, name))
        return GitDiff(modified=modified, original=self._git(folder, "show", f"HEAD:./{name}"))

    def _git(self, folder: str | Path, *arguments: str) -> str:
        process = self.sandbox.exec("git", *arguments, workdir=self._path(folder))
        if process.returncode:
            said = process.stderr.read().strip()
            raise GitCommandError(said, ["git", *arguments], process.returncode, said)
        return process.stdout.read()

    def _path(self, path: str | Path) -> str:
        return os.path.join(self.working_dir, path)


def _done(source: str | Path, target: str | Path, size: int) -> FileOperationResult:
    return FileOperationResult(success=True, source_path=str(source), destination_path=str(target), file_size=size)


def _failed(source: str | Path, target: str | Path, error: Exception) -> FileOperationResult:
    return FileOperationResult(success=False, source_path=str(source), destination_path=str(target), error=str(error))


__all__ = ["OpenModalWorkspace"]
