"""Harbor: `harbor run --env openmodal.integrations.harbor:OpenModalEnvironment`.

Each trial has a sandbox of its own; its network changes with the trial's phases.
docs/integrations/harbor.md is the user's page.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from harbor.environments import definition
from harbor.environments.base import BaseEnvironment, ExecResult, OutputCallback, OutputStream
from harbor.environments.capabilities import EnvironmentCapabilities, EnvironmentResourceCapabilities
from harbor.environments.options import EnvironmentOptions
from harbor.models.task.config import NetworkMode, NetworkPolicy
from pydantic import Field

from openmodal.app import App
from openmodal.engines import choose, lacking
from openmodal.errors import ExecTimeoutError, StdinClosedError, UnsupportedError
from openmodal.image import Image
from openmodal.integrations import LEASE, ends_with_us, errors_as, image_from, in_shell
from openmodal.process import StreamReader
from openmodal.sandbox import Sandbox

APP = App("harbor")

_LISTS = ("", "_hostnames", "_wildcard_hostnames", "_ipv4_addresses", "_ipv4_cidrs")


class Options(EnvironmentOptions):
    """What `--ek NAME=VALUE` may say."""

    engine: str | None = Field(None, description="Where sandboxes run; as configured if left out.")
    runtime: str | None = Field(None, description="What runs their processes: native or gvisor.")
    lifetime: float = Field(24 * 3600.0, description="Seconds that a sandbox lives at most.")


class OpenModalEnvironment(BaseEnvironment):
    """A sandbox of OpenModal for each trial."""

    options_model: ClassVar[type[EnvironmentOptions] | None] = Options
    options: Options
    _sandbox: Sandbox | None = None

    @staticmethod
    def type() -> str:
        return "openmodal"

    @property
    def sandbox(self) -> Sandbox:
        assert self._sandbox, "start() makes it"
        return self._sandbox

    @property
    def capabilities(self) -> EnvironmentCapabilities:
        missing = lacking(choose(self.options.engine))
        return EnvironmentCapabilities(
            disable_internet=True,
            dynamic_network_policy="network_change" not in missing,
            **{f"network_allowlist{kind}": "network_allowlists" not in missing for kind in _LISTS},
        )

    @classmethod
    def resource_capabilities(cls) -> EnvironmentResourceCapabilities:
        return EnvironmentResourceCapabilities(cpu_limit=True, memory_limit=True, fractional_cpus=True)

    def _validate_definition(self) -> None:
        folder, named = self.environment_dir, self.task_env_config.docker_image
        definition.require_agent_environment_definition(folder, docker_image=named)
        if (folder / definition.COMPOSE_FILE_NAME).exists():
            raise UnsupportedError(
                f"the task {self.environment_name} has a {definition.COMPOSE_FILE_NAME}, and a sandbox is one container; "
                "run this task with --env docker"
            )

    async def start(self, force_build: bool) -> None:
        """Start the trial's sandbox. Images are cached by their content, so nothing is forced."""
        chosen: dict[str, Any] = {"engine": self.options.engine, "runtime": self.options.runtime}
        self._sandbox = await Sandbox.create.aio(
            app=APP,
            image=self._image(force_build=force_build),
            tags={"session": self.session_id[-63:]},
            cpu=self._effective_cpus,
            memory=self._effective_memory_mb,
            workdir=self.task_env_config.workdir,
            timeout=self.options.lifetime,
            env=self._startup_env(),
            **_network(self._start_policy()),
            **chosen,
            **ends_with_us(chosen, LEASE),
        )
        if workdir := self.task_env_config.workdir:
            await self.sandbox.filesystem.as_user("root").make_directory.aio(workdir)
        await self.ensure_dirs(self._mount_targets(writable_only=True))
        await self._upload_environment_dir_after_start()
        if self._start_policy() != self._network_policy:
            await self._apply_network_policy(self._network_policy)

    async def stop(self, delete: bool) -> None:
        """End the sandbox; with `delete` False it lives on without Harbor."""
        if self._sandbox and delete:
            await self._sandbox.terminate.aio()
        elif self._sandbox and "owner" not in lacking(choose(self.options.engine)):
            await self._sandbox.set_owner.aio(None)

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        """Run a command in bash, or in sh where no bash is.

        Raises:
            RuntimeError: its time was over; the command and all that it started are dead.
        """
        who, callback = self._resolve_user(user), self._output_callback()
        process = await self.sandbox.spawn.aio(
            *in_shell(command),
            workdir=cwd or self.task_env_config.workdir,
            env=self._merge_env(env),
            timeout=timeout_sec,
            user=None if who is None else str(who),
        )
        try:
            with suppress(StdinClosedError):  # it has ended already
                await process.stdin.close.aio()
            out, err = await asyncio.gather(
                _told(process.stdout, "stdout", callback), _told(process.stderr, "stderr", callback)
            )
            with errors_as({ExecTimeoutError: RuntimeError}):  # a TimeoutError would be the phase's
                return ExecResult(stdout=out, stderr=err, return_code=await process.wait.aio())
        except asyncio.CancelledError:
            await process.kill.aio()
            raise

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        await self.sandbox.filesystem.as_user("root").copy_from_local.aio(source_path, target_path)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        await self.upload_file(source_dir, target_dir)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        Path(target_path).parent.mkdir(parents=True, exist_ok=True)
        await self.sandbox.filesystem.as_user("root").copy_to_local.aio(source_path, target_path)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        await self.download_file(source_dir, target_dir)

    async def attach(self) -> None:
        status = await self.sandbox.status.aio()
        os.execvp("openmodal", ["openmodal", "--engine", status.engine, "sandbox", "shell", status.id])

    async def _apply_network_policy(self, network_policy: NetworkPolicy) -> None:
        await self.sandbox.set_network.aio(**_network(network_policy))

    def _image(self, *, force_build: bool) -> Image:
        folder, named = self.environment_dir.resolve(), self.task_env_config.docker_image
        if named and definition.should_use_prebuilt_docker_image(folder, docker_image=named, force_build=force_build):
            return image_from(named)
        return image_from(str(folder / definition.DOCKERFILE_NAME), context_dir=str(folder))

    def _start_policy(self) -> NetworkPolicy:
        """What the sandbox is created with: an allow list if there ever is one, else the most."""
        policies = [self._network_policy, *self._phase_network_policies]
        by_mode = {policy.network_mode: policy for policy in reversed(policies)}
        if {NetworkMode.PUBLIC, NetworkMode.ALLOWLIST} <= set(by_mode):
            raise UnsupportedError(
                f"the task {self.environment_name} has the whole network in one phase and an allow list in another, "
                "and a sandbox cannot change between them; give all phases a list, or no-network"
            )
        return by_mode.get(NetworkMode.ALLOWLIST) or by_mode.get(NetworkMode.PUBLIC) or policies[0]


def _network(policy: NetworkPolicy) -> dict[str, Any]:
    """A policy as keywords of `Sandbox.create` and `set_network`."""
    if policy.network_mode != NetworkMode.ALLOWLIST:
        return {"block_network": policy.network_mode == NetworkMode.NO_NETWORK}
    networks = [host for host in policy.allowed_hosts if set(host) <= set("0123456789./")]
    names = [host for host in policy.allowed_hosts if host not in networks]
    return {"outbound_domain_allowlist": names, "outbound_cidr_allowlist": networks}


async def _told(stream: StreamReader[str], name: OutputStream, callback: OutputCallback | None) -> str:
    """All of a stream; the callback hears each piece as it comes."""
    pieces: list[str] = []
    while piece := await stream.read_some.aio():
        pieces.append(piece)
        if callback:
            await callback(piece, name)
    return "".join(pieces)
