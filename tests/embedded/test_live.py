"""What changes while a sandbox of this machine runs, where it could leave something behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded, cgroup, host, launch
from openmodal.errors import EngineError, SandboxNotRunningError
from openmodal.sandbox import Sandbox
from openmodal.testing.egress import reaches
from openmodal.testing.fixtures import Create, eventually

pytestmark = pytest.mark.embedded


def groups_of(sandbox: Sandbox) -> list[Path]:
    return cgroup.leftovers(host.hierarchies()).get(sandbox.id, [])


def frozen(sandbox: Sandbox) -> bool:
    files = [group / name for group in groups_of(sandbox) for name in ("freezer.state", "cgroup.freeze")]
    return any(file.exists() and file.read_text().strip() in ("FROZEN", "1") for file in files)


def test_a_supervisor_that_is_killed_leaves_nothing_stopped(create: Create, engine: Embedded) -> None:
    sandbox = create()
    sandbox.spawn("sleep", "54321")
    sandbox.pause()
    assert frozen(sandbox), "the control"
    supervisor = run_sync(launch.supervisor(engine.store.folder(sandbox.id)))
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not engine.store.alive(sandbox.id))
    engine.gc()
    assert groups_of(sandbox) == []
    with pytest.raises(SandboxNotRunningError):
        sandbox.resume()


def test_a_pause_is_quick_and_complete(create: Create) -> None:
    sandbox = create()
    for _ in range(10):
        sandbox.spawn("sh", "-c", "while :; do :; done")
    eventually(lambda: (sandbox.usage().processes or 0) >= 11)
    for _ in range(20):
        sandbox.pause()
        assert frozen(sandbox)
        sandbox.resume()
        assert not frozen(sandbox)


def test_a_sandbox_that_forks_all_the_time_is_paused_or_all_goes_on(create: Create) -> None:
    """A hostile sandbox begins new processes, and ends them, faster than the freezer stops them."""
    sandbox = create()
    for _ in range(4):
        sandbox.spawn("sh", "-c", "while :; do (:) & (:); done")
    eventually(lambda: (sandbox.usage().cpu or 0) > 0.1)
    for _ in range(5):
        begin = time.monotonic()
        refused = ""
        try:
            sandbox.pause()
        except EngineError as error:
            refused = str(error)
        assert bool(refused) != frozen(sandbox)
        assert bool(refused) != sandbox.status().paused
        assert not refused or "stop" in refused
        assert time.monotonic() - begin < 30
        assert sandbox.exec("echo", "on").stdout.read() == "on\n"


def test_one_that_began_without_a_network_gets_one(create: Create, outbound: tuple[str, int]) -> None:
    if os.geteuid() != 0:
        pytest.skip("a plain user's has no router")
    sandbox = create(block_network=True)
    assert not reaches(sandbox, *outbound)
    for _ in range(2):
        sandbox.set_network()
        assert reaches(sandbox, *outbound)
        assert (sandbox.usage().sent or 0) > 0
        sandbox.set_network(block_network=True)
        assert not reaches(sandbox, *outbound)
        assert sandbox.info().network == "none"


def test_two_at_once_change_its_network(create: Create, outbound: tuple[str, int]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sandbox = create()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda blocked: sandbox.set_network(block_network=blocked), [True, False] * 8))
    sandbox.set_network()
    assert reaches(sandbox, *outbound)
    sandbox.set_network(block_network=True)
    assert not reaches(sandbox, *outbound)


def test_folders_that_are_too_deep_are_told(create: Create) -> None:
    sandbox = create()
    script = """
        chain() { i=0; while [ $i -lt 100 ]; do mkdir d; cd d; i=$((i+1)); done; }
        mkdir all; n=0
        while [ $n -lt 11 ]; do
            cd /srv; mkdir next; cd next; chain; mv /srv/all/d . 2>/dev/null; cd /srv; mv next/d all; rmdir next; n=$((n+1))
        done
    """
    sandbox.exec("sh", "-c", script, workdir="/srv")
    with pytest.raises(EngineError, match="deep"):
        sandbox.diff()
