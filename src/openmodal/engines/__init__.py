"""Where boxes run: the promises that every engine keeps (contract.py), and how an engine is found
by name.

An engine starts a box with an agent in it and hands out byte streams to that agent; everything else
(commands, files, output) is the agent's, the same for all. `openmodal.testing` holds any engine to
these promises.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from openmodal import _config
from openmodal.engines.check import Check
from openmodal.engines.contract import PROMISES, Created, Door, Engine, Promise, lacking, require
from openmodal.errors import InvalidError

_ENGINES = {
    "embedded": "openmodal.engines.embedded:Embedded",
    "docker": "openmodal.engines.docker.engine:Docker",
    "kubernetes": "openmodal.engines.kubernetes:Kubernetes",
}


_DOCTORS = {
    "embedded": "openmodal.engines.embedded.doctor",
    "docker": "openmodal.engines.docker.doctor",
    "kubernetes": "openmodal.engines.kubernetes.admin.doctor",
}

ON_THIS_MACHINE = ("embedded", "docker")


def place(name: str) -> str:
    """Where the engine of that name is, as "package.module:Class"; nothing is imported.

    Raises:
        InvalidError: no such engine.
    """
    path = _ENGINES.get(_local() if name == "local" else name, name)
    if ":" not in path:
        known = ", ".join(("local", *_ENGINES))
        raise InvalidError(f"there is no engine {name!r}; use one of {known}, or package.module:Class")
    return path


def load(name: str) -> Engine:
    """Return the engine of that name: "local", "embedded", "docker", "kubernetes", or
    "package.module:Class" for one of yours.

    "local" is Docker where a daemon answers on this machine's behalf, else the embedded engine.

    Raises:
        InvalidError: no such engine.
    """
    module_name, _, class_name = place(name).partition(":")
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


def here() -> list[Engine]:
    """All engines of this machine; Docker only where a daemon answers."""
    return [load(name) for name in dict.fromkeys(("embedded", _local()))]


def examine(name: str, *, network: bool = False) -> Iterable[Check]:
    """What the doctor of one of our engines says; an engine of yours has none."""
    if name not in _DOCTORS:
        return ()
    found: Iterable[Check] = importlib.import_module(_DOCTORS[name]).examine(network=network)
    return found


def choose(engine: str | Engine | None) -> Engine:
    """The engine of an argument, else the configured one, else this machine's."""
    if engine is not None and not isinstance(engine, str):
        return engine
    return load(engine or _config.engine() or "local")


__all__ = [
    "ON_THIS_MACHINE",
    "PROMISES",
    "Created",
    "Door",
    "Engine",
    "Promise",
    "choose",
    "examine",
    "here",
    "lacking",
    "load",
    "place",
    "require",
]
