"""Inspect AI: `sandbox="openmodal"` in a task, or `inspect eval … --sandbox openmodal`.

Inspect finds this module by the entry point `inspect_ai`. A task's image is built once, before its
first sample; each sample has a sandbox of its own. What Inspect's self checks ask for, the SDK
promises, so nothing is emulated here. docs/integrations/inspect.md is the user's page.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, overload

from inspect_ai.util import (
    ComposeConfig,
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    is_dockerfile,
    parse_compose_yaml,
    sandboxenv,
)

from openmodal import errors
from openmodal.app import App
from openmodal.image import Image
from openmodal.integrations import Errors, errors_as, image_from, that_ends_with_us
from openmodal.integrations.compose import Plan, from_compose
from openmodal.process import StreamReader
from openmodal.sandbox import Sandbox

APP = App("inspect")

_UNAVAILABLE: Errors = {errors.SandboxError: SandboxUnavailableError, errors.EngineError: SandboxUnavailableError}


@dataclass
class _Task:
    """A task that runs: the plans of its services, and its sandboxes by their ids.

    Its samples use the images that were built before the first one: a new look at the build context
    would find the logs that Inspect writes there meanwhile.
    """

    plans: dict[str, Plan]
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)


_tasks: ContextVar[dict[str, _Task]] = ContextVar("openmodal_tasks")
"""The tasks that run, by their configurations."""


@sandboxenv(name="openmodal")
class OpenModalSandboxEnvironment(SandboxEnvironment):
    """A sandbox of OpenModal, on the engine that is configured."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self.sandbox = sandbox

    @classmethod
    def config_files(cls) -> list[str]:
        return ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml", "Dockerfile"]

    @classmethod
    async def task_init(cls, task_name: str, config: SandboxEnvironmentConfigType | None) -> None:
        plans = _plans(config)
        _default(plans)  # says so now if there is none
        for plan in plans.values():
            await plan.image.build.aio(engine=plan.options.get("engine"))
        tasks, key = _tasks.get({}), _key(config)
        _tasks.set({**tasks, key: _Task(plans, tasks[key].sandboxes if key in tasks else {})})

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        task = _tasks.get({}).get(_key(config)) or _Task(_plans(config))
        tags = {"task": re.sub(r"[^A-Za-z0-9._-]", "-", task_name)[-63:]} if task_name else {}
        network = f"inspect-{uuid.uuid4().hex}"
        made: dict[str, SandboxEnvironment] = {}
        for name, plan in task.plans.items():
            options = that_ends_with_us(plan.options)
            if "network_alias" in options:
                options["network"] = network
            try:
                sandbox = await Sandbox.create.aio(*plan.argv, app=APP, image=plan.image, tags=tags, **options)
            except BaseException:
                await cls.sample_cleanup(task_name, config, made, interrupted=True)
                raise
            task.sandboxes[sandbox.id] = sandbox
            made[name] = cls(sandbox)
        first = _default(task.plans)
        return {first: made[first], **made}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: SandboxEnvironmentConfigType | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        task = _tasks.get({}).get(_key(config))
        for environment in environments.values():
            sandbox = environment.as_type(cls).sandbox
            await sandbox.terminate.aio()
            if task:
                task.sandboxes.pop(sandbox.id, None)

    @classmethod
    async def task_cleanup(cls, task_name: str, config: SandboxEnvironmentConfigType | None, cleanup: bool) -> None:
        """`cleanup` False: sandboxes stay for the user to look at, and live on without Inspect."""
        tasks = _tasks.get({})
        task = tasks.get(_key(config))
        _tasks.set({key: other for key, other in tasks.items() if key != _key(config)})
        for sandbox in task.sandboxes.values() if task and not cleanup else ():
            with suppress(errors.UnsupportedError, errors.SandboxNotRunningError):
                await sandbox.set_owner.aio(None)

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        for sandbox in [await Sandbox.from_id.aio(id)] if id else await Sandbox.list.aio(app=APP):
            await sandbox.terminate.aio()

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command. No daemon and no local process is needed for it: nothing to retry or limit."""
        most = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        try:
            with errors_as(_UNAVAILABLE):
                process = await self.sandbox.exec.aio(
                    *cmd, stdin=input, workdir=cwd, env=env, user=user, timeout=timeout, max_output=most, keep="head"
                )
        except errors.InvalidError as error:
            # The command's own fault, for the model to read: no such user or folder, too long.
            return ExecResult(False, 126, "", f"{error}\n")
        except errors.ExecTimeoutError as error:
            written = await _text(error.process.stdout) + await _text(error.process.stderr)
            error.__dict__["truncated_output"] = written  # where Inspect looks for it
            raise
        stdout, stderr = await _text(process.stdout), await _text(process.stderr)
        if process.returncode == 126 and process.pid == 0:
            raise PermissionError(errno.EACCES, stderr.strip(), cmd[0])
        return ExecResult(process.returncode == 0, process.returncode or 0, stdout, stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        data = contents.encode() if isinstance(contents, str) else contents
        with _file_errors(file):
            await self.sandbox.filesystem.write_bytes.aio(file, data)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...
    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...
    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        with _file_errors(file):
            data = await self.sandbox.filesystem.read_bytes.aio(file, limit=limit + 1)
        if len(data) > limit:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return data.decode() if text else data

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        with errors_as({errors.NotFoundError: ConnectionError}):
            status = await self.sandbox.status.aio()
        if status.ended:
            raise ConnectionError(f"sandbox {status.id} has ended")
        as_user = ["--user", user] if user else []
        command = ["openmodal", "--engine", status.engine, "sandbox", "shell", *as_user, status.id]
        return SandboxConnection(type="openmodal", command=shlex.join(command), container=status.id)

    def default_polling_interval(self) -> float:
        return 0.2


async def _text(stream: StreamReader[str]) -> str:
    """What a command wrote, if that is not too much for Inspect."""
    text = await stream.read.aio()
    if stream.dropped:
        raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, text)
    return text


def _file_errors(file: str) -> AbstractContextManager[None]:
    """Raise what Inspect shows to a model; anything else would end the sample."""

    def not_found(text: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, text, file)

    return errors_as({**_UNAVAILABLE, errors.InvalidError: not_found, NotADirectoryError: not_found})


def _key(config: SandboxEnvironmentConfigType | None) -> str:
    return config if isinstance(config, str) else config.model_dump_json() if config else ""


def _plans(config: SandboxEnvironmentConfigType | None) -> dict[str, Plan]:
    """What a configuration describes, by the names of its services; without a compose file no
    network, as with Inspect's Docker."""
    if config is None:
        return {"default": Plan(Image.debian_slim(), (), {"block_network": True})}
    if isinstance(config, str) and is_dockerfile(config):
        return {"default": Plan(image_from(config), (), {"block_network": True})}
    if isinstance(config, str):
        parsed, folder = parse_compose_yaml(config), os.path.dirname(config)
    elif isinstance(config, ComposeConfig):
        parsed, folder = config, os.getcwd()
    else:
        raise errors.InvalidError(f"a sandbox is described by a Dockerfile or a compose file, not by {config!r}")
    plans = from_compose(parsed.model_dump(by_alias=True, exclude_none=True), folder)
    return plans if len(plans) > 1 else dict(zip(["default"], plans.values(), strict=True))


def _default(plans: Mapping[str, Plan]) -> str:
    """The service that tools use if they name none."""
    chosen = [name for name, plan in plans.items() if plan.chosen or name == "default"]
    if not chosen:
        raise errors.InvalidError(
            f"none of the services {', '.join(plans)} is the default one; call one `default`, or say `x-default: true` in it"
        )
    return max(chosen, key=lambda name: plans[name].chosen)
