"""A trial: a sandbox on the store with nothing but the native program in it, created, asked and
ended like any other.

So what it shows is what sandboxes get. It leaves nothing: all that is written lies in one folder of
the store, which goes with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from openmodal import _binary, _config
from openmodal._agent import Agent
from openmodal._command import Command, Spool
from openmodal._spec import ExecSpec, Info, Layered, Network, Resources, SandboxSpec
from openmodal._store import Store
from openmodal._wire import Flag
from openmodal.build.layers import Layers
from openmodal.engines.embedded.engine import Embedded
from openmodal.errors import EngineError

_LAYER = "trial"
_PROGRAM = "openmodal-agent"  # all that there is in a sandbox of a trial


def full(*, network: bool = False) -> SandboxSpec:
    """A sandbox as one gets it that asks for nothing.

    `network`: it may not do without one, whatever the configuration allows.
    """
    allowed = tuple(name for name in _config.allow_degraded() if not (network and name == "network"))
    return SandboxSpec(app="trial", timeout=30.0, resources=_resources(), allow_degraded=allowed)


def bare() -> SandboxSpec:
    """One without network and limits: what no sandbox can do without."""
    degraded = ("limits", *_config.allow_degraded())
    network = Network(block=True)
    return SandboxSpec(app="trial", timeout=30.0, resources=_resources(), network=network, allow_degraded=degraded)


def _resources() -> Resources:
    # All CPUs: to choose some takes a number from a file, which would be left.
    return Resources(cpu=float(len(os.sched_getaffinity(0))))


@contextlib.contextmanager
def place(state: Path) -> Iterator[Embedded]:
    """An engine for trials, with its state in the state folder of sandboxes, or what would be that.

    Raises:
        EngineError: sandboxes would be refused there, too.
    """
    with _without_trace(state), _scratch(state) as folder:
        engine = Embedded(folder, owner=os.getpid())  # nobody else knows of its sandboxes
        engine.store.prepare()
        layer = engine.layers.folder(_LAYER)
        layer.mkdir(parents=True)
        shutil.copyfile(_binary.find(state), layer / _PROGRAM)
        for path in (layer, layer / _PROGRAM):
            path.chmod(0o755)
        yield engine


async def run(engine: Embedded, spec: SandboxSpec, *argv: str) -> Info:
    """Create a sandbox, run the native program in it with these arguments, end it, and return what
    the kernel says of it.

    Raises:
        EngineError: why that cannot be; `aspect` is what of the machine the native program found
            lacking.
    """
    id = await engine.create(spec, Layered(_LAYER, layers=(_LAYER,)))
    try:
        await _run(engine, id, argv or ("--version",))
        return await engine.info(id)
    finally:
        await engine.stop(id)


async def _run(engine: Embedded, id: str, argv: Sequence[str]) -> None:
    spec = ExecSpec(argv=(f"/{_PROGRAM}", *argv), flags=Flag.ATTACHED)
    output = Spool()
    with contextlib.closing(Agent(lambda: engine.connect(id), _why)) as agent:
        _, record = await Command(agent, os.urandom(16)).run(spec, None, {1: output, 2: output})
    if record.returncode != 0:
        raise EngineError(
            f"a sandbox came up, but a command in it fails: {output.read(0, 400).decode('utf-8', 'replace')}"
        )


async def _why(error: Exception) -> None:
    raise EngineError(f"a sandbox came up, but its agent does not answer: {error}") from error


@contextlib.contextmanager
def _scratch(state: Path) -> Iterator[Path]:
    """A folder in the store, which is refused as it would be for a sandbox."""
    with contextlib.ExitStack() as stack:
        try:
            Store(state).prepare()
            folder = stack.enter_context(Layers(state).scratch())
        except (EngineError, OSError) as error:
            text = (
                str(error) if isinstance(error, EngineError) else f"nothing can be written to {state}: {error.strerror}"
            )
            raise EngineError(text, aspect="store") from error
        yield folder


@contextlib.contextmanager
def _without_trace(state: Path) -> Iterator[None]:
    """Remove the folders of a store again that the block makes and leaves empty."""
    folders = (*reversed(state.parents), state, *(state / name for name in ("ended", "sandboxes", "tmp")))
    # os.path.exists, for that says no where one may not look.
    missing = [folder for folder in folders if not os.path.exists(folder)]
    try:
        yield
    finally:
        for folder in reversed(missing):
            with contextlib.suppress(OSError):
                folder.rmdir()
