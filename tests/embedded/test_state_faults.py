"""Going back, branching and keeping, where somebody is killed, or several do it at once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded
from openmodal.errors import Error, SandboxNotRunningError, SandboxResetError
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually

pytestmark = pytest.mark.embedded

DEEP = 40

# Until it is killed.
CHANGING = """
import sys
from openmodal import Sandbox

sandbox = Sandbox.from_id(sys.argv[1], engine="embedded")
print("ready", flush=True)
while True:
    start = sandbox.checkpoint()
    for fork in sandbox.fork(2, tags={"fork": sys.argv[1]}):
        fork.terminate()
    sandbox.exec("sh", "-c", "echo later > /later")
    sandbox.reset(start)
    sandbox.snapshot_filesystem(ttl=1)
"""


def sh(sandbox: Sandbox, script: str) -> str:
    return sandbox.exec("sh", "-c", script).stdout.read()


def whole(sandbox: Sandbox) -> bool:
    try:
        return sh(sandbox, "cat /kept") == "kept\n"
    except SandboxResetError:  # what the killed one had asked for is still being done
        return False


def test_a_program_that_is_killed_at_any_step_leaves_the_sandbox_whole(create: Create, engine: Embedded) -> None:
    sandbox, chance = create(), random.Random(3)
    sh(sandbox, "echo kept > /kept")
    for _ in range(4):
        program = subprocess.Popen([sys.executable, "-c", CHANGING, sandbox.id], stdout=subprocess.PIPE)
        assert program.stdout
        with program, program.stdout as said:
            assert said.readline() == b"ready\n"
            time.sleep(chance.random() * 0.25)
            program.kill()
        eventually(lambda: whole(sandbox))
        assert sandbox.reset(sandbox.checkpoint()) > 0
        assert sh(sandbox, "cat /kept") == "kept\n"
        for fork in Sandbox.list(tags={"fork": sandbox.id}, engine=engine):
            fork.terminate()
    sandbox.terminate()
    # Snapshots that have no name, or whose second is over.
    eventually(lambda: engine.gc() == [])


def test_two_that_reset_fork_and_end_it_at_once_are_served_or_told(create: Create, engine: Embedded) -> None:
    for _ in range(2):
        sandbox = create()
        sh(sandbox, "echo kept > /kept")

        def forks(sandbox: Sandbox = sandbox) -> None:
            for fork in sandbox.fork(2):
                with fork:
                    assert sh(fork, "cat /kept 2>/dev/null") in ("kept\n", "")

        def ends(sandbox: Sandbox = sandbox) -> None:
            time.sleep(0.1)
            sandbox.terminate()

        works: list[Callable[[], object]] = [forks, sandbox.reset, sandbox.checkpoint, forks, ends, sandbox.reset]
        with ThreadPoolExecutor(len(works)) as pool:
            done = [pool.submit(work) for work in works]
        told = [error for each in done if (error := each.exception())]
        assert all(isinstance(error, SandboxNotRunningError | SandboxResetError) for error in told), told
        assert sandbox.poll() == 137
    assert engine.gc() == []


def test_forty_checkpoints_deep_all_is_there(create: Create, engine: Embedded) -> None:
    sandbox = create()
    for number in range(DEEP):
        sh(sandbox, f"echo {number} > /n{number}; echo {number} > /same")
        sandbox.checkpoint()
    everything = "".join(f"{number}\n" for number in range(DEEP))
    show = f"cd /; cat {' '.join(f'n{number}' for number in range(DEEP))} same"
    assert sh(sandbox, show) == f"{everything}{DEEP - 1}\n"
    (fork,) = sandbox.fork()
    with fork:
        assert sh(fork, show) == f"{everything}{DEEP - 1}\n"
    assert len(run_sync(engine._generations.now(sandbox.id)).own) <= 33


def test_its_end_during_a_snapshot_is_told(create: Create, engine: Embedded) -> None:
    sandbox = create()
    sh(sandbox, "i=0; while [ $i -lt 3000 ]; do echo $i > /tmp/$i; i=$((i+1)); done")
    sandbox.spawn("sh", "-c", "while :; do echo >> /log; done")
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(sandbox.snapshot_filesystem, ttl=60)
        time.sleep(0.05)
        sandbox.terminate()
        error = taken.exception()
    # It may have been faster.
    assert error is None or isinstance(error, SandboxNotRunningError), error
    assert isinstance(error, Error | None)
    assert engine.gc() == []
