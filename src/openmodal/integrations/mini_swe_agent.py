"""mini-swe-agent: `environment_class: openmodal.integrations.mini_swe_agent.OpenModalEnvironment`.

docs/integrations/mini_swe_agent.md is the user's page.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from minisweagent.exceptions import Submitted
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel

from openmodal.app import App
from openmodal.errors import Error, ExecTimeoutError
from openmodal.integrations import ends_with_us, image_from
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox

APP = App("mini-swe-agent")

LEASE = 3600.0
"""Seconds, on engines that do not see that the agent's process was killed."""

DONE = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


class Config(BaseModel):
    """What a configuration file may say.

    Attributes:
        image: of a registry, or the absolute path of a Dockerfile.
        cwd, env, forward_env, timeout, interpreter: as for mini-swe-agent's Docker.
        lifetime: seconds that the sandbox lives at most.
        options: further arguments of `Sandbox.create`.
    """

    image: str
    cwd: str = "/"
    env: dict[str, str] = {}
    forward_env: list[str] = []
    timeout: int = 30
    interpreter: list[str] = ["bash", "-lc"]
    lifetime: float = 2 * 3600.0
    options: dict[str, Any] = {}


class OpenModalEnvironment:
    """A sandbox for an agent's commands; it ends with `cleanup`, or with this process."""

    def __init__(self, **config: Any) -> None:
        self.config = Config(**config)
        forwarded = {name: os.environ[name] for name in self.config.forward_env if name in os.environ}
        self.sandbox = Sandbox.create(
            app=APP,
            image=image_from(self.config.image),
            env={**forwarded, **self.config.env},
            timeout=self.config.lifetime,
            **ends_with_us(self.config.options, LEASE),
            **self.config.options,
        )

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        """Run the action's command.

        Raises:
            Submitted: the command says that the task is done.
        """
        try:
            process = self.sandbox.exec(
                *self.config.interpreter,
                action.get("command", ""),
                workdir=cwd or self.config.cwd,
                stderr=StreamType.STDOUT,
                timeout=timeout or self.config.timeout,
            )
        except Error as error:
            written = error.process.stdout.read() if isinstance(error, ExecTimeoutError) else ""
            return {
                "output": written,
                "returncode": -1,
                "exception_info": f"An error occurred while executing the command: {error}",
                "extra": {"exception_type": type(error).__name__, "exception": str(error)},
            }
        output = process.stdout.read()
        first, _, rest = output.lstrip().partition("\n")
        if first.strip() == DONE and process.returncode == 0:
            outcome = {"exit_status": "Submitted", "submission": rest}
            raise Submitted({"role": "exit", "content": rest, "extra": outcome})
        return {"output": output, "returncode": process.returncode, "exception_info": ""}

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        merged: dict[str, Any] = recursive_merge(self.config.model_dump(), platform.uname()._asdict(), kwargs)
        return merged

    def serialize(self) -> dict[str, Any]:
        own = type(self)
        config = self.config.model_dump(mode="json")
        return {"info": {"config": {"environment": config, "environment_type": f"{own.__module__}.{own.__name__}"}}}

    def cleanup(self) -> None:
        """End the sandbox."""
        self.sandbox.terminate()


__all__ = ["OpenModalEnvironment"]
