"""B. /proc, /sys, and the making of the sandbox."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal import _binary
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.security.attack import DENIED, call, opens, sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]

DANGEROUS = {
    "B1 sysrq": ("/proc/sysrq-trigger",),
    "B2 the core pattern": ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug"),
    "B8 binary formats": ("/proc/sys/fs/binfmt_misc/register",),
    "B17 numbers of processes and of namespaces": (
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/pid_max",
    ),
}


@pytest.mark.parametrize("what", DANGEROUS)
def test_nobody_writes_the_machines(what: str, inside: Sandbox, bare: Sandbox) -> None:
    paths = DANGEROUS[what]
    assert opens(inside, *paths) == []
    there = [path for path in paths if os.path.exists(path) and "binfmt_misc" not in path]
    assert not there or opens(bare, *paths), "the control"


def test_no_setting_of_the_kernel_can_be_written(inside: Sandbox, bare: Sandbox) -> None:
    """B4: not one of all."""
    script = "find /proc/sys -type f | xargs probe open | wc -l"
    assert int(sh(inside, "find /proc/sys -type f | wc -l")) > 200, "there is something to try"
    assert int(sh(inside, script)) == 0
    assert int(sh(bare, script)) > 100, "the control"


def test_the_kernels_memory_and_addresses_are_hidden(inside: Sandbox, bare: Sandbox) -> None:
    """B5: also its log."""
    for path in (
        "/proc/kcore",
        "/dev/mem",
        "/dev/kmem",
        "/dev/port",
        "/proc/kmsg",
        "/proc/kallsyms",
        "/proc/config.gz",
    ):
        assert sh(inside, f"head -c 1 {path} 2>/dev/null | wc -c").strip() == "0", path
    assert sh(bare, "head -c 1 /proc/kallsyms | wc -c").strip() == "1", "the control"


def test_nothing_of_sys_can_be_written_and_what_tells_most_is_hidden(inside: Sandbox) -> None:
    """B7: every file of it is tried."""
    assert int(sh(inside, "find /sys -type f 2>/dev/null | wc -l")) > 100, "there is something to try"
    assert sh(inside, "find /sys -type f 2>/dev/null | xargs probe open | head -3") == ""
    for path in ("firmware", "kernel/debug", "kernel/security", "kernel/tracing", "fs/bpf", "devices/virtual/powercap"):
        assert sh(inside, f"if test -e /sys/{path}; then ls -A /sys/{path}; fi") == "", path
    assert os.access("/sys/kernel/mm/transparent_hugepage/enabled", os.W_OK) or os.access("/sys/power/state", os.W_OK)


def test_covers_cannot_be_taken_away(inside: Sandbox, bare: Sandbox) -> None:
    """B10: neither remounted, nor unmounted, nor gone round by a new /proc."""
    for script in (
        "mount -o remount,rw /proc/sys",
        "umount /proc/sys",
        "umount /proc/kallsyms",
        "mount -t proc p /srv",
    ):
        assert not works(inside, script), script
    assert works(bare, "mount -t proc p /srv && umount /srv"), "the control"


def test_the_native_program_cannot_be_overwritten(create: Create, weaken: Weaken) -> None:
    """B11: as CVE-2019-5736 did: a command that is its own interpreter is the native program, and /proc leads to its file."""
    program = Path(_binary.find(Path("/nowhere")))
    before = hashlib.sha256(program.read_bytes()).digest()

    def opening_fails_with(sandbox: Sandbox) -> int:
        sandbox.filesystem.write_text("/tmp/om-loop", "#!/proc/self/exe box\n")
        sandbox.exec("chmod", "755", "/tmp/om-loop")
        loop = sandbox.spawn("/tmp/om-loop")  # reads its input to the end
        eventually(lambda: "/proc/self/exe" in sh(sandbox, f"cat /proc/{loop.pid}/cmdline"))
        try:
            return call(sandbox, "openat", -100, f"s:/proc/{loop.pid}/exe", 1)
        finally:
            loop.kill()

    assert opening_fails_with(create()) == errno.EACCES, (
        "its owner has no id inside, so nobody inside may ever write it"
    )
    assert opening_fails_with(weaken("seccomp", "caps")) == errno.EACCES
    assert call(create(), "openat", -100, "s:/etc/passwd", 1) == 0, "the control: what is the image's can be opened"
    assert hashlib.sha256(program.read_bytes()).digest() == before


def test_the_kernels_log_cannot_be_read(inside: Sandbox, bare: Sandbox) -> None:
    """B13: syslog(2)."""
    assert call(inside, "syslog", 3, "b:4096", 4096) in DENIED
    assert call(bare, "syslog", 3, "b:4096", 4096) == 0, "the control"


def test_a_process_cannot_give_itself_other_ids_or_clocks(inside: Sandbox) -> None:
    """B14: through the files that a new namespace is set up with."""
    for name in ("uid_map", "gid_map", "setgroups", "timens_offsets", "attr/current", "attr/exec"):
        assert not works(inside, f"echo '0 0 1' > /proc/self/{name}"), name
    assert works(inside, "echo 600 > /proc/self/oom_score_adj"), "the control: such files can be written"
    assert not works(inside, "echo -500 > /proc/self/oom_score_adj"), "and not for better than it was"
