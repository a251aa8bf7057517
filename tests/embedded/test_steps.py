"""Each step of keeping, branching and going back fails once: the disk is full, or the process that took it is killed.

strace(1) makes the n-th system call of a kind fail, or kills who calls it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.embedded import Embedded, launch
from openmodal.errors import Error, SandboxNotRunningError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import creating, eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")]

# What takes room on a disk, and what else changes something.
WRITES = ("mkdir", "mkdirat", "mknod", "rename", "fsetxattr")
CHANGES = (*WRITES, "write", "unshare", "setns", "mount", "fsmount", "move_mount", "mount_setattr", "umount2", "fork")


@pytest.fixture
def create(engine: Embedded, image: Image) -> Iterator[Callable[..., Sandbox]]:
    with creating(app=App("steps"), image=image, engine=engine, timeout=1000) as create:
        yield create


@contextmanager
def traced(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Trace a process and what it starts meanwhile."""
    with subprocess.Popen(["strace", "-f", "-qq", "-o", str(log), *options, "-p", str(pid)]) as tracer:
        try:
            eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text())
            yield
        finally:
            tracer.terminate()


def calls(log: Path) -> Counter[str]:
    """How many system calls of each kind one process made, the one that made most."""
    return Counter(
        {
            name: max(Counter(re.findall(rf"^(\d+) +{name}\(", log.read_text(), re.MULTILINE)).values(), default=0)
            for name in CHANGES
        }
    )


def supervisor(sandbox: Sandbox, engine: Embedded) -> int:
    return run_sync(launch.supervisor(engine.store.folder(sandbox.id)))


def sh(sandbox: Sandbox, script: str) -> str:
    return sandbox.exec("sh", "-c", script).stdout.read()


def checkpoint(sandbox: Sandbox) -> None:
    sandbox.checkpoint()


def reset(sandbox: Sandbox) -> None:
    sandbox.reset(sandbox.checkpoint())


def fork(sandbox: Sandbox) -> None:
    (one,) = sandbox.fork(1)
    one.terminate()


def snapshot(sandbox: Sandbox) -> None:
    sandbox.spawn("sleep", "1000")
    sandbox.snapshot_filesystem(ttl=1)


def is_whole(sandbox: Sandbox) -> bool:
    """It has all its files and goes on, or it has ended and says so."""
    try:
        assert sh(sandbox, "cat /kept /folder/kept") == "kept\nkept\n"
        assert sandbox.reset(sandbox.checkpoint()) > 0
        return sh(sandbox, "cat /kept /folder/kept; echo more > /more; cat /more") == "kept\nkept\nmore\n"
    except SandboxNotRunningError:
        return sandbox.poll() == 137


def made(create: Callable[..., Sandbox]) -> Sandbox:
    sandbox = create()
    sh(sandbox, "mkdir -m 0700 /folder; echo kept > /kept; echo kept > /folder/kept; ln -s kept /link")
    return sandbox


@pytest.mark.parametrize(
    ("work", "fault"),
    [(work, "error=ENOSPC") for work in (checkpoint, reset, fork, snapshot)]
    + [(work, "signal=KILL") for work in (checkpoint, reset, snapshot)],
)
def test_any_step_may_fail(
    create: Callable[..., Sandbox], engine: Embedded, tmp_path: Path, work: Callable[[Sandbox], None], fault: str
) -> None:
    sandbox, log, told = made(create), tmp_path / "log", list[str]()
    with traced(supervisor(sandbox, engine), log):
        work(sandbox)
    found = calls(log)
    for name in WRITES if fault == "error=ENOSPC" else CHANGES:
        for number in sorted({min(found[name], 1), found[name]} - {0}):
            if sandbox.poll() is not None:
                sandbox = made(create)
            injected = ("-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={number}")
            with traced(supervisor(sandbox, engine), log, *injected):
                try:
                    work(sandbox)
                except Error as error:
                    told.append(f"{name} {number}: {error}")
            assert is_whole(sandbox), told
    assert told, "the control: every call that was to fail is one that is made"
    sandbox.terminate()
    eventually(lambda: engine.gc() == [])
