"""Whom a sandbox ends with: the process that owns it, or whoever has not called it for too long."""

from __future__ import annotations

import subprocess

import pytest

from openmodal.engines import Engine, lacking
from openmodal.errors import (
    InvalidError,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
    UnsupportedError,
)
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, SandboxClass, eventually, promise, python_starts

KILLED = """
    app = openmodal.App("contract")
    options = {argv[1]: "process" if argv[1] == "owner" else float(argv[2])}
    sandbox = openmodal.Sandbox.create(app=app, image=image, engine=argv[0], timeout=600, **options)
    sandbox.spawn("sleep", "54321")
    print(sandbox.id, flush=True)
    os.kill(os.getpid(), 9)
"""


def made_by_a_killed_program(engine_name: str, image: Image, *how: str) -> str:
    with python_starts(KILLED, engine_name, *how, image=image) as child:
        assert child.stdout
        id = child.stdout.readline().strip()
        assert child.wait(300) == -9
    return id


class TestLease:
    @promise("lease")
    @promise("many_processes")
    def test_nothing_is_left_of_a_program_that_was_killed(
        self, sandboxes: SandboxClass, engine: Engine, engine_name: str, image: Image
    ) -> None:
        """Although a command runs in it."""
        sandbox = sandboxes.from_id(made_by_a_killed_program(engine_name, image, "lease", "1"), engine=engine)
        eventually(lambda: sandbox.poll() is not None)
        assert sandbox.returncode == 124
        with pytest.raises(SandboxTimeoutError, match="lease"):
            sandbox.wait()
        with pytest.raises(SandboxTimeoutError, match="lease"):
            sandbox.renew()

    @promise("lease")
    def test_a_call_that_waits_renews_it(self, create: Create) -> None:
        sandbox = create("sh", "-c", "sleep 6; exit 3", lease=1.5)
        assert sandbox.exec("sleep", "2").returncode == 0
        sandbox.renew()
        assert sandbox.wait() == 3

    @promise("lease")
    def test_a_sandbox_without_one_is_renewed_in_vain(self, create: Create) -> None:
        sandbox = create("sh", "-c", "sleep 1; exit 3")
        sandbox.renew()
        with pytest.raises(TimeoutError):
            sandbox.wait(timeout=0.01)
        assert sandbox.wait() == 3


class TestOwner:
    @promise("owner")
    @promise("many_processes")
    def test_nothing_is_left_of_a_program_that_was_killed(
        self, sandboxes: SandboxClass, engine: Engine, engine_name: str, image: Image
    ) -> None:
        sandbox = sandboxes.from_id(made_by_a_killed_program(engine_name, image, "owner"), engine=engine)
        with pytest.raises(SandboxTerminatedError, match="owned"):
            sandbox.wait(timeout=300)
        assert sandbox.returncode == 137

    @promise("owner")
    def test_the_owner_is_any_process_and_may_change(self, create: Create) -> None:
        first, second = (subprocess.Popen(["sleep", "300"]) for _ in range(2))
        try:
            sandbox = create(owner=first.pid)
            sandbox.set_owner(second.pid)
            end(first)
            assert sandbox.exec("echo", "lives").stdout.read() == "lives\n"
            sandbox.set_owner(None)
            sandbox.set_owner("process")
            sandbox.set_owner(second.pid)
            end(second)
            with pytest.raises(SandboxTerminatedError, match="owned"):
                sandbox.wait(timeout=300)
            with pytest.raises(SandboxNotRunningError, match="owned"):
                sandbox.set_owner(None)
        finally:
            end(first)
            end(second)

    @promise("owner")
    def test_a_process_that_is_not_there_owns_nothing(self, create: Create) -> None:
        gone = subprocess.Popen(["true"])
        gone.wait()
        for wrong in (gone.pid, 0, -1, True, "me", 1.5, 2**31):
            with pytest.raises(InvalidError, match="owner"):
                create(owner=wrong)

    def test_an_engine_that_does_not_see_processes_says_so(self, sandbox: Sandbox, engine: Engine) -> None:
        if "owner" in lacking(engine):
            with pytest.raises(UnsupportedError, match="lease="):
                sandbox.set_owner("process")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


__all__ = ["TestLease", "TestOwner"]
