"""What holds a running sandbox, from what a kernel says of its process 1, and what root in it may do. Believes no plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from openmodal import _wire
from openmodal._command import contents, refusal
from openmodal._link import Link
from openmodal._spec import Info
from openmodal._wire import FileOp
from openmodal.engines import asked, groups
from openmodal.errors import EngineError

KEPT = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE SYS_CHROOT SETFCAP".split()
"""The capabilities that root in a sandbox has, on every engine (KEPT_CAPS in native/cage.c). PodSecurity's level "baseline" allows them."""

# In the kernel's order (linux/capability.h).
CAPABILITIES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast net_admin
net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon
bpf checkpoint_restore
""".split()

FILES = ("status", "uid_map", "net/dev")
TUNNELS = {"tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"}
"""Interfaces that each network namespace has where the machine has loaded ipip, sit, gre or their
like (the kernel's ip-sysctl.rst, `fb_tunnels_only_for_init_net`). They lead nowhere."""

_MOST_READ = 1 << 20  # bytes of one file


class Seen(msgspec.Struct, frozen=True):
    """What those files say, below a process's folder in /proc (proc(5))."""

    status: str
    uid_map: str
    interfaces: str


def seen(pid: int) -> Seen:
    """Look at a process of this machine."""
    return Seen(*(Path(f"/proc/{pid}/{name}").read_text() for name in FILES))


@contextmanager
def while_it_runs(id: str) -> Iterator[None]:
    """A read that fails in the block means that the sandbox has ended: raise ConnectionError."""
    try:
        yield
    except (OSError, KeyError, IndexError) as error:
        raise ConnectionResetError(f"the sandbox {id} has ended") from error


async def inside(link: Link, paths: Iterable[str]) -> dict[str, str]:
    """Have the agent read files of the sandbox's kernel; those that are not there are left out.
    That is no use of the sandbox, nor is what is asked on the link afterwards.

    Root in the sandbox cannot put others in their place: it may not mount.
    """
    await link.look()
    found: dict[str, str] = {}
    for path in paths:
        await link.send(_wire.file(FileOp.READ, path.encode(), user=b"0"))
        try:
            found[path] = (await contents(link, refusal, _MOST_READ)).decode()
        except EngineError:
            continue
    return found


def info(
    found: Seen,
    outside: str,
    limits: Mapping[str, float],
    runtime: str,
    disk: int | None,
    promised: Sequence[str] = groups.LIMITED,
) -> Info:
    """Tell of a sandbox.

    Args:
        found: of its process 1, or of gVisor.
        outside: the status of a process that is not locked in; "": the machine is another.
        limits: as `groups.held` tells them.
        runtime: as the sandbox's status tells it.
        disk: in MiB.
        promised: the limits without which the sandbox is degraded.
    """
    status, ids = fields(found.status), [line.split() for line in found.uid_map.splitlines()]
    names = {line.split(":")[0].strip() for line in found.interfaces.splitlines()[2:]}
    memory, pids = limits.get("memory"), limits.get("pids")
    if runtime == "gvisor":
        memory, pids = asked.within_gvisor(memory, pids)
    filtered = _filters(status) > (_filters(fields(outside)) if outside else 0)
    lacking = {"limits": not limits.keys() >= set(promised), "seccomp": not filtered}
    return Info(
        runtime=runtime,
        root=int(ids[0][1]),
        ids=sum(int(count) for _, _, count in ids),
        capabilities=_capabilities(status),
        no_new_privileges=status["NoNewPrivs"] == "1",
        seccomp=filtered,
        memory=None if memory is None else int(memory) >> 20,
        cpu=limits.get("cpu"),
        pids=None if pids is None else int(pids),
        disk=disk,
        network="outbound" if names - {"lo", *TUNNELS} else "none",
        degraded=tuple(name for name, lacks in lacking.items() if lacks),
    )


def moved(pid: int) -> tuple[int, int]:
    """How many bytes the network of a process of this machine has received and sent."""
    return counted(Path(f"/proc/{pid}/net/dev").read_text())


def counted(devices: str) -> tuple[int, int]:
    """How many bytes came and went, by such a file (proc(5)), but for loopback."""
    found = [
        words
        for name, _, rest in (line.partition(":") for line in devices.splitlines()[2:])
        if name.strip() != "lo"
        for words in [rest.split()]
    ]
    return sum(int(words[0]) for words in found), sum(int(words[8]) for words in found)


def fields(status: str) -> dict[str, str]:
    """The lines of a /proc/PID/status by name."""
    pairs = (line.partition(":") for line in status.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _filters(status: Mapping[str, str]) -> int:
    """How many filters of system calls there are: in another container, some are not the sandbox's. Linux counts them since 5.9."""
    return int(status.get("Seccomp_filters", status["Seccomp"] == "2"))


def _capabilities(status: Mapping[str, str]) -> tuple[str, ...]:
    """The names of what the process and its descendants can ever be allowed."""
    bits = int(status["CapBnd"], 16)
    return tuple(name for number, name in enumerate(CAPABILITIES) if bits >> number & 1)
