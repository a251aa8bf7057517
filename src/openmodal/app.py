"""App: a name that sandboxes belong to, and the functions that `openmodal run` can start."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from openmodal import _args
from openmodal._dual import Blocking, DualContext
from openmodal.engines import Engine, choose, runs
from openmodal.errors import InvalidError

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """A name that sandboxes belong to. The ids of its sandboxes begin with it.

    Attributes:
        name: the name.
        entrypoints: what `@app.local_entrypoint()` registered, by function name.
        run_id: the run under way, or "".
    """

    def __init__(self, name: str = "sandbox") -> None:
        self.name = _args.name("an app's name", name)
        self.entrypoints: dict[str, Callable[..., Any]] = {}
        self.run_id = ""

    @classmethod
    def lookup(cls, name: str, *, create_if_missing: bool = True) -> App:
        """`App(name)`, as programs for Modal write it. Apps are not registered anywhere, so
        `create_if_missing` means nothing."""
        return cls(name)

    def local_entrypoint(self, name: str | None = None) -> Callable[[F], F]:
        """Make a function startable by `openmodal run file.py`; its parameters become command line
        options.

        With several, `openmodal run file.py::name` says which.
        """
        if callable(name):
            raise InvalidError("write @app.local_entrypoint() with its parentheses")

        def register(function: F) -> F:
            self.entrypoints[name or function.__name__] = function
            return function

        return register

    def run(self, *, detach: bool = False, engine: str | Engine | None = None) -> Run:
        """A with-block at whose end every sandbox of the app that was created in it ends, unless
        `detach`. `engine`: where they are, as in `Sandbox.create`."""
        return Run(self, detach=detach, engine=engine)

    def __getstate__(self) -> dict[str, object]:
        """In another process it is a name and a run; functions belong to the started program."""
        return {**self.__dict__, "entrypoints": {}}

    def __repr__(self) -> str:
        return f"<App {self.name}>"


class Run(DualContext):
    """A run of an app; see `App.run`."""

    def __init__(self, app: App, *, detach: bool, engine: str | Engine | None) -> None:
        self.app = app
        self.id = os.urandom(8).hex()
        self._detach = detach
        self._engine = engine

    async def _open(self) -> None:
        if self.app.run_id:
            raise InvalidError(f"app {self.app.name} runs already; leave its with-block first")
        self.app.run_id = self.id

    async def _close(self) -> None:
        self.app.run_id = ""
        if self._detach:
            return
        await Blocking(runs.end, choose(self._engine), self.id)


def checked_app(app: App | None) -> App:
    """The app of a sandbox; None: one for those that say none."""
    if app is None:
        return App("sandbox")
    if not isinstance(app, App):
        raise InvalidError(f"app must be an openmodal.App, not {type(app).__name__}; write openmodal.App('my-app')")
    return app


__all__ = ["App", "Run"]
