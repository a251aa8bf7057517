"""R. Faults that tests/embedded/test_faults.py does not have: controls that cannot be applied, broken state, limits of the caller."""

from __future__ import annotations

import base64
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal import _binary
from openmodal._args import CONTROLS
from openmodal.app import App
from openmodal.engines.embedded import Embedded, network
from openmodal.errors import EngineError, Error, InvalidError, SandboxNotRunningError, SandboxTimeoutError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually, python, python_starts
from tests.security.attack import ALL_CONTROLS, Weakened, call, sh

Create = Callable[..., Sandbox]

# -------------------------------------------------------------------------------------- fail closed

FILL = """
import ctypes
libc = ctypes.CDLL(None)
def fill(count):
    # Filters that allow everything, until the kernel takes no more (32,768 steps in all); `count` steps each.
    steps = b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f" * count
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))
    program = Program(count, steps)
    while libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0:
        pass
libc.prctl(38, 1, 0, 0, 0)
for count in (4096, 512, 64, 8):
    fill(count)
"""

ATTEMPTS = """
given = dict(app=openmodal.App("attack"), image=image, engine=argv[0], timeout=60)
try:
    openmodal.Sandbox.create(**given).terminate()
    print("created")
except openmodal.EngineError as error:
    print(error)
with openmodal.Sandbox.create(allow_degraded=[argv[1]], **given) as sandbox:
    print(sandbox.info().degraded, sandbox.exec("echo", "works").stdout.read().strip())
os.environ["OPENMODAL_ALLOW_DEGRADED"] = argv[1]
with openmodal.Sandbox.create(**given) as sandbox:
    print(sandbox.info().degraded)
"""


def test_without_a_filter_there_is_no_sandbox_unless_that_is_allowed(engine_name: str, armed: Image) -> None:
    """R53: the kernel takes no further filter."""
    refused, degraded, configured = python(FILL + ATTEMPTS, engine_name, "seccomp", image=armed).splitlines()
    assert "seccomp" in refused
    assert 'allow_degraded=["seccomp"]' in refused
    assert (degraded, configured) == ("('seccomp',) works", "('seccomp',)")


def test_without_limits_there_is_no_sandbox_unless_that_is_allowed(engine_name: str, armed: Image) -> None:
    """R28: no control groups are mounted."""
    head = "import base64, os, pickle, sys; import openmodal; argv = sys.argv[2:]"
    program = f"{head}\nimage = pickle.loads(base64.b64decode(sys.argv[1]))\n{ATTEMPTS}"
    packed = base64.b64encode(pickle.dumps(armed)).decode("ascii")
    command = ["unshare", "-m", "sh", "-c", 'umount -R -l /sys/fs/cgroup; exec "$@"', "sh"]
    command += [sys.executable, "-c", program, packed, engine_name, "limits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, degraded, configured = done.stdout.splitlines()
    assert "memory, pids, cpu" in refused
    assert 'allow_degraded=["limits"]' in refused
    assert (degraded, configured) == ("('limits',) works", "('limits',)")


def test_where_everything_can_be_applied_nothing_is_degraded(create: Create) -> None:
    """R28: allowing is not asking for it."""
    info = create(allow_degraded=list(CONTROLS)).info()
    assert (info.degraded, info.seccomp, info.pids) == ((), True, 512)


@pytest.mark.parametrize("value", [["everything"], "limits", ["seccomp", "nnp"]])
def test_unknown_controls_are_refused(create: Create, value: object) -> None:
    """R28: before anything is made."""
    with pytest.raises(InvalidError, match="allow_degraded"):
        create(allow_degraded=value)


@pytest.mark.parametrize("control", ALL_CONTROLS)
def test_the_released_program_leaves_no_control_out(engine: Embedded, armed: Image, control: str) -> None:
    """The switch of these tests is not in it."""
    program = Path(_binary.find(engine.store.state))
    weak = Weakened(program, (control,))
    with pytest.raises(EngineError, match="weaken"):
        Sandbox.create(app=App("attack"), image=armed, engine=weak, timeout=30)
    assert b"weaken" not in program.read_bytes()


def test_the_switch_of_these_tests_is_in_the_test_program_only(weak_program: Path) -> None:
    """The control of the test above."""
    assert b"weaken" in weak_program.read_bytes()


# ------------------------------------------------------------------------------------------- faults


def test_a_sandbox_outlives_its_maker_and_ends_at_its_timeout(engine: Embedded, engine_name: str, armed: Image) -> None:
    """R02: killed while the sandbox runs."""
    source = """
        sandbox = openmodal.Sandbox.create(app=openmodal.App("attack"), image=image, engine=argv[0], timeout=6)
        print(sandbox.id, flush=True)
        signal.pause()
    """
    with python_starts(source, engine_name, image=armed) as maker:
        assert maker.stdout is not None
        id = maker.stdout.readline().strip()
        maker.send_signal(signal.SIGKILL)
    sandbox = Sandbox.from_id(id, engine=engine)
    assert sh(sandbox, "echo alive") == "alive\n"
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait(timeout=60)


@pytest.mark.parametrize("damage", ["", "{", "null", '{"id": 7}', "\0" * 4096])
def test_a_broken_state_file_costs_no_sandbox(engine: Embedded, create: Create, damage: str) -> None:
    """R13: listing goes on, and the sandbox can be used and ended."""
    sandbox, other = create(), create()
    (engine.store.folder(sandbox.id) / "status.json").write_text(damage)
    assert other.id in [found.id for found in Sandbox.list(engine=engine)]
    assert sh(sandbox, "echo alive") == "alive\n"
    sandbox.terminate()
    assert not engine.store.folder(sandbox.id).exists()


def test_too_few_descriptors_are_told_and_leave_nothing(engine: Embedded, create: Create) -> None:
    """R17: in the middle of create."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    create()  # so that nothing is opened for the first time
    before = set(os.listdir("/proc/self/fd"))
    ids = engine.store.ids()
    free = [number for number in range(256) if str(number) not in before]
    failed = 0
    for spare in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
        made = None
        try:
            made = create()
        except (OSError, Error):
            failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if made:
            made.terminate()
    assert failed > 2, "the control"
    eventually(lambda: engine.gc() is not None and engine.store.ids() == ids)  # removing takes descriptors, too
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1, "an idle link may have come"
    create().terminate()


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.03, 0.1, 0.3])
def test_a_timeout_that_comes_at_any_moment_is_a_timeout(engine: Embedded, create: Create, seconds: float) -> None:
    """R23: during create, or during a command."""
    with pytest.raises((SandboxTimeoutError, EngineError)) as caught:
        create(timeout=seconds).exec("sleep", "54321")
    assert "timeout" in str(caught.value) or isinstance(caught.value, EngineError)
    eventually(lambda: not [id for id in engine.store.ids() if engine.store.alive(id)])


def test_without_a_firewall_program_no_rules_are_pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """R29: a network without rules is never made."""
    monkeypatch.setattr(network, "tool", lambda *names: "/usr/bin/nsenter" if names == ("nsenter",) else None)
    with pytest.raises(EngineError, match="iptables"):
        network.Router._load(tmp_path / "none", network.router_rules((), ()))


def test_a_finished_sandbox_has_no_info(create: Create) -> None:
    """R10: and says why."""
    sandbox = create()
    assert sandbox.info().network == "outbound"
    sandbox.terminate()
    with pytest.raises(SandboxNotRunningError, match="terminated"):
        sandbox.info()
    blocked = create(block_network=True, memory=100, cpu=0.5, disk=32)
    info = blocked.info()
    assert (info.network, info.memory, info.cpu, info.disk, info.ids) == ("none", 100, 0.5, 32, 65_536)
    assert call(blocked, "getpid") == 0
