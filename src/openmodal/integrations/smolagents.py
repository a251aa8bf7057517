"""smolagents: `CodeAgent(…, executor=OpenModalExecutor())`.

An agent's code runs in a Python that stays, in a sandbox of its own.
docs/integrations/smolagents.md is the user's page.
"""

from __future__ import annotations

from typing import Any

from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.utils import AgentError

from openmodal.app import App
from openmodal.errors import Error
from openmodal.image import Image
from openmodal.integrations import that_ends_with_us
from openmodal.interpreter import Execution
from openmodal.sandbox import Sandbox

APP = App("smolagents")


class OpenModalExecutor(RemotePythonExecutor):
    """A Python in a sandbox, which ends with `cleanup`, or with this process."""

    def __init__(
        self,
        additional_imports: list[str] | None = None,
        logger: AgentLogger | None = None,
        *,
        image: Image | None = None,
        timeout: float | None = None,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        """Create the sandbox.

        Args:
            additional_imports: packages that are installed in its image.
            logger: what tells the user.
            image: what it is made of; None: Debian with Python.
            timeout: seconds for one piece of code, which is interrupted then; None: any time.
            allow_pickle: as in smolagents: trust what comes out of the sandbox.
            options: further arguments of `Sandbox.create`.
        """
        super().__init__(additional_imports or [], logger or AgentLogger(level=LogLevel.ERROR), allow_pickle)
        # Its own tool for the final answer asks for these two.
        packages = ["numpy", "pillow", *self.additional_imports] if image is None else self.additional_imports
        made_of = (image or Image.debian_slim()).pip_install(*packages)
        self.installed_packages = [*packages]
        self._timeout = timeout
        self.sandbox = Sandbox.create(app=APP, image=made_of, **that_ends_with_us(options))
        try:
            self.interpreter = self.sandbox.interpreter()
        except BaseException:
            self.sandbox.terminate()
            raise

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        """Run code, and return what came of it.

        Raises:
            AgentError: the code raised, or its time was over.
        """
        try:
            ran = self.interpreter.run(code, timeout=self._timeout)
        except Error as error:
            if not isinstance(execution := getattr(error, "execution", None), Execution):
                raise AgentError(str(error), self.logger) from error
            raise AgentError(f"{execution.text}\n{error}", self.logger) from error
        if ran.error and ran.error.name == self.FINAL_ANSWER_EXCEPTION:
            answer = self._deserialize_final_answer(ran.error.value, self.allow_pickle)
            return CodeOutput(output=answer, logs=ran.text, is_final_answer=True)
        if ran.error:
            raise AgentError(f"{ran.text}\nExecuting code yielded an error:\n{ran.error.traceback}", self.logger)
        return CodeOutput(output=ran.result, logs=ran.text, is_final_answer=False)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """Install what a tool needs, into the running sandbox.

        Raises:
            AgentError: that failed, for example because the sandbox has no network.
        """
        if additional_imports:
            pip = ("python3", "-m", "pip", "install", "--quiet", "--break-system-packages", *additional_imports)
            done = self.sandbox.exec(*pip, user="root")
            if done.returncode:
                raise AgentError(f"pip could not install: {done.stderr.read()[-2000:]}", self.logger)
        return additional_imports

    def cleanup(self) -> None:
        """End the sandbox."""
        self.sandbox.terminate()


__all__ = ["OpenModalExecutor"]
