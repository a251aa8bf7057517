"""`python -m benchmarks`: everything in one run on one machine, in one table. Exit code 1 if a
target is missed.

Machines are noisy, so ours, the floor and Docker take turns in the same loop, and medians are
compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openmodal
from benchmarks import journal, machine, page, ports, serve, state, store, volumes
from benchmarks.docker import docker
from benchmarks.floor import Floor
from benchmarks.machine import Stopwatch
from benchmarks.results import Row, table
from openmodal.engines.embedded import network

APP = openmodal.App("bench")
BURST, THREADS = 100, 32


def rows() -> dict[str, Row]:
    """Every step, with its target."""
    return {
        "create": Row("create (cached image, NAT network)", target=15, times_floor=4, times_docker=1.15),
        "create_cpu": Row("CPU time of Python in a create", target=1.5),
        "create_exec": Row("create until the first command is done", target=18),
        "exec": Row("exec true", target=2, times_floor=2, engine_target=4),
        "exec_1mb": Row("exec with 1 MB of output"),
        "terminate": Row("terminate", target=3.5, times_docker=1.1),
        "parallel": Row("4 in parallel, until all are there", times_docker=1.2),
        "stdout": Row("100 MB of stdout, in pieces", "MB/s", target=300, more_is_better=True),
        "stdout_kept": Row("100 MB of stdout, kept by exec", "MB/s", target=300, more_is_better=True),
        "stdout_memory": Row("memory of the SDK for that", "MiB", target=64),
        "write": Row("write a file of 100 MB", "MB/s", more_is_better=True),
        "read": Row("read a file of 100 MB", "MB/s", more_is_better=True),
        **ports.rows(),
        "burst": Row(f"{BURST} x create, exec, terminate, {THREADS} threads", "s", target=1),
        "idle": Row("memory of an idle sandbox", "MiB", target=3),
        "import": Row("import openmodal", target=40),
        "import_sandbox": Row("first use of openmodal.Sandbox", target=60),
        "verb": Row("openmodal-docker ps, a process", target=100),
        "example": Row("create, per agent of examples/sandbox.py", target=100),
    }


def main() -> int:
    """Measure, print, and tell whether all targets are met."""
    options = _options()
    if options.kubernetes:
        return _kubernetes(options)
    found = rows()
    with machine.busybox_root() as root:
        image = machine.image_of(root)
        _create(image).terminate()  # builds the image, and the network of this machine
        _lives(found, image, root, options.rounds)
        _transfers(found, image, max(1, options.rounds // 10))
        _burst(found["burst"], image)
        found |= _gvisor(image, max(3, options.rounds // 5))
        found["volume"] = volumes.measure(functools.partial(_create, image), max(3, options.rounds // 10))
        found["journal"] = journal.measure(functools.partial(_create, image), options.rounds)
        found["store"] = store.measure(functools.partial(_create, image), options.rounds)
        found |= state.measure(functools.partial(_create, image), max(3, options.rounds // 5))
        found |= serve.measure(root / "bin/busybox", max(3, options.rounds // 5), options.idle)
        found |= page.measure(functools.partial(_create, image), max(3, options.rounds // 10))
        _idle(found["idle"], image, options.idle)
    _import(found["import"], found["import_sandbox"], found["verb"])
    if not options.without_example:
        _example(found["example"])
    _print(list(found.values()), as_json=options.json)
    return 0 if all(row.met is not False for row in found.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure OpenModal on this machine.")
    parser.add_argument("--rounds", type=int, default=50, help="how often short steps are measured (50)")
    parser.add_argument("--full", action="store_true", help="1,000 idle sandboxes instead of 50, and 200 rounds")
    parser.add_argument("--idle", type=int, help="so many idle sandboxes")
    parser.add_argument(
        "--without-example", action="store_true", help="leave out the example, whose image takes a while"
    )
    parser.add_argument("--kubernetes", action="store_true", help="the cluster of KUBECONFIG instead of this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    options.idle = options.idle or (1000 if options.full else 50)
    options.rounds = max(200, options.rounds) if options.full else options.rounds
    return options


def _kubernetes(options: argparse.Namespace) -> int:
    """Pods beside bare pods."""
    from benchmarks import kubernetes

    found = kubernetes.rows()
    with machine.busybox_root() as root:
        kubernetes.measure(found, machine.image_of(root), options.rounds, _progress)
    _print(list(found.values()), as_json=options.json, engine="kubernetes")
    return 0 if all(row.met is not False for row in found.values()) else 1


def _create(
    image: openmodal.Image,
    *,
    timeout: float = 600,
    runtime: str = "native",
    engine: str | None = None,
    volumes: Mapping[str, openmodal.Volume] | None = None,
) -> openmodal.Sandbox:
    return openmodal.Sandbox.create(
        app=APP, image=image, timeout=timeout, runtime=runtime, engine=engine, volumes=volumes
    )


def _lives(found: dict[str, Row], image: openmodal.Image, root: Path, rounds: int) -> None:
    """Short steps: a sandbox's life per round; the floor and Docker take their turn in between."""
    floor = Floor(root)
    with docker(root) as daemon:
        if daemon:
            _create(image, engine="docker").terminate()  # builds the image there
        for number in range(rounds):
            _one_life(found, image)
            for step, figures in floor.measure().items():
                if step in found:
                    found[step].floor += figures
            if daemon and number % 5 == 0:
                daemon.one_life()
                daemon.four_at_once()
                _on_docker(found, image)
            _progress(f"lives {number + 1}/{rounds}")
        for step, figures in (daemon.figures if daemon else {}).items():
            found[step].docker += figures


def _one_life(found: dict[str, Row], image: openmodal.Image, engine: str | None = None) -> None:
    before = time.thread_time()
    with Stopwatch() as create:
        sandbox = _create(image, engine=engine)
    found["create_cpu"].ours.append((time.thread_time() - before) * 1000)
    with sandbox:
        with Stopwatch() as first:
            sandbox.exec("true")
        found["create"].ours.append(create.seconds * 1000)
        found["create_exec"].ours.append((create.seconds + first.seconds) * 1000)
        for _ in range(3):
            with Stopwatch() as watch:
                sandbox.exec("true")
            found["exec"].ours.append(watch.seconds * 1000)
        with Stopwatch() as watch:
            output = sandbox.exec(*machine.MEGABYTE).stdout.read()
        if len(output) != 1_000_000:
            found["exec_1mb"].broken = f"{len(output)} bytes came"
        found["exec_1mb"].ours.append(watch.seconds * 1000)
        with Stopwatch() as watch:
            sandbox.terminate()
        found["terminate"].ours.append(watch.seconds * 1000)


def _on_docker(found: dict[str, Row], image: openmodal.Image) -> None:
    """The same life on our Docker engine, beside the bare API's."""
    mine = {step: Row("") for step in found}
    _one_life(mine, image, "docker")
    made: list[openmodal.Sandbox] = []
    with Stopwatch() as watch, ThreadPoolExecutor(4) as pool:
        made += pool.map(lambda _: _create(image, engine="docker"), range(4))
    mine["parallel"].ours.append(watch.seconds * 1000)
    for sandbox in made:
        sandbox.terminate()
    for step, row in mine.items():
        found[step].engine += row.ours
        found[step].broken = found[step].broken or row.broken


def _transfers(found: dict[str, Row], image: openmodal.Image, rounds: int) -> None:
    """Much data, each step in a process of its own, whose memory is seen."""
    for _ in range(rounds):
        with _create(image) as sandbox:
            for step in ("stdout", "stdout_kept", "write", "read"):
                figures = _in_child(sandbox.id, step)
                found[step].ours.append(figures["rate"])
                found[step].note = f"{figures['memory']:.0f} MiB more memory"
                if step.startswith("stdout"):
                    found["stdout_memory"].ours.append(figures["total"])
            ports.measure(found, sandbox)
            _progress("transfers")


def _gvisor(image: openmodal.Image, rounds: int) -> dict[str, Row]:
    """The same life in gVisor; no rows where it cannot run."""
    if os.geteuid() != 0 or not network.tool("runsc"):
        return {}
    create, run, end = Row("create, in gVisor"), Row("exec true, in gVisor"), Row("terminate, in gVisor")
    for number in range(rounds):
        with Stopwatch() as watch:
            sandbox = _create(image, runtime="gvisor")
        create.ours.append(watch.seconds * 1000)
        for _ in range(3):
            with Stopwatch() as watch:
                sandbox.exec("true")
            run.ours.append(watch.seconds * 1000)
        with Stopwatch() as watch:
            sandbox.terminate()
        end.ours.append(watch.seconds * 1000)
        _progress(f"gVisor {number + 1}/{rounds}")
    return {"gvisor_create": create, "gvisor_exec": run, "gvisor_terminate": end}


def _in_child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _burst(row: Row, image: openmodal.Image) -> None:
    """Many at once, from many threads: all of them have to be right."""

    def life(number: int) -> bool:
        with _create(image) as sandbox:
            return sandbox.exec("echo", str(number)).stdout.read() == f"{number}\n"

    for _ in range(3):
        with Stopwatch() as watch, ThreadPoolExecutor(THREADS) as pool:
            right = sum(pool.map(life, range(BURST)))
        row.ours.append(watch.seconds)
        row.note = f"{right} of {BURST} right"
        if right != BURST:
            row.broken = row.note
        _progress("burst")


def _idle(row: Row, image: openmodal.Image, count: int) -> None:
    """Many that do nothing: what each costs, and that each still answers."""
    alive: list[openmodal.Sandbox] = []
    try:
        with Stopwatch() as create, ThreadPoolExecutor(8) as pool:
            for sandbox in pool.map(lambda _: _create(image, timeout=1800), range(count)):
                alive.append(sandbox)
                _progress(f"idle {len(alive)}/{count}")
        row.ours.append(machine.memory_of({sandbox.id for sandbox in alive}) / count / (1 << 20))
        with ThreadPoolExecutor(8) as pool:
            answers = sum(pool.map(lambda s: s.exec("echo", "here").stdout.read() == "here\n", alive))
        row.note = f"{answers} of {count} answer; created in {create.seconds:.1f} s"
        if answers != count:
            row.broken = row.note
    finally:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda sandbox: sandbox.terminate(), alive))


def _import(package: Row, first_use: Row, verb: Row) -> None:
    """In fresh interpreters, whose own start does not count, and with compiled modules, as an installer leaves them."""
    program = (
        "from time import perf_counter as now; a = now(); import openmodal; b = now(); openmodal.Sandbox; "
        "print(b - a, now() - b)"
    )
    with tempfile.TemporaryDirectory(prefix="openmodal-bench-") as compiled:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = compiled
        for attempt in range(16):
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            for row, seconds in zip((package, first_use), done.stdout.split(), strict=True):
                row.ours += [float(seconds) * 1000] if attempt else []  # the first one compiles
            command = [sys.executable, "-m", "openmodal.docker_cli", "ps", "--quiet"]
            with Stopwatch() as watch:
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=env)
            verb.ours += [watch.seconds * 1000] if attempt else []


def _example(row: Row) -> None:
    """Four at once from the example's own image, as the example creates them."""
    from examples.sandbox import image

    _create(image).terminate()  # builds it, if this machine has not run the example yet

    def create(_: int) -> float:
        with Stopwatch() as watch:
            sandbox = _create(image)
        sandbox.terminate()
        return watch.seconds * 1000

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            row.ours += pool.map(create, range(4))
        _progress("example")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print(found: list[Row], *, as_json: bool, engine: str = "embedded") -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    load = os.getloadavg()[0]
    where = f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.1f}, Python {platform.python_version()}"
    if as_json:
        print(json.dumps({"machine": where, "steps": [row.as_dict() for row in found]}, indent=2))
        return
    print(f"OpenModal {openmodal.__version__}, {engine} engine; {where}. Medians.\n")
    print(table(found))


if __name__ == "__main__":
    os.environ.setdefault("OPENMODAL_ENGINE", "embedded")
    sys.exit(main())
