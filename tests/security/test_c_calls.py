"""C. System calls. Each is made as root of the sandbox; without the controls the kernel must take it, or refuse it for another reason."""

from __future__ import annotations

import errno
import platform
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.sandbox import Sandbox
from tests.security import attack
from tests.security.attack import DENIED, call, sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]

X86 = platform.machine() == "x86_64"

# The arguments do no harm where the call is not refused: nothing is there, nothing is changed, or
# it concerns the caller only.
CALLS: dict[str, tuple[tuple[object, ...], ...]] = {
    "C1 mount a file system": (("mount", "s:none", "s:/srv", "s:tmpfs", 0, 0),),
    "C2 make a user namespace": (("unshare", 0x10000000),),
    "C5 enter a namespace": (("setns", 0, 0),),
    "C7 mount in the new way": (
        ("open_tree", -100, "s:/", 1),
        ("fsopen", "s:tmpfs", 0),
        ("move_mount", -1, "s:x", -1, "s:y", 0),
        ("mount_setattr", -100, "s:/", 0, "b:32", 32),
    ),
    "C8 use the kernel's keys": (
        ("keyctl", 0, -3, 0),
        ("add_key", "s:user", "s:om", "s:x", 1, -2),
        ("request_key", "s:user", "s:om-none", 0, -2),
    ),
    "C10 count the processor's events": (("perf_event_open", "b:128", 0, -1, -1, 0),),
    "C11 handle page faults": (("userfaultfd", 0), ("userfaultfd", 1)),
    "C14 look into other processes": (("kcmp", 1, 1, 99, 0, 0), ("pidfd_getfd", 0, 0, 0)),
    "C16, C17 load a kernel, reboot, or drive the hardware": (
        ("kexec_load", 0, 17, 0, 0),
        ("reboot", 1, 1, 1, 0),
        *((("iopl", 3), ("ioperm", 0x80, 1, 1)) if X86 else ()),
    ),
    "C19 watch the whole machine": (
        ("fanotify_init", 0, 0),
        ("quotactl", 0, 0, 0, 0),
        ("swapon", "s:/none", 0),
        ("acct", "s:/none"),
        ("bpf", 9999, 0, 0),
        ("io_uring_setup", 1, "b:120"),
        ("init_module", 0, 0, "s:"),
        ("delete_module", "s:om-none", 0),
        ("open_by_handle_at", -1, "b:32", 0),
        ("name_to_handle_at", -100, "s:/", "b:128", "b:8", 0),
    ),
    "C20 set the clock": (("clock_settime", 0, 0), ("adjtimex", "n:0x4000")),
    "C22 run in another personality": (("personality", 0x0040000), ("personality", 0x0400000)),
    "C28 be scheduled before others": (("sched_setscheduler", 0, 1, "n:1"), ("setpriority", 0, 0, -5)),
    "C29 choose memory nodes": (("set_mempolicy", 0, 0, 0), ("get_mempolicy", 0, 0, 0, 0, 0)),
    "C32 change its security bits": (("prctl", 28, 0, 0, 0, 0), ("prctl", 47, 2, 21, 0, 0)),
}


@pytest.mark.parametrize("what", CALLS)
def test_root_of_a_sandbox_cannot(what: str, inside: Sandbox, bare: Sandbox, probe: Path) -> None:
    for words in CALLS[what]:
        assert call(inside, *words) in DENIED, words  # type: ignore[arg-type]
    taken = any(call(bare, *words) not in DENIED for words in CALLS[what])  # type: ignore[arg-type]
    assert taken or all(_is_unknown(probe, *words) for words in CALLS[what]), "the control"


def _is_unknown(probe: Path, name: object, *words: object) -> bool:
    """Whether this kernel does not have the call: the machine's root cannot make it either."""
    command = ["unshare", "--mount", str(probe), "call", str(attack.numbers()[str(name)]), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout == f"ERR {errno.ENOSYS}\n"


def test_processes_are_made_in_the_old_way_only(inside: Sandbox, weaken: Weaken) -> None:
    """C4: the flags of clone3 lie in memory, where no filter sees them; it is said not to exist, and libraries fall back."""
    assert call(inside, "clone3", "b:88", 8) == 38
    assert call(weaken("seccomp"), "clone3", "b:88", 8) == 22, "the control"


def test_a_debugger_works_on_its_own_children_and_not_on_process_1(inside: Sandbox, bare: Sandbox) -> None:
    """C13: also as a user."""
    for user in (None, "agent"):
        assert sh(inside, "probe trace own", user=user) == "OK 0\n"
        assert sh(inside, "probe trace 1", user=user).startswith("ERR")
        for name in ("environ", "mem", "maps", "root/", "fd/", "exe"):
            assert not works(inside, f"head -c 1 /proc/1/{name} >/dev/null && ls -d /proc/1/{name}", user=user), name
    assert sh(bare, "probe trace own") == "OK 0\n"
    assert works(bare, "ls /proc/1/fd/"), "the control"


def test_sockets_are_of_four_families(inside: Sandbox, weaken: Weaken, probe: Path) -> None:
    """C23: unix, IPv4, IPv6, and netlink's routes; in particular no AF_ALG (CVE-2026-31431), AF_VSOCK, AF_PACKET."""

    def families(said: str) -> set[int]:
        return {int(line.split()[0]) for line in said.splitlines()}

    made = {tuple(map(int, line.split())) for line in sh(inside, "probe sockets").splitlines()}
    assert {family for family, _, _ in made} == {1, 2, 10, 16}
    assert {protocol for family, _, protocol in made if family == 16} == {0}
    assert not any(kind == 3 for family, kind, _ in made if family in (2, 10)), "no raw ones"
    assert {protocol for family, _, protocol in made if family in (2, 10)} <= {0, 1, 6, 17, 58}
    open_ = weaken("seccomp", "caps").exec("probe", "families", timeout=500)
    if not families(open_.stdout.read()) - {1, 2, 10, 16}:
        on_machine = families(subprocess.check_output([probe, "families"], text=True))
        assert on_machine <= {1, 2, 10, 16}, "the control, on a kernel that has more"


@pytest.mark.skipif(not X86, reason="there is one way in on this CPU")
def test_there_is_no_other_way_into_the_kernel(inside: Sandbox, weaken: Weaken, probe: Path) -> None:
    """C25: 32-bit calls, which hide their arguments from filters (socketcall), kill; x32's do not exist."""
    killed = 128 + signal.SIGSYS
    open_ = weaken("seccomp")
    for way in ("i386", "socketcall") if _has_32_bit_calls(probe) else ():
        assert inside.exec("probe", "foreign", way).returncode == killed
        assert open_.exec("probe", "foreign", way).returncode != killed, "the control"
    assert sh(inside, "probe foreign x32") == "-38\n"


def _has_32_bit_calls(probe: Path) -> bool:
    """Whether this kernel has them: it then answers the program's getpid with its number."""
    with subprocess.Popen([probe, "foreign", "i386"], stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate()
    return said == f"{process.pid}\n"


def test_no_page_of_an_image_changes_for_anybody_else(inside: Sandbox, create: Create) -> None:
    """C26: the beginning of Dirty Pipe and Copy Fail: a page of the image in a pipe that is written to."""
    neighbour = create()
    before = sh(neighbour, "sha256sum /etc/passwd /bin/busybox")
    sh(inside, "probe splice /etc/passwd; probe splice /bin/busybox")
    assert sh(neighbour, "sha256sum /etc/passwd /bin/busybox") == before
    assert sh(create(), "sha256sum /etc/passwd /bin/busybox") == before
    sh(neighbour, "echo x >> /etc/passwd")
    assert sh(neighbour, "sha256sum /etc/passwd /bin/busybox") != before, "the control"


@pytest.mark.skipif(not X86, reason="the golden file is for x86_64")
def test_the_filter_lets_through_what_the_golden_file_says(inside: Sandbox, weaken: Weaken) -> None:
    """C31: every number is called, with zeros. One that is newly let through must be put into the file, on purpose."""
    golden = {*Path(__file__).with_name("calls-x86_64.txt").read_text().split(), "336"}  # uprobe: no filter is asked

    def through(sandbox: Sandbox) -> set[str]:
        names = {number: name for name, number in attack.numbers().items()}
        results = [line.split() for line in sh(sandbox, "probe calls").splitlines()]
        assert len(results) == 480
        return {names.get(int(number), number) for number, result in results if result not in ("1", "38")}

    passed = through(inside)
    assert passed <= golden
    # But for what this kernel does not have, or refuses zeros of.
    without = through(weaken("seccomp"))
    assert (golden & without) - passed == {"clone3"}
    assert {"keyctl", "unshare", "io_uring_setup"} & (without - golden), "the control"


def test_a_program_in_memory_runs_in_the_same_cage(inside: Sandbox, bare: Sandbox) -> None:
    """C34: it is allowed, and gains nothing."""
    script = "probe memfd /bin/busybox cat /proc/self/status"
    status = dict(line.split(":\t") for line in sh(inside, script).splitlines() if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"], status["CapBnd"]) == ("2", "1", "00000000800404fb")
    assert "Seccomp:\t0" in sh(bare, script), "the control"
