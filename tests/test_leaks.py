"""The leak check must see what is left behind: each test leaves one thing, and looks whether it is told of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import leaks

NAME = f"openmodal-leak-{uuid.uuid4().hex[:8]}"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def a_child() -> Iterator[str]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield f"process: {process.pid} sleep 60"
        process.kill()


@contextmanager
def a_daemon() -> Iterator[str]:
    """Double-forked, in a session of its own, as a supervisor is."""
    program = (
        "import os\n"
        "if pid := os.fork(): print(pid, flush=True); os._exit(0)\n"
        "os.setsid(); os.closerange(0, 3); os.execv('/bin/sleep', ['sleep', '59'])"
    )
    pid = int(run(sys.executable, "-c", program))
    while leaks.Process(pid).argv != ["sleep", "59"]:
        time.sleep(0.01)
    yield f"process: {pid} sleep 59"
    os.kill(pid, signal.SIGKILL)


@contextmanager
def a_folder(parent: str) -> Iterator[str]:
    path = Path(parent, NAME)
    path.mkdir(parents=True)
    try:
        yield f"file: {path}"
    finally:
        path.rmdir()


@contextmanager
def a_sandbox_folder() -> Iterator[str]:
    with a_folder(os.path.realpath(os.environ["OPENMODAL_HOME"]) + "/sandboxes") as line:
        yield line


@contextmanager
def a_mount() -> Iterator[str]:
    path = Path(os.path.realpath(os.environ["OPENMODAL_HOME"]), NAME)
    path.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", str(path))
    yield f"mount: {path}"
    run("umount", str(path))
    path.rmdir()


@contextmanager
def a_cgroup() -> Iterator[str]:
    hierarchy = list(leaks._hierarchies())[-1]
    path = hierarchy / NAME / "inner"
    path.mkdir(parents=True)
    yield f"cgroup: {path}"
    path.rmdir()
    path.parent.rmdir()


@contextmanager
def an_interface() -> Iterator[str]:
    name = f"leak{uuid.uuid4().hex[:6]}"
    run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    yield f"interface: host {name}"
    run("ip", "link", "delete", name)


@contextmanager
def a_loop_device() -> Iterator[str]:
    path = Path(os.path.realpath(os.environ["OPENMODAL_HOME"]), NAME)
    path.write_bytes(bytes(1 << 20))
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink)
        device = run("losetup", "--find", "--show", str(path))
        stack.callback(run, "losetup", "--detach", device)
        yield f"loop device: {os.path.basename(device)} {path}"


@contextmanager
def a_judges_table() -> Iterator[str]:
    name = f"{leaks.JUDGE}{1 << 30}"  # there is no such process
    run("nft", "add", "table", "inet", name)
    yield f"table: {name}"
    run("nft", f"add table inet {name}; delete table inet {name}")  # a judge that begins has removed it, perhaps


@pytest.fixture
def whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one run alone: it looks at the places that workers share."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.mark.parametrize("leak", [a_child, a_daemon, lambda: a_folder(tempfile.gettempdir())])
def test_a_leak_is_reported(leak: Callable[[], AbstractContextManager[str]]) -> None:
    before = leaks.take()
    with leak() as line:
        assert line in leaks.take().since(before, leaks.ALLOWED)


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm"])
@pytest.mark.usefixtures("whole_machine")
def test_a_file_in_a_shared_place_is_reported(folder: str) -> None:
    before = leaks.take()
    with a_folder(folder) as line:
        assert line in leaks.take().since(before, leaks.ALLOWED)


@pytest.mark.root
@pytest.mark.parametrize("leak", [a_sandbox_folder, a_mount, a_cgroup, an_interface, a_loop_device, a_judges_table])
def test_a_leak_that_root_can_make_is_reported(leak: Callable[[], AbstractContextManager[str]]) -> None:
    before = leaks.take()
    with leak() as line:
        after = leaks.take()
    # Interfaces are not reported while other runs have sandboxes; here they have none, whatever is
    # true.
    before, after = (dataclasses.replace(ledger, foreign=False) for ledger in (before, after))
    assert line in after.since(before, leaks.ALLOWED)


@pytest.fixture(scope="class")
def shared() -> Iterator[str]:
    with a_folder(tempfile.gettempdir()) as line:
        yield line


class TestWhatSeveralTestsShare:
    def test_a_test_before_it_is_made(self) -> None:
        """How it is after this one is not how it is before the next."""

    def test_it_is_no_leak_of_the_test_that_it_is_made_for(self, shared: str, no_leaks: leaks.Check) -> None:
        assert shared in leaks.take().since(leaks.Ledger({kind: {} for kind in leaks.KINDS}, foreign=False), {})
        assert shared not in leaks.compare(no_leaks.before, leaks.ALLOWED)[0]

    def test_what_is_new_is_of_all_when_the_check_is_told_so(self, no_leaks: leaks.Check) -> None:
        with a_child() as line:
            assert line in leaks.take(leaks.ON_MACHINE).since(no_leaks.before, leaks.ALLOWED)
            no_leaks.renew()
            assert line not in leaks.take(leaks.ON_MACHINE).since(no_leaks.before, leaks.ALLOWED)


def test_what_is_allowed_is_not_reported() -> None:
    before = leaks.take()
    with a_folder(tempfile.gettempdir()) as line:
        allowed = {"file": (line.partition(" ")[2],)}
        assert line not in leaks.take().since(before, allowed)


def test_another_runs_process_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = leaks.take()
    with monkeypatch.context() as patch:
        patch.setenv("OPENMODAL_TEST_RUN", "somebody else's")
        other = subprocess.Popen(["sleep", "60"])
    with other:
        found = leaks.take().since(before, leaks.ALLOWED)
        other.kill()
    assert f"process: {other.pid} sleep 60" not in found
