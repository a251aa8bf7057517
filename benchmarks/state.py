"""What branches and resets cost: beside create and terminate in the same rounds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row

FORKS, ROLLOUTS, AT_ONCE, DEEP, PROCESSES = 10, 200, 8, 40, 10
_MANY = "i=0; while [ $i -lt {} ]; do echo $i > /tmp/$i; i=$((i+1)); done"
_LOOK = "i=0; while [ $i -lt 500 ]; do [ -e /tmp/none$i ]; i=$((i+1)); done"
_WRITER = "while true; do echo line >> /tmp/log; done"


def rows() -> dict[str, Row]:
    """The steps, with their targets on a quiet machine of two cores."""
    return {
        "checkpoint": Row("checkpoint, 100 changed files", target=5),
        "reset": Row("reset", target=10),
        "reset_to": Row("reset to a checkpoint", target=10),
        "pause": Row(f"pause, {PROCESSES} processes", target=1),
        "resume": Row("resume", target=1),
        "fork": Row(f"fork({FORKS}), until the last has run a command", target=60),
        "snapshot_busy": Row("snapshot of 1,000 small files while a command writes", target=150),
        "deep": Row(f"exec with 500 look-ups {DEEP} checkpoints deep, beside 1 deep", "x", target=1.2),
        "rollouts": Row(f"{ROLLOUTS} rollouts from one warmed state, {AT_ONCE} at a time", "s", target=4),
    }


def measure(create: Callable[..., openmodal.Sandbox], rounds: int) -> dict[str, Row]:
    """All of them; a life of another sandbox in each round tells what create and terminate cost."""
    found, lives = rows(), Row("")
    with create() as sandbox:
        for _ in range(rounds):
            with Stopwatch() as watch:
                create().terminate()
            lives.ours.append(watch.seconds * 1000)
            _round(found, sandbox)
        _busy(found["snapshot_busy"], sandbox, max(1, rounds // 5))
    _deep(found["deep"], create, rounds)
    with create() as sandbox:
        _still(found, sandbox, rounds)
    with create() as sandbox:
        _rollouts(found["rollouts"], sandbox)
    for step in ("checkpoint", "reset", "reset_to"):
        found[step].note = f"{median(found[step].ours) / median(lives.ours):.1f} x create and terminate"
    return found


def _round(found: dict[str, Row], sandbox: openmodal.Sandbox) -> None:
    sandbox.exec("sh", "-c", _MANY.format(100))
    with Stopwatch() as watch:
        start = sandbox.checkpoint()
    found["checkpoint"].ours.append(watch.seconds * 1000)
    with Stopwatch() as watch:
        forks = sandbox.fork(FORKS)
        done = forks[-1].exec("cat", "/tmp/99")
    found["fork"].ours.append(watch.seconds * 1000)
    for fork in forks:
        fork.terminate()
    for step, to in (("reset", None), ("reset_to", start)):
        with Stopwatch() as watch:
            sandbox.reset(to)
        found[step].ours.append(watch.seconds * 1000)
    if not done.stdout.read() == sandbox.exec("cat", "/tmp/99").stdout.read() == "99\n":
        found["fork"].broken = "the files were not there"


def _still(found: dict[str, Row], sandbox: openmodal.Sandbox, rounds: int) -> None:
    for _ in range(PROCESSES):
        sandbox.spawn("sleep", "600")
    for _ in range(rounds):
        with Stopwatch() as watch:
            sandbox.pause()
        found["pause"].ours.append(watch.seconds * 1000)
        with Stopwatch() as watch:
            sandbox.resume()
        found["resume"].ours.append(watch.seconds * 1000)


def _busy(row: Row, sandbox: openmodal.Sandbox, rounds: int) -> None:
    sandbox.exec("sh", "-c", _MANY.format(1000))
    writer = sandbox.spawn("sh", "-c", _WRITER)
    for _ in range(rounds):
        with Stopwatch() as watch:
            sandbox.snapshot_filesystem(ttl=60)
        row.ours.append(watch.seconds * 1000)
    writer.kill()


def _deep(row: Row, create: Callable[..., openmodal.Sandbox], rounds: int) -> None:
    """One sandbox beside the other, taking turns."""
    with create() as one, create() as many:
        for sandbox, count in ((one, 1), (many, DEEP)):
            for number in range(count):
                sandbox.exec("sh", "-c", f"echo {number} > /tmp/{number}")
                sandbox.checkpoint()
        for _ in range(rounds):
            times: list[float] = []
            for sandbox in (many, one):
                with Stopwatch() as watch:
                    sandbox.exec("sh", "-c", _LOOK)
                times.append(watch.seconds)
            row.ours.append(times[0] / times[1])


def _rollouts(row: Row, warmed: openmodal.Sandbox) -> None:
    def run(sandbox: openmodal.Sandbox) -> None:
        start = sandbox.checkpoint()
        for _ in range(ROLLOUTS // AT_ONCE):
            sandbox.exec("sh", "-c", "echo tried > /tmp/0")
            sandbox.reset(start)

    with Stopwatch() as watch, ThreadPoolExecutor(AT_ONCE) as pool:
        forks = warmed.fork(AT_ONCE)
        list(pool.map(run, forks))
    row.ours.append(watch.seconds)
    for fork in forks:
        fork.terminate()
