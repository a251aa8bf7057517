"""What the measurements stand on: a tiny image, a clock, the memory of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openmodal
from openmodal.build.local import SETTLED

# Large writes: what is measured is the way of the output, not the program that makes it.
MEGABYTE = ("dd", "if=/dev/zero", "bs=1000000", "count=1", "status=none")
APPLETS = ("sh", "true", "cat", "dd", "head", "sleep", "echo", "nc")


@contextmanager
def busybox_root() -> Iterator[Path]:
    """A root file system of one program: the same for us, for the floor and for Docker."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise SystemExit("the benchmarks need a static busybox; install it with `apt-get install busybox-static`")
    with tempfile.TemporaryDirectory(prefix="openmodal-bench-") as name:
        root = Path(name) / "root"
        for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            (root / folder).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        # Files that changed a moment ago are hashed at each use of the image, which nobody's files
        # are for long.
        time.sleep(SETTLED + 0.1)
        yield root


def image_of(root: Path) -> openmodal.Image:
    """That root as an image."""
    return openmodal.Image.from_scratch().add_local_dir(root, "/").env({"PATH": "/bin"})


def memory_of(ids: set[str]) -> int:
    """Bytes that these sandboxes take: what their control groups count (the kernel's memory, too), and their supervisors."""
    groups = sum(
        _counted(Path(f"/sys/fs/cgroup/{place}"))
        for id in ids
        for place in (f"memory/openmodal/{id}", f"openmodal/{id}")
    )
    return groups + sum(_pss(pid) for pid in _supervisors(ids))


def _counted(group: Path) -> int:
    for name in ("memory.usage_in_bytes", "memory.current"):
        if (group / name).exists():
            return int((group / name).read_text(encoding="ascii"))
    return 0


def _supervisors(ids: set[str]) -> set[int]:
    """The parents of the processes in the sandboxes' groups: they are outside of them."""
    inside: set[int] = set()
    parents: set[int] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace")
            if ids & set(groups.replace("\n", "/").split("/")):
                inside.add(int(pid))
                parents.add(_parent(pid))
        except OSError:  # it has just ended
            continue
    return parents - inside - {0, 1, os.getpid()}


def _parent(pid: str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Stopwatch:
    """`with Stopwatch() as watch: …` → watch.seconds."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
