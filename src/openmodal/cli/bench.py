"""`openmodal bench`: how fast sandboxes are on this machine, in a few seconds. `make bench` compares with others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.cli.image import image_option, named

if TYPE_CHECKING:
    from openmodal import Sandbox

Figures = dict[str, list[float]]


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How often each step is measured."
)
@image_option
@json_option
@engine_options
@pass_session
def bench(session: Session, rounds: int, image: str | None, as_json: bool) -> None:
    """Measure this machine: create, exec, write and read a file, terminate, and four sandboxes in
    parallel.

    Shows medians in milliseconds. The image is built before, if it has to be.
    """
    from openmodal import App, Sandbox

    app, used = App("bench"), named(image, session.engine)

    def create() -> Sandbox:
        return Sandbox.create(app=app, image=used, engine=session.engine, timeout=120)

    create().terminate()  # builds the image and sets up the network, once
    figures = measure(create, rounds)
    if as_json:
        _output.emit(
            {name: {"median_ms": median(ms), "min_ms": min(ms), "rounds": len(ms)} for name, ms in figures.items()}
        )
        return
    rows = [(name, f"{median(ms):.1f}", f"{min(ms):.1f}", f"{max(ms):.1f}") for name, ms in figures.items()]
    _output.table(("STEP", "MEDIAN ms", "MIN", "MAX"), rows, empty="")


def measure(create: Callable[[], Sandbox], rounds: int) -> Figures:
    """Time each step `rounds` times."""
    figures: Figures = {}
    for number in range(rounds):
        _one_life(create, figures)
        if sys.stderr.isatty():
            _output.tell(f"\r{number + 1}/{rounds} ", newline=number + 1 == rounds)
    for _ in range(max(1, rounds // 4)):
        with _timed(figures, "4 x create, exec, terminate in parallel"), ThreadPoolExecutor(4) as pool:
            for life in [pool.submit(_one_life, create, {}) for _ in range(4)]:
                life.result()
    return figures


def _one_life(create: Callable[[], Sandbox], figures: Figures) -> None:
    with _timed(figures, "create, until the first command is done"):
        with _timed(figures, "create"):
            sandbox = create()
        sandbox.exec("true")
    with sandbox:
        with _timed(figures, "exec true"):
            sandbox.exec("true")
        with _timed(figures, "write and read a file"):
            sandbox.filesystem.write_text("/tmp/bench", "text")
            sandbox.filesystem.read_text("/tmp/bench")
        with _timed(figures, "terminate"):
            sandbox.terminate()


@contextmanager
def _timed(figures: Figures, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    figures.setdefault(name, []).append((time.perf_counter() - begin) * 1000)
