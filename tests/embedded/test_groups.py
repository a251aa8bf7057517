"""The control groups that all sandboxes share: complete whatever was there, and of a weight that fits what runs in them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmodal.engines import groups
from openmodal.engines.embedded import Embedded, cgroup, host
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating, eventually

ONE = 1024 if "cpu" in dict(host.hierarchies().v1) else 100


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Parent groups that no other program on this machine uses; they are not there yet."""
    monkeypatch.setattr(cgroup, "PARENT", f"openmodal-test-{os.getpid()}")
    found = host.hierarchies()
    points = {*(point for _, point in found.v1), *([found.v2] if found.v2 else [])}
    folders = [Path(point) / cgroup.PARENT for point in points]
    yield folders
    for folder in folders:
        eventually(lambda folder=folder: not groups.members(folder))  # type: ignore[misc]
        folder.rmdir()


@pytest.fixture
def create(engine: Embedded, image: Image, parents: list[Path]) -> Iterator[Create]:
    with creating(image=image, engine=engine, timeout=1000) as create:
        yield create


def weight() -> int:
    """What all sandboxes weigh together."""
    plan = cgroup._parents_weight(host.hierarchies())
    assert plan
    return int(Path(plan[0]).read_text())


def test_a_parent_group_that_was_half_made_is_completed(parents: list[Path], create: Create) -> None:
    """Whoever made it was killed before it had controllers and bounds: every later creation failed."""
    for folder in parents:
        folder.mkdir()
    info = create(memory=64).info()
    assert (info.memory, info.cpu, info.pids, info.degraded) == (64, 1.0, 512, ())
    bounds = [(folder / "pids.max").read_text().strip() for folder in parents if (folder / "pids.max").exists()]
    assert bounds
    assert all(bound.isdecimal() for bound in bounds)


def test_a_bound_that_the_administrator_set_stays(parents: list[Path], create: Create) -> None:
    create().terminate()
    [bound] = [folder / "pids.max" for folder in parents if (folder / "pids.max").exists()]
    bound.write_text("700")
    assert create().info().pids == 512
    assert bound.read_text() == "700\n"


def test_sandboxes_together_weigh_what_each_of_them_weighs(create: Create) -> None:
    """Also when many begin and end at once."""
    most = 262_144 if ONE == 1024 else 100 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(6) as pool:
        boxes = list(pool.map(lambda cpu: create(cpu=cpu), (0.5, 0.5, 1, 2, 0.25, 0.25)))
        eventually(lambda: weight() == min(most, 4.5 * ONE))
        list(pool.map(Sandbox.terminate, boxes[2:]))
    eventually(lambda: weight() == min(most, ONE))
    boxes[0].terminate()
    eventually(lambda: weight() == ONE // 2)


def test_beside_other_work_a_sandbox_gets_what_its_processes_would(create: Create) -> None:
    """All sandboxes together weighed as much as one process: what ran in them took three to five times as long as outside."""
    boxes = [create() for _ in range(4)]
    cpus = os.cpu_count() or 1
    hogs = [subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True) for _ in range(2 * cpus)]
    try:
        running = [box.spawn("timeout", "4", "sh", "-c", "while :; do :; done") for box in boxes]
        begin, before = time.monotonic(), sum(map(seconds, hogs))
        for process in running:
            process.wait()
        took, theirs = time.monotonic() - begin, (sum(map(seconds, hogs)) - before) / len(hogs)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    ours = sum(process.record.cpu for process in running if process.record) / len(running)
    assert took < 60
    assert ours > 0.45 * theirs, "a quarter of it and less before, with four sandboxes"


def seconds(process: subprocess.Popen[bytes]) -> float:
    """The CPU time that a process has used."""
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
