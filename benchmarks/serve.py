"""`openmodal serve`, by the stock client of Modal, beside our SDK in the same process.

The client runs in a process of its own (`python -m benchmarks.serve`), behind a door of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row

SIZE = 100 * 1000 * 1000
COMMANDS, BURST, TOGETHER = 4, 100, 16


def measure(busybox: Path, rounds: int, sandboxes: int) -> dict[str, Row]:
    """All rows; none without the extra `serve`."""
    if not importlib.util.find_spec("modal"):
        return {}
    found = rows(sandboxes)
    program = [sys.executable, "-m", "benchmarks.serve", str(busybox), str(rounds), str(sandboxes)]
    # Not --local, which is Docker where a daemon answers.
    command = [sys.executable, "-m", "openmodal", "--engine", "embedded", "serve", "--", *program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    for name, row in found.items():
        row.ours, row.floor = figures[name]["door"], figures[name].get("sdk", [])
    found["serve_life"].target = 1.3 * median(found["serve_life"].floor) + 15
    found["serve_exec"].target = median(found["serve_exec"].floor) + 12
    return found


def rows(sandboxes: int) -> dict[str, Row]:
    """Every step, with its target; those of the first two depend on the SDK, which is the floor."""
    crowd = f"{sandboxes} sandboxes and {COMMANDS * sandboxes} commands"
    return {
        "serve_life": Row("create until the first command is done, by a door"),
        "serve_exec": Row("exec true, by a door"),
        "serve_cpu": Row("CPU time of the door for that", target=2),
        "serve_burst": Row(f"{BURST} x create, exec, terminate, asyncio, by a door", "s", target=4),
        "serve_stdout": Row("100 MB of stdout, by a door", "MB/s", target=60, more_is_better=True),
        "serve_write": Row("write a file of 100 MB, by a door", "MB/s", target=80, more_is_better=True),
        "serve_read": Row("read a file of 100 MB, by a door", "MB/s", target=80, more_is_better=True),
        "serve_flat": Row("more memory of the door for these 300 MB", "MiB", target=64),
        "serve_memory": Row(f"memory of the door with {crowd}", "MiB", target=150),
    }


class Client:
    """The stock client, and the process of the door that it runs behind."""

    def __init__(self, busybox: str) -> None:
        import modal

        self.modal: Any = modal
        self._app = modal.App.lookup("bench", create_if_missing=True)
        base = modal.Image.from_scratch().add_local_file(busybox, "/bin/busybox", copy=True)
        self._image = base.dockerfile_commands(['RUN ["/bin/busybox", "--install", "-s", "/bin"]'])
        self._pid = os.getppid()
        self.create().terminate()  # builds it

    def create(self) -> Any:
        return self.modal.Sandbox.create(app=self._app, image=self._image, timeout=1800)

    async def life(self, number: int) -> bool:
        """Create, exec, terminate."""
        made = await self.modal.Sandbox.create.aio(app=self._app, image=self._image, timeout=1800)
        process = await made.exec.aio("echo", str(number))
        said = await process.stdout.read.aio()
        await made.terminate.aio()
        return bool(said == f"{number}\n")

    async def crowd(self, sandboxes: int) -> list[Any]:
        """Sandboxes, each of which has run some commands."""
        some = asyncio.Semaphore(TOGETHER)

        async def one() -> Any:
            async with some:
                made = await self.modal.Sandbox.create.aio(app=self._app, image=self._image, timeout=1800)
                for _ in range(COMMANDS):
                    process = await made.exec.aio("echo", "x")
                    await process.stdout.read.aio()
                    await process.stderr.read.aio()
                    await process.wait.aio()
                return made

        return await asyncio.gather(*(one() for _ in range(sandboxes)))

    def cpu(self) -> float:
        """The door's CPU time, in ms."""
        # The clock of another process, as clock_getcpuclockid(3) makes its number: /proc counts in
        # ticks of 10 ms.
        return time.clock_gettime_ns((~self._pid << 3) | 2) / 1e6

    def memory(self, what: str = "VmRSS") -> float:
        """The door's memory, in MiB; VmHWM: the most that it had."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def _short(client: Client, image: openmodal.Image, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Lives and commands, in turns with our SDK."""
    life: dict[str, list[float]] = {"door": [], "sdk": []}
    run: dict[str, list[float]] = {"door": [], "sdk": []}
    cpu: list[float] = []
    for _ in range(rounds):
        with Stopwatch() as watch:
            made = openmodal.Sandbox.create(image=image, timeout=1800)
            made.exec("true")
        life["sdk"].append(watch.seconds * 1000)
        with Stopwatch() as watch:
            theirs = client.create()
            theirs.exec("true").wait()
        life["door"].append(watch.seconds * 1000)
        before = client.cpu()
        for _ in range(10):
            with Stopwatch() as watch:
                made.exec("true")
            run["sdk"].append(watch.seconds * 1000)
            with Stopwatch() as watch:
                theirs.exec("true").wait()
            run["door"].append(watch.seconds * 1000)
        cpu.append((client.cpu() - before) / 10)
        made.terminate()
        theirs.terminate()
    return {"serve_life": life, "serve_exec": run, "serve_cpu": {"door": cpu}}


def _much(client: Client) -> dict[str, dict[str, list[float]]]:
    """Much data, one way and the other."""
    rates: dict[str, dict[str, list[float]]] = {}
    made, before = client.create(), client.memory()
    writing = made.exec("head", "-c", str(SIZE), "/dev/zero", text=False)
    for name, move in {
        "serve_stdout": writing.stdout.read,
        "serve_write": lambda: made.filesystem.write_bytes(bytes(SIZE), "/much"),
        "serve_read": lambda: made.filesystem.read_bytes("/much"),
    }.items():
        with Stopwatch() as watch:
            got = move()
        assert got is None or len(got) == SIZE
        rates[name] = {"door": [SIZE / 1e6 / watch.seconds]}
    made.terminate()
    return rates | {"serve_flat": {"door": [client.memory("VmHWM") - before]}}


def main() -> None:
    """Print all figures as JSON."""
    busybox, rounds, sandboxes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    client = Client(busybox)
    image = (
        openmodal.Image.from_scratch()
        .add_local_file(busybox, "/bin/busybox")
        .dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
    )
    image.build()
    found = _short(client, image, rounds) | _much(client)

    async def burst() -> float:
        with Stopwatch() as watch:
            right = await asyncio.gather(*(client.life(number) for number in range(BURST)))
        assert all(right)
        return watch.seconds

    found["serve_burst"] = {"door": [asyncio.run(burst())]}
    crowd = asyncio.run(client.crowd(sandboxes))
    found["serve_memory"] = {"door": [client.memory()]}
    for made in crowd:
        made.terminate()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
