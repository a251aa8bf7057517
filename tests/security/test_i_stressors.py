"""I22. stress-ng's stressors, many kinds at once: what uses things up, and what a kernel has fallen over before."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded
from openmodal.image import Image
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.security.test_i_exhaustion import answers, gate, group_file  # noqa: F401  (`gate` is a fixture)

Create = Callable[..., Sandbox]

USES_UP = """
bigheap brk vm mmap stack malloc mlock memfd shm shm-sysv dev-shm fork vfork clone daemon spawn zombie pthread cpu pipe
epoll eventfd timerfd sigq sigpending inotify dentry dir hdd link symlink sem-sysv msg mq sock sockfd udp open resources
""".split()

ATTACKS = """
af-alg bad-altstack bind-mount bpf chroot dev enosys fanotify get handle io-uring key kill loop netlink-proc opcode
personality pidfd prctl procfs ptrace ramfs rawsock reboot remap rlimit seccomp set sigfd swap sysbadaddr sysfs sysinval
unshare userfaultfd usersyscall watchdog
""".split()

SECONDS, MEBIBYTES = 5, 512
BOUNDS = "--timeout 300 --temp-path /srv --hdd-bytes 32M --vm-bytes 64M --oomable".split()


@pytest.fixture(scope="module")
def stressed(engine: Embedded, armed: Image) -> Image:
    """The image of these tests, with stress-ng and its libraries."""
    program = shutil.which("stress-ng")
    if not program:
        pytest.skip("needs Debian's package stress-ng")
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", said)):
        armed = armed.add_local_file(str(Path(path).resolve()), path)
    armed.build(engine=engine)
    return armed


def known(kinds: list[str]) -> list[str]:
    """Those that this stress-ng has; their names come and go."""
    said = subprocess.run(["stress-ng", "--stressors"], capture_output=True, text=True, check=True).stdout.split()
    return [kind for kind in kinds if kind in said]


def tasks(sandbox: Sandbox) -> int:
    return int(group_file(sandbox, "pids", "pids.current", "pids.current"))


def memory(sandbox: Sandbox) -> int:
    return int(group_file(sandbox, "memory", "memory.usage_in_bytes", "memory.current"))


def test_limits_hold_and_all_others_work_under_many_kinds_of_stress(create: Create, stressed: Image) -> None:
    """I22: and at the end it can be ended."""
    kinds = known([*USES_UP, *ATTACKS])
    assert len(kinds) > 60
    sandbox, neighbour = create(image=stressed, memory=MEBIBYTES, disk=256), create()
    options = [word for kind in kinds for word in (f"--{kind}", "1")]
    stress = sandbox.spawn("stress-ng", *BOUNDS, *options, stdout=StreamType.DEVNULL, stderr=StreamType.DEVNULL)
    eventually(lambda: tasks(sandbox) > 60)  # the control: it has begun
    deadline, most = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline:
        most = max(most, tasks(sandbox))
        assert memory(sandbox) <= (MEBIBYTES + 8) << 20, "but for what the kernel cannot do without"
        assert answers(neighbour)
    assert stress.poll() is None
    assert most <= 512
    sandbox.terminate()
    assert sandbox.poll() == 137
