"""Promises of native/seccomp.py: the filter is run here, step by step, for every number and for the arguments that matter."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
X86_64, I386 = 0xC000003E, 0x40000003

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def seccomp() -> ModuleType:
    spec = importlib.util.spec_from_file_location("openmodal_seccomp", NATIVE / "seccomp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Filter:
    def __init__(self, seccomp: ModuleType) -> None:
        self.cpu, self.numbers = seccomp.target(["cc"])
        self.steps: list[tuple[int, int, int, int]] = seccomp.program(self.cpu, self.numbers)
        self.native: int = seccomp.AUDIT_ARCH[self.cpu]

    def verdict(self, call: int | str, *arguments: int, architecture: int = 0) -> int:
        number = self.numbers[call] if isinstance(call, str) else call
        data = {0: number, 4: architecture or self.native}
        data |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate((*arguments, 0, 0, 0, 0, 0, 0)[:6])}
        at = loaded = 0
        while True:
            code, yes, no, operand = self.steps[at]
            at += 1
            match code:
                case 0x20:
                    loaded = data[operand]
                case 0x06:
                    return operand
                case 0x05:
                    at += operand
                case 0x15:
                    at += yes if loaded == operand else no
                case 0x35:
                    at += yes if loaded >= operand else no
                case 0x45:
                    at += yes if loaded & operand else no
                case _:
                    raise AssertionError(hex(code))


@pytest.fixture(scope="module")
def filter_(seccomp: ModuleType) -> Filter:
    return Filter(seccomp)


def test_every_number_has_the_verdict_of_its_name(seccomp: ModuleType, filter_: Filter) -> None:
    names = {number: name for name, number in filter_.numbers.items()}
    for number in range(1024):
        name = names.get(number)
        if name in seccomp.by_argument():
            continue
        refused = seccomp.EPERM if name in seccomp.PRIVILEGED else seccomp.ENOSYS
        expected = seccomp.ALLOW if name in seccomp.ALLOWED else refused
        assert filter_.verdict(number) == expected, (number, name)


def test_what_has_been_part_of_escapes_is_denied(seccomp: ModuleType, filter_: Filter) -> None:
    names = """
    acct add_key bpf clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen init_module io_uring_enter
    io_uring_register io_uring_setup kcmp kexec_load keyctl lookup_dcookie memfd_secret mount mount_setattr move_mount
    name_to_handle_at open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root quotactl reboot remap_file_pages request_key
    setns settimeofday swapon syslog umount2 unshare userfaultfd
    """.split()
    for name in names:
        assert filter_.verdict(name) in (seccomp.EPERM, seccomp.ENOSYS), name
    assert not {*names, *seccomp.DENIED, *seccomp.PRIVILEGED} & set(seccomp.ALLOWED)


# Who asks, and goes on from this errno only (or best): what a kernel may be built without does not
# exist.
NOT_THERE = {
    "io_uring_setup": "libuv, MariaDB, liburing: threads instead",
    "io_setup": "InnoDB: its own threads instead of native AIO",
    "keyctl": "pam_keyinit: a session without keyrings, where EPERM ends the login",
    "add_key": "Kerberos: a cache in a file",
    "get_mempolicy": "libnuma, the JVM: a machine without NUMA",
    "set_mempolicy": "the same",
    "mbind": "the same",
    "perf_event_open": "perf stat: counts nothing and runs the command",
    "userfaultfd": "collectors of garbage: signals instead",
    "name_to_handle_at": "systemd: inode numbers instead",
    "kcmp": "systemd, Mesa: other ways of comparing",
    "modify_ldt": "Wine: 64-bit programs only",
    "memfd_secret": "locked memory instead",
    "process_madvise": "jemalloc: madvise instead",
    "lsm_get_self_attr": "libapparmor, libselinux: /proc instead",
    "file_getattr": "chattr: the ioctl instead",
    "bpf": "systemd: goes on without",
}


def test_what_a_kernel_may_lack_is_said_not_to_exist(seccomp: ModuleType, filter_: Filter) -> None:
    for name, who in NOT_THERE.items():
        if name in filter_.numbers:
            assert filter_.verdict(name) == seccomp.ENOSYS, who


def test_what_takes_a_privilege_is_not_permitted(seccomp: ModuleType, filter_: Filter) -> None:
    """As for everybody without it: `mount` says that one must be superuser, `hostname` and `unshare` likewise."""
    for name in (
        "mount",
        "umount2",
        "unshare",
        "setns",
        "sethostname",
        "reboot",
        "settimeofday",
        "syslog",
        "init_module",
    ):
        assert filter_.verdict(name) == seccomp.EPERM, name


def test_sockets_that_cannot_be_had_are_refused_as_by_a_kernel_without_them(
    seccomp: ModuleType, filter_: Filter
) -> None:
    """libaudit takes these for a kernel without auditing, and EPERM for a failure: no useradd, su, login."""
    for protocol, who in {9: "libaudit", 4: "ss", 15: "udev", 12: "nft", 16: "wpa_supplicant"}.items():
        assert filter_.verdict("socket", 16, 3, protocol) == seccomp.EPROTONOSUPPORT, who
    for family, who in {
        38: "cryptsetup",
        40: "systemd",
        17: "dhclient",
        31: "bluez",
        29: "can-utils",
        3: "ifconfig",
    }.items():
        assert filter_.verdict("socket", family, 3, 0) == seccomp.EAFNOSUPPORT, who


def test_no_filter_is_attached_to_a_socket(seccomp: ModuleType, filter_: Filter) -> None:
    """Compiled, it would lie in the whole machine's memory for such; ping, which asks, goes on without."""
    for option in range(80):
        expected = seccomp.ENOPROTOOPT if option in (26, 50, 51, 52) else seccomp.ALLOW
        assert filter_.verdict("setsockopt", 3, 1, option) == expected, option
        assert filter_.verdict("setsockopt", 3, 1 | 1 << 32, option) == expected, "the kernel looks at 32 bits"
        for level in (0, 6, 17, 41, 270):
            assert filter_.verdict("setsockopt", 3, level, option) == seccomp.ALLOW


def test_sockets_are_of_four_families(seccomp: ModuleType, filter_: Filter) -> None:
    allowed = {
        (family, protocol)
        for family in range(64)
        for protocol in range(300)
        if filter_.verdict("socket", family, 1, protocol) == seccomp.ALLOW
    }
    internet = {(family, protocol) for family in (2, 10) for protocol in (0, 1, 6, 17, 58)}
    assert allowed == {(1, protocol) for protocol in range(300)} | internet | {(16, 0)}
    for sctp_or_mptcp in (132, 262):
        assert filter_.verdict("socket", 2, 1, sctp_or_mptcp) == seccomp.EPROTONOSUPPORT, "so programs fall back to TCP"


def test_processes_are_made_without_namespaces(seccomp: ModuleType, filter_: Filter) -> None:
    assert filter_.verdict("clone", 0x003D0F00) == seccomp.ALLOW  # a thread
    assert filter_.verdict("clone", 0x01200011) == seccomp.ALLOW  # a fork
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert filter_.verdict("clone", flag | 17) == seccomp.EPERM
    assert filter_.verdict("clone3") == seccomp.ENOSYS


def test_nobody_types_into_another_ones_terminal(seccomp: ModuleType, filter_: Filter) -> None:
    assert filter_.verdict("ioctl", 0, 0x5412) == filter_.verdict("ioctl", 0, 0x541C) == seccomp.EPERM
    assert filter_.verdict("ioctl", 0, 0x5412 | 1 << 32) == seccomp.EPERM  # the kernel looks at 32 bits
    assert filter_.verdict("ioctl", 0, 0x5413) == seccomp.ALLOW


def test_personality_is_harmless(seccomp: ModuleType, filter_: Filter) -> None:
    assert filter_.verdict("personality", 0xFFFFFFFF) == filter_.verdict("personality", 0) == seccomp.ALLOW
    for bits in (0x0040000, 0x0400000, 0x0100000):
        assert filter_.verdict("personality", bits) == seccomp.EPERM


def test_only_the_native_way_in(seccomp: ModuleType, filter_: Filter) -> None:
    assert filter_.verdict(20, architecture=I386 if filter_.native == X86_64 else X86_64) == seccomp.KILL
    assert filter_.verdict(0x40000000 | 39) == seccomp.ENOSYS


def test_both_cpus_know_every_allowed_name_they_can(seccomp: ModuleType, filter_: Filter) -> None:
    if filter_.cpu == "x86_64":
        assert set(seccomp.ALLOWED) <= set(filter_.numbers)
    assert {"execve", "openat", "read", "write", "futex", "newfstatat"} <= set(filter_.numbers), sys.platform
