"""`openmodal bench`: how fast sandboxes are on this machine, in a few seconds. `make bench` compares with others."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from openmodal.cli import _output, _plot
from openmodal.cli._containers import Container, containers
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.cli.image import image_option, named

if TYPE_CHECKING:
    from openmodal import Sandbox

Figures = dict[str, list[float]]

_DOCKER = "Docker"
_SETTLED = 1.0  # seconds until the kernel has given back what creations took for a moment


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How often each step is measured."
)
@click.option("--docker", is_flag=True, help="Measure Docker's own API, too, in turns.")
@click.option("--idle", type=click.IntRange(1, 100_000), help="Measure what so many idle sandboxes take, too.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the figures into an SVG file.")
@image_option
@json_option
@engine_options
@pass_session
def bench(
    session: Session, rounds: int, docker: bool, idle: int | None, plot: Path | None, image: str | None, as_json: bool
) -> None:
    """Measure this machine: create, exec, write and read a file, terminate, and four sandboxes in
    parallel.

    Shows medians in milliseconds. The image is built before, if it has to be.
    """
    from openmodal import App, Image, Sandbox

    app, used = App("bench"), named(image, session.engine) or Image.debian_slim()

    def create() -> Sandbox:
        return Sandbox.create(app=app, image=used, engine=session.engine, timeout=600)

    create().terminate()  # builds the image and sets up the network, once
    with contextlib.ExitStack() as stack:
        makers: dict[str, Callable[[], Sandbox | Container]] = {session.engine.name: create}
        if docker:
            api, reference = stack.enter_context(containers(used))
            makers[_DOCKER] = lambda: Container(api, reference)
        figures = measure(makers, rounds)
    memory = measure_idle(create, idle) if idle else None
    _show(figures, memory, as_json=as_json)
    if plot:
        plot.write_text(_drawn(figures, rounds), encoding="utf-8")


def measure(makers: Mapping[str, Callable[[], Sandbox | Container]], rounds: int) -> dict[str, Figures]:
    """Time each step `rounds` times, of each maker in turns: a noisy machine is noisy for all."""
    figures: dict[str, Figures] = {name: {} for name in makers}
    for number in range(rounds):
        for name, create in makers.items():
            _one_life(create, figures[name])
        if sys.stderr.isatty():
            _output.tell(f"\r{number + 1}/{rounds} ", newline=number + 1 == rounds)
    for _ in range(max(1, rounds // 4)):
        for name, create in makers.items():
            with _timed(figures[name], "4 x create, exec, terminate in parallel"), ThreadPoolExecutor(4) as pool:
                for life in [pool.submit(_one_life, create, {}) for _ in range(4)]:
                    life.result()
    return figures


def _one_life(create: Callable[[], Sandbox | Container], figures: Figures) -> None:
    with _timed(figures, "create, until the first command is done"):
        with _timed(figures, "create"):
            sandbox = create()
        sandbox.exec("true")
    with sandbox:
        with _timed(figures, "exec true"):
            sandbox.exec("true")
        if not isinstance(sandbox, Container):
            with _timed(figures, "write and read a file"):
                sandbox.filesystem.write_text("/tmp/bench", "text")
                sandbox.filesystem.read_text("/tmp/bench")
        with _timed(figures, "terminate"):
            sandbox.terminate()


def measure_idle(create: Callable[[], Sandbox], count: int) -> dict[str, float]:
    """What `count` sandboxes that do nothing take: seconds to make, MiB of this machine's memory for
    each."""
    making: list[Future[Sandbox]] = []
    free = _available()
    try:
        begin = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            making += [pool.submit(create) for _ in range(count)]
        for each in making:
            each.result()
        made = time.perf_counter() - begin
        time.sleep(_SETTLED)
        return {"sandboxes": count, "made_s": made, "memory_mib": (free - _available()) / count}
    finally:
        with ThreadPoolExecutor(8) as pool:
            for each in making:
                if not each.exception():
                    pool.submit(each.result().terminate)


def _available() -> float:
    """How much memory this machine has left, in MiB."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))


def _show(figures: dict[str, Figures], idle: dict[str, float] | None, *, as_json: bool) -> None:
    ours, docker = next(iter(figures.values())), figures.get(_DOCKER)
    if as_json:
        shown: dict[str, object] = {name: _summary(ms) for name, ms in ours.items()}
        shown |= {"docker": {name: _summary(ms) for name, ms in docker.items()}} if docker else {}
        _output.emit(shown | ({"idle": idle} if idle else {}))
        return
    columns = ["STEP", "MEDIAN ms", "MIN", "MAX", *(("DOCKER ms", "TIMES") if docker else ())]
    rows = [
        (
            name,
            *(f"{each:.1f}" for each in (median(ms), min(ms), max(ms))),
            *(_beside(ms, docker.get(name)) if docker else ()),
        )
        for name, ms in ours.items()
    ]
    _output.table(columns, rows, empty="")
    if idle:
        print(f"{idle['sandboxes']} idle: {idle['memory_mib']:.1f} MiB each, made in {idle['made_s']:.1f} s")


def _summary(ms: list[float]) -> dict[str, float]:
    return {"median_ms": median(ms), "min_ms": min(ms), "rounds": len(ms)}


def _beside(ours: list[float], docker: list[float] | None) -> tuple[str, str]:
    return (f"{median(docker):.1f}", f"{median(docker) / median(ours):.1f}") if docker else ("-", "-")


def _drawn(figures: dict[str, Figures], rounds: int) -> str:
    from openmodal import __version__

    series = {name: {step: median(ms) for step, ms in steps.items()} for name, steps in figures.items()}
    ours, *others = series
    title = "OpenModal" + (f" beside {others[0]}'s own API" if others else "") + ", milliseconds"
    named = {"OpenModal" if name == ours else name: medians for name, medians in series.items()}
    where = f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    scales = "Each step has a scale of its own. " if others else ""
    note = f"{scales}Medians of {rounds} rounds{', in turns' if others else ''}; {where}.\n"
    note += f"Made by `openmodal bench`, OpenModal {__version__}, {ours} engine."
    return _plot.bars(title, named, note)


@contextmanager
def _timed(figures: Figures, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    figures.setdefault(name, []).append((time.perf_counter() - begin) * 1000)
