"""What a sandbox is made of, on another kernel: ids, devices, control groups; and that nothing of it is left, whoever dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from typing import BinaryIO

import pytest

from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded, launch
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually

LAST_SLOT = 28_671  # as native/ids.h says
BASE = 0x10000000
HARMLESS = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()


def take_slots(file: BinaryIO, below: int) -> None:
    """Take all free slots below that one, as if sandboxes had them, until the file is closed."""
    for number in range(below):
        with contextlib.suppress(BlockingIOError):  # a sandbox has it
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))


@pytest.mark.root
def test_the_highest_ids_work(create: Create) -> None:
    """Half of all sandboxes did not start: older kernels take no `gid=` of 2^31 and more for devpts."""
    create()  # the file of slots is there
    with open("/run/openmodal/slots", "r+b") as file:
        sandbox = create()
        while sandbox.info().root != BASE + LAST_SLOT * 65536:  # a sandbox has ended meanwhile, and its slot is free
            take_slots(file, LAST_SLOT)
            sandbox = create()
    terminal = sandbox.exec("sh", "-c", "stat -c '%u %g' $(tty)", pty=True)
    assert terminal.stdout.read().split() == ["0", "5"]
    owned = sandbox.exec("sh", "-c", "touch /srv/x && chown 65534:65534 /srv/x && stat -c '%u %g' /srv/x")
    assert owned.stdout.read() == "65534 65534\n"


@pytest.mark.user
def test_a_users_sandbox_has_the_subordinate_ids(create: Create) -> None:
    sandbox = create()
    info = sandbox.info()
    assert (info.root, info.ids) == (os.getuid(), 65537)
    assert (
        sandbox.exec("sh", "-c", "touch /srv/x && chown 1000:50 /srv/x && stat -c '%u %g' /srv/x").stdout.read()
        == "1000 50\n"
    )


def test_only_harmless_devices_are_there_and_work(sandbox: Sandbox) -> None:
    assert sandbox.exec("ls", "/dev").stdout.read().split() == HARMLESS
    script = (
        "head -c 4 /dev/zero | od -An -c; echo x > /dev/null && head -c 1 /dev/urandom | wc -c; ! echo x > /dev/full"
    )
    assert sandbox.exec("sh", "-c", script).returncode == 0


def test_the_limits_are_those_of_a_control_group_of_its_own(create: Create) -> None:
    """Read from outside: what the kernel holds is what was asked for."""
    info = create(memory=96, cpu=0.5).info()
    assert (info.memory, info.cpu, info.pids, info.degraded) == (96, 0.5, 512, ())


def test_processes_beyond_the_limit_are_not_made(create: Create) -> None:
    script = "i=0; while [ $i -lt 600 ]; do sleep 54321 & i=$((i+1)); echo $i; done"
    refused = create(timeout=900).exec("sh", "-c", script)
    assert refused.returncode != 0
    assert "fork" in refused.stderr.read()
    assert 400 < int(refused.stdout.read().split()[-1]) < 512


def test_a_killed_supervisor_leaves_a_sandbox_that_is_told_as_lost_and_nothing_else(
    create: Create, engine: Embedded
) -> None:
    sandbox = create()
    sandbox.spawn("sleep", "54321")
    os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
    eventually(lambda: sandbox.poll() == 137, seconds=60)
    sandbox.terminate()
    assert engine.gc() == []
    assert not list(engine.store.ids())


def test_a_killed_program_leaves_what_ends_by_itself(create: Create, engine: Embedded) -> None:
    """The program dies right after the creation, by the signal that nobody can catch."""
    source = (
        "import os, sys, openmodal\n"
        "image = openmodal.Image.from_scratch()\n"
        "sandbox = openmodal.Sandbox.create(image=image, engine='embedded', timeout=20)\n"
        "print(sandbox.id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -9, done.stderr
    sandbox = Sandbox.from_id(done.stdout.strip(), engine=engine)
    eventually(lambda: sandbox.poll() == 124, seconds=120)


def test_doctor_says_that_sandboxes_run_and_so_they_do(create: Create) -> None:
    command = [sys.executable, "-m", "openmodal.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    said = json.loads(done.stdout)
    wrong = [check for check in said["checks"] if check["required"] and not check["ok"]]
    assert (done.returncode, said["works"], wrong) == (0, True, [])
    assert create().exec("true").returncode == 0
