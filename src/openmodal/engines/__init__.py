"""Where boxes run: the promises that every engine keeps (contract.py), and how an engine is found by name.

An engine starts a box with an agent in it and hands out byte streams to that agent; everything else (commands, files, output) is the
agent's, the same for all. `openmodal.testing` holds any engine to these promises.
"""

from __future__ import annotations

import importlib

from openmodal import _config
from openmodal.engines.contract import PROMISES, Created, Engine, Promise, check, lacking, require
from openmodal.errors import InvalidError

_ENGINES = {
    "embedded": "openmodal.engines.embedded:Embedded",
    "docker": "openmodal.engines.docker.engine:Docker",
    "kubernetes": "openmodal.engines.kubernetes:Kubernetes",
}


def load(name: str) -> Engine:
    """Return the engine of that name: "local", "embedded", "docker", "kubernetes", or "package.module:Class" for one of yours.

    "local" is Docker where a daemon answers on this machine's behalf, else the embedded engine.

    Raises:
        InvalidError: no such engine.
    """
    path = _ENGINES.get(_local() if name == "local" else name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        known = ", ".join(("local", *_ENGINES))
        raise InvalidError(f"there is no engine {name!r}; use one of {known}, or package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if name in _ENGINES:  # it is the engine's own import that fails
            raise
        raise InvalidError(f"engine {name!r} cannot be imported ({error}); install its package") from error
    engine: Engine = getattr(module, class_name)()
    return engine


def _local() -> str:
    """This machine's engine: Docker where a daemon answers, else the embedded one, whose users pay one look at a socket for that."""
    from openmodal.engines.docker import daemon

    return "docker" if daemon.is_here() else "embedded"


def choose(engine: str | Engine | None) -> Engine:
    """The engine of an argument, else the configured one, else this machine's."""
    if engine is not None and not isinstance(engine, str):
        return engine
    return load(engine or _config.engine() or "local")


__all__ = ["PROMISES", "Created", "Engine", "Promise", "check", "choose", "lacking", "load", "require"]
