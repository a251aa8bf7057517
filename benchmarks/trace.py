"""`python -m benchmarks.trace`: where each millisecond of a create goes, drawn.

strace stops the processes of some creates at the few calls that begin a phase, so what it adds is
small. Medians of the quickest tenth of the creates, which waited least for other work of the
machine. Needs root and strace.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import openmodal
from benchmarks import machine

ROUNDS = 100
WIDTH = 44
_CALLS = "sched_yield,rename,execve,clone3,mount,setns,pivot_root"
_LINE = re.compile(r"\d+ +(\d+\.\d+) (\w+)\((.*)")


@dataclass(frozen=True)
class Phase:
    """What is done, by whom, until the call that ends it, and what that has in its arguments."""

    what: str
    who: str
    call: str
    having: str = ""


PHASES = (
    Phase("arguments, engine, image found, folder of the sandbox", "Python", "rename", "/sandboxes/"),
    Phase("a used upper folder is taken", "Python", "rename", "/uppers/"),
    Phase("limits, network, CPUs, plan; the native program starts", "Python", "execve"),
    Phase("plan read, supervisor, sockets, ids; control groups and values", "supervisor", "clone3", "CLONE_NEWNS"),
    Phase("network interface; init joins the groups", "both", "mount", "MS_PRIVATE"),
    Phase("layers with shifted ids", "init", "mount", '"overlay"'),
    Phase("overlay; /etc, /dev, /proc, and what is hidden of /proc", "init", "setns", "CLONE_NEWNET"),
    Phase("/sys, and the limits that are shown in it", "init", "pivot_root"),
    Phase("user namespace, capabilities, filter; ready; Python goes on", "init", "sched_yield"),
)


def main() -> int:
    """Trace some creates and draw them."""
    with machine.busybox_root() as root, tempfile.NamedTemporaryFile("r", prefix="openmodal-trace-") as found:
        command = ["strace", "-f", "--seccomp-bpf", "-ttt", "-e", f"trace={_CALLS}", "-o", found.name]
        child = [sys.executable, "-m", "benchmarks.trace", str(root)]
        subprocess.run([*command, *child], check=True)
        traced = sorted(_creates(found.read().splitlines()), key=sum)
    if not traced:
        print("no create was seen whole; are you root, and is this the embedded engine?", file=sys.stderr)
        return 1
    quickest = traced[: max(1, len(traced) // 10)]
    load = os.getloadavg()[0]
    print(f"ms; the quickest {len(quickest)} of {len(traced)} creates; {os.cpu_count()} CPUs, load {load:.1f}\n")
    print(drawn([median(times) for times in zip(*quickest, strict=True)]))
    return 0


def _creates(lines: list[str]) -> Iterator[list[float]]:
    """How many ms each phase of each create took. A create lies between two yields of Python."""
    took: list[float] = []
    last, inside = 0.0, False
    for at, call, arguments in _calls(lines):
        if call == "sched_yield" and not inside:
            took, last, inside = [], at, True
        elif inside and call == (phase := PHASES[len(took)]).call and phase.having in arguments:
            took.append((at - last) * 1000)
            last = at
        elif call == "sched_yield":
            inside = False  # something was not seen: not this one
        if len(took) == len(PHASES):
            yield took
            took, inside = [], False


def _calls(lines: list[str]) -> Iterator[tuple[float, str, str]]:
    for line in lines:
        if found := _LINE.match(line):
            yield float(found[1]), found[2], found[3]


def drawn(times: list[float]) -> str:
    """The phases one below the other, each bar where its phase begins."""
    scale, begin, lines = WIDTH / sum(times), 0.0, list[str]()
    for phase, time in zip(PHASES, times, strict=True):
        left, width = round(begin * scale), max(1, round(time * scale))
        bar = f"{' ' * min(left, WIDTH - width)}{'█' * width}"
        lines.append(f"{time:5.2f}  {bar:{WIDTH}}  {phase.who}: {phase.what}")
        begin += time
    return "\n".join([*lines, f"{sum(times):5.2f}  in all"])


def _child(root: Path) -> None:
    """Create sandboxes, with a yield before and after each."""
    os.environ["OPENMODAL_ENGINE"] = "embedded"
    app, image = openmodal.App("bench"), machine.image_of(root)
    for number in range(-3, ROUNDS):
        if number >= 0:
            os.sched_yield()
        sandbox = openmodal.Sandbox.create(app=app, image=image, timeout=600)
        if number >= 0:
            os.sched_yield()
        sandbox.terminate()


if __name__ == "__main__":
    sys.exit(_child(Path(sys.argv[1])) if sys.argv[1:] else main())
