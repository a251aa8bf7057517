"""OpenEnv: `await EchoEnv.from_docker_image(image, provider=OpenModalProvider())`.

An environment's server runs in a sandbox, and is reached at a port of this machine.
docs/integrations/openenv.md is the user's page.
"""

from __future__ import annotations

import time
import urllib.request
from typing import Any

from openenv.core.containers.runtime import ContainerProvider

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines import choose
from openmodal.errors import Error, InvalidError, SandboxNotRunningError
from openmodal.image import Image, ready
from openmodal.integrations import errors_as, image_from, that_ends_with_us
from openmodal.probe import Probe
from openmodal.sandbox import Sandbox

APP = App("openenv")

PORT = 8000
"""Where OpenEnv's servers listen."""


class OpenModalProvider(ContainerProvider):
    """Runs one environment's server; it ends with `stop_container`, or with this process."""

    def __init__(self, *command: str, context_dir: str | None = None, **options: Any) -> None:
        """Nothing is started yet.

        Args:
            command: what starts the server; nothing: the image's own command.
            context_dir: the build context of a Dockerfile, if that is not its folder.
            options: further arguments of `Sandbox.create`.
        """
        self._command = command
        self._context_dir = context_dir
        self._options = options
        self.sandbox: Sandbox | None = None

    def start_container(
        self, image: str | Image, port: int | None = None, env_vars: dict[str, str] | None = None, **kwargs: Any
    ) -> str:
        """Start a server, and return its address here.

        Args:
            image: of a registry, the absolute path of a Dockerfile, or an Image.
            port: of this machine; None: one that is free.
            env_vars: the server's variables.
            kwargs: further arguments of `Sandbox.create`.

        Raises:
            RuntimeError: there is no such image, or it does not start.
        """
        if self.sandbox:
            raise InvalidError(f"sandbox {self.sandbox.id} of this provider runs; stop it, or make another provider")
        options = self._options | kwargs
        with errors_as({Error: RuntimeError}):
            found = image if isinstance(image, Image) else image_from(image, context_dir=self._context_dir)
            self.sandbox = Sandbox.create(
                *(self._command or _command(found, options.get("engine"))),
                app=APP,
                # The command is whole.
                image=found.entrypoint(()),
                env=env_vars,
                ports={PORT: port or 0},
                readiness_probe=Probe.with_tcp(PORT),
                **that_ends_with_us(options),
            )
        return self.sandbox.tunnels()[PORT].url

    def wait_for_ready(self, base_url: str, timeout_s: float = 300.0) -> None:
        """Return when the server says that it is healthy. One that ends is told at once, so there
        is time for one that starts slowly.

        Raises:
            RuntimeError: it has ended; the text has its last words.
            TimeoutError: it is not healthy after `timeout_s`.
        """
        assert self.sandbox, "start_container() makes it"
        until = time.monotonic() + timeout_s
        try:
            self.sandbox.wait_until_ready(timeout_s)
            while not _healthy(base_url):
                if time.monotonic() > until:
                    raise TimeoutError(f"{base_url}/health does not answer after {timeout_s:g} s")
                time.sleep(0.1)
        except SandboxNotRunningError as error:
            said = (self.sandbox.stdout.read() + self.sandbox.stderr.read())[-4000:]
            raise RuntimeError(f"the environment's server has ended: {error}; it wrote: {said}") from error

    def stop_container(self) -> None:
        """End the server; again: nothing."""
        if self.sandbox:
            self.sandbox.terminate()
            self.sandbox = None


def _command(image: Image, engine: Any) -> tuple[str, ...]:
    """What an image says that it runs."""
    root = run_sync(ready(image, choose(engine)))
    if not (argv := (*root.entrypoint, *root.cmd)):
        raise InvalidError('the image has no command; name the server: OpenModalProvider("python3", "-m", …)')
    return argv


def _healthy(base_url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{base_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


__all__ = ["OpenModalProvider"]
