"""Creates on a store that has seen many lives, beside a fresh one: they take turns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row
from openmodal import _config
from openmodal._ends import ended
from openmodal._spec import Status
from openmodal._store import Store

LIVES, REAL = 10_000, 64


def measure(create: Callable[[], openmodal.Sandbox], rounds: int) -> Row:
    """The row; "floor" is the fresh store. Most lives are only the records that they leave."""
    row = Row(f"create on a store that has seen {LIVES:,} lives, beside a fresh one", times_floor=1.1)
    with _store() as fresh, _store() as seen:
        store = Store(seen)
        store.prepare()
        for number in range(LIVES):
            id = f"bench-{number:08x}"
            status = Status(id, "bench", "", (), 1.0, 2.0, "image", "embedded")
            store.write_ended(status, ended("terminated", 137, float(number), "by terminate()"))
        with _at(seen), ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: create().terminate(), range(REAL)))
        with _at(fresh):
            create().terminate()
        for _ in range(rounds):
            for place, figures in ((fresh, row.floor), (seen, row.ours)):
                with _at(place):
                    with Stopwatch() as watch:
                        sandbox = create()
                    sandbox.terminate()
                figures.append(watch.seconds * 1000)
    return row


@contextmanager
def _store() -> Iterator[Path]:
    """An empty one, on the disk of this machine's own."""
    beside = _config.state().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openmodal-bench-", dir=beside) as folder:
        yield Path(folder)


def _at(state: Path) -> mock._patch_dict:
    return mock.patch.dict(os.environ, {"OPENMODAL_HOME": str(state)})
