"""What a volume costs: sandboxes with one of 10,000 files and without, taking turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from statistics import median

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row

FILES, SANDBOXES = 10_000, 8
_FILL = f"i=0; while [ $i -lt {FILES} ]; do echo $i > /data/$i; i=$((i+1)); done"


def measure(create: Callable[..., openmodal.Sandbox], rounds: int) -> Row:
    """Each round has 8 sandboxes of either kind, which live at the same time; the difference of
    their medians is told."""
    row = Row(f"more for a volume with {FILES:,} files, in {SANDBOXES} sandboxes", target=1)
    with openmodal.Volume.ephemeral(engine="embedded") as volume:
        with create(volumes={"/data": volume}) as sandbox:
            sandbox.exec("sh", "-c", _FILL)
        for _ in range(rounds):
            figures: dict[bool, list[float]] = {False: [], True: []}
            with contextlib.ExitStack() as stack:
                for number in range(2 * SANDBOXES):
                    mounted = number % 2 == 1
                    with Stopwatch() as watch:
                        sandbox = create(volumes={"/data": volume} if mounted else {})
                    stack.enter_context(sandbox)
                    figures[mounted].append(watch.seconds * 1000)
            row.ours.append(median(figures[True]) - median(figures[False]))
    return row
