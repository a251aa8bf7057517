"""What a call pays for its line in the sandbox's journal."""

from __future__ import annotations

from collections.abc import Callable

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row
from openmodal._spec import ExitRecord

CALLS = 20
RECORD = ExitRecord(False, 0, False, False, 1.0, 2.0, 0.5, 100)


def measure(create: Callable[[], openmodal.Sandbox], rounds: int) -> Row:
    """The row: a command is noted, as `exec` does it, while it is not run."""
    row = Row("note a call in the journal", target=0.1)
    with create() as sandbox:
        for _ in range(rounds * CALLS):
            with Stopwatch() as watch, sandbox._journal.call("exec", argv=("git", "clone", "x" * 80)) as line:
                line["record"] = RECORD
            row.ours.append(watch.seconds * 1000)
    return row
