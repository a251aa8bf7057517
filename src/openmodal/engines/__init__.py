"""Where boxes run: the promises that every engine keeps, and how one is found by name.

An engine starts a box with an agent in it and hands out byte streams to that agent; everything else (commands, files, output) is the
agent's, the same for all. `openmodal.testing` holds any engine to these promises.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from openmodal import _config
from openmodal._link import Stream
from openmodal._spec import (
    Egress,
    EndRecord,
    Info,
    Network,
    PoolStatus,
    Recipe,
    Report,
    Resources,
    Root,
    SandboxSpec,
    Status,
)
from openmodal.errors import InvalidError, UnsupportedError


class Created(NamedTuple):
    """A sandbox that was created with a stream to its agent still open: its first one, for whoever has the sandbox."""

    id: str
    first: Stream


class Engine(Protocol):
    """The verbs. All are coroutines over the effects of `_dual`, safe from many threads and processes at once."""

    @property
    def name(self) -> str:
        """The name in `engine=`, `Status.engine` and error texts."""
        ...

    @property
    def lacks(self) -> frozenset[str]:
        """The promises that this engine does not keep, by name; the contract suite reports them as skipped."""
        ...

    async def prepare(self, image: Recipe, report: Report) -> Root:
        """Make the image ready to run and return it. A hit costs about one stat. Idempotent, one build for many processes.

        Raises:
            ImageBuildError, RegistryError, DiskFullError: nothing half-made stays.
        """
        ...

    async def create(self, spec: SandboxSpec, root: Root) -> str | Created:
        """Start a sandbox and return its id, once its agent answers. On any error nothing is left behind.

        An engine object keeps nothing of one sandbox: `choose` makes a new one for each call.

        Raises:
            AlreadyExistsError: a running sandbox of the app has the name.
            EngineError: a control cannot be applied here; the text names it and the remedy.
        """
        ...

    async def connect(self, id: str) -> Stream:
        """Open a byte stream to the sandbox's agent; any number at once.

        Raises:
            ConnectionError: nothing listens (any more); `inspect` tells why.
        """
        ...

    async def inspect(self, id: str) -> Status:
        """Tell how the sandbox is, also for a while after its end.

        Raises:
            NotFoundError: there is none, or it ended long ago.
        """
        ...

    async def info(self, id: str) -> Info:
        """Tell what holds a running sandbox, read from the kernel (or whoever enforces it), not from what was asked for.

        Raises:
            ConnectionError: it has ended, or is just ending.
            NotFoundError: as `inspect`.
        """
        ...

    async def list(self) -> list[Status]:
        """Tell of every running sandbox of this user, oldest first."""
        ...

    async def stop(self, id: str) -> None:
        """End the sandbox and return when nothing of it is left. Idempotent, also for one that ended or never was."""
        ...

    async def wait(self, id: str, timeout: float | None = None) -> EndRecord:
        """Wait until the sandbox has ended and nothing of it is left.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
            NotFoundError: as `inspect`.
        """
        ...

    async def tag(self, id: str, tags: tuple[tuple[str, str], ...]) -> None:
        """Replace the tags of a running sandbox."""
        ...

    async def main_output(self, id: str, stream: int) -> bytes:
        """What is kept of a finished main command's stdout (1) or stderr (2), after its sandbox's end."""
        ...

    async def snapshot(self, id: str) -> Root:
        """Keep the sandbox's files as an image; the box keeps running."""
        ...


@runtime_checkable
class Listing(Protocol):
    """An engine that keeps the promise "network_allowlists" has this, too."""

    async def egress(self, id: str) -> list[Egress]:
        """What a sandbox with an allow list wanted to reach, oldest first, also for a while after its end.

        Raises:
            NotFoundError: as `inspect`.
            InvalidError: it has no allow list.
        """
        ...


@runtime_checkable
class Checking(Protocol):
    """An engine that knows before an image is built that it cannot do here what is asked for."""

    def check(self, spec: SandboxSpec) -> None:
        """Refuse such a sandbox. It costs a look or two, and what it lets pass may still fail.

        Raises:
            EngineError: a control cannot be applied here; the text names it and the remedy.
        """
        ...


@runtime_checkable
class Pooling(Engine, Protocol):
    """An engine that keeps sandboxes ready. Its `create` takes one where image and resources are the same."""

    async def create_pool(self, name: str, root: Root, resources: Resources, size: int) -> None:
        """Keep so many sandboxes ready.

        Raises:
            AlreadyExistsError: there is a pool of that name.
        """
        ...

    async def pools(self) -> Sequence[PoolStatus]:
        """Tell of every pool of this user."""
        ...

    async def delete_pool(self, name: str) -> None:
        """Delete a pool; sandboxes that came from it run on.

        Raises:
            NotFoundError: there is none of that name.
        """
        ...


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
        UnsupportedError: it is not part of this version.
    """
    path = _ENGINES.get(_local() if name == "local" else name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        known = ", ".join(("local", *_ENGINES))
        raise InvalidError(f"there is no engine {name!r}; use one of {known}, or package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if name in _ENGINES:
            raise UnsupportedError(
                f"the {name} engine is not part of this version yet; use engine='embedded'"
            ) from error
        raise InvalidError(f"engine {name!r} cannot be imported ({error}); install its package") from error
    engine: Engine = getattr(module, class_name)()
    return engine


def require_runtime(engine: Engine, runtime: str) -> None:
    """Refuse a runtime that an engine does not name in its `runtimes`; one that names none has its own, "native".

    Raises:
        UnsupportedError: the engine has no such runtime.
    """
    known: Sequence[str] = getattr(engine, "runtimes", ("native",))
    if runtime not in known:
        raise UnsupportedError(
            f"the {engine.name} engine has no runtime {runtime!r} in this version; use {' or '.join(map(repr, known))}"
        )


def require_gpus(engine: Engine, resources: Resources) -> None:
    """Refuse GPUs where an engine does not say `gives_gpus`.

    Raises:
        UnsupportedError: it gives none.
    """
    if resources.gpus and not getattr(engine, "gives_gpus", False):
        raise UnsupportedError(f"the {engine.name} engine has no gpu= in this version; use engine='kubernetes'")


def require_lists(engine: Engine, network: Network) -> None:
    """Refuse an allow list that an engine does not keep: `Listing` keeps both kinds, who says `lists_networks` that of networks.

    Raises:
        UnsupportedError: it does not.
    """
    networks_only = bool(getattr(engine, "lists_networks", False))
    if not network.listed or isinstance(engine, Listing) or (networks_only and network.domains is None):
        return
    kind = "allow lists of domains, whose addresses nobody knows beforehand" if networks_only else "allow lists yet"
    raise UnsupportedError(
        f"the {engine.name} engine has no {kind}; use engine='embedded', or block_network=True for no network at all"
    )


def listing(engine: Engine) -> Listing:
    """The engine, as one that notes what sandboxes with an allow list want to reach.

    Raises:
        UnsupportedError: it does not.
    """
    if isinstance(engine, Listing):
        return engine
    raise UnsupportedError(f"the {engine.name} engine keeps no log of allow lists; use engine='embedded', which does")


def _local() -> str:
    """This machine's engine: Docker where a daemon answers, else the embedded one, whose users pay one look at a socket for that."""
    from openmodal.engines.docker import daemon

    return "docker" if daemon.is_here() else "embedded"


def choose(engine: str | Engine | None) -> Engine:
    """The engine of an argument, else the configured one, else this machine's."""
    if engine is not None and not isinstance(engine, str):
        return engine
    return load(engine or _config.engine() or "local")
