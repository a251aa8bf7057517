"""Keeping the files of a sandbox that ends: what its supervisor runs then (native/keeping.c).

A process of its own, because whoever made the sandbox may be gone. The supervisor answers it as it
answers others, so that the image is made, named and made durable as any snapshot is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from openmodal._dual import run_sync
from openmodal._spec import EndRecord, Recipe, SandboxSpec, Snapshot, Status
from openmodal.engines.contract import MONTH
from openmodal.engines.embedded import launch
from openmodal.engines.embedded.plan import Lines
from openmodal.errors import EngineError, Error

MOST_SECONDS = 300.0  # as native/keeping.c

_BEGIN = (
    "import sys; sys.path[:0] = sys.argv.pop(1).split(chr(10)); "
    "from openmodal.engines.embedded.keeping import main; main()"
)


def when_over(state: Path, id: str, spec: SandboxSpec) -> Lines:
    """The plan's lines for a sandbox that nobody uses any more, or that ends.

    What makes the image finds what this process has found.
    """
    lines = [("rests", "1")] if spec.on_idle == "pause" else []
    if not spec.snapshot_on_end:
        return lines
    found = "\n".join(os.path.abspath(path) for path in sys.path if path)
    program = (sys.executable, "-I", "-c", _BEGIN, found, str(state), id, spec.snapshot_on_end)
    return [*lines, *(("at_end", word) for word in program)]


def stop_seconds(status: Status | None) -> float:
    """How long the end of a sandbox may take."""
    return launch.STOP_SECONDS + (MOST_SECONDS if status and status.snapshot_on_end else 0.0)


def tell_unkept(id: str, end: EndRecord) -> None:
    """Raise if the files of a sandbox were to be kept, and are not."""
    if end.unkept:
        raise EngineError(f"sandbox {id} has ended, but its files were not kept: {end.unkept}")


async def _keep(state: Path, id: str, name: str) -> str:
    from openmodal.build import DEFAULTS, lookup
    from openmodal.engines.embedded import Embedded

    engine = Embedded(state)
    key = await engine.snapshot(id, time.time() + MONTH)
    if root := lookup(Recipe((Snapshot(key),)), engine.layers, DEFAULTS):
        await engine.publish(name, root)
        return key
    raise EngineError("the image was pruned a moment ago")


def main() -> None:
    """The program: prints `ok KEY` or `error SENTENCE`."""
    state, id, name = sys.argv[1:]
    try:
        said = f"ok {run_sync(_keep(Path(state), id, name))}"
    except (Error, OSError) as error:
        said = f"error {' '.join(str(error).split())}"
    sys.stdout.write(f"{said}\n")
