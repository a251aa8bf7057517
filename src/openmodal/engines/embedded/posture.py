"""What holds a running sandbox, read from /proc and the control groups of its process 1. Looks only; believes no plan."""

from __future__ import annotations

import os
from pathlib import Path

from openmodal._spec import Info
from openmodal.engines.embedded import cgroup, gvisor

_CAPABILITIES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast net_admin
net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon
bpf checkpoint_restore
""".split()


def read(id: str, folder: Path, supervisor: int, found: cgroup.Hierarchies, runtime: str) -> Info:
    """Tell of the sandbox whose supervisor this is. With gVisor it is that's kernel which is held.

    Raises:
        ConnectionError: it has ended meanwhile.
    """
    try:
        init = _init_of(supervisor)
        held = _sentry_of(init) if runtime == "gvisor" else init
        status, outside = _status(held), _status(supervisor)
        ids = [line.split() for line in Path(f"/proc/{init}/uid_map").read_text().splitlines()]
        interfaces = [line.split(":")[0].strip() for line in Path(f"/proc/{init}/net/dev").read_text().splitlines()[2:]]
    except (OSError, KeyError, IndexError) as error:
        raise ConnectionResetError(f"the sandbox {id} has ended") from error
    limits = cgroup.held(found, id, init)
    memory, pids = limits.get("memory"), limits.get("pids")
    if runtime == "gvisor":
        memory, pids = gvisor.inner(memory, pids)
    filtered = _filters(status) > _filters(outside)
    lacking = {"limits": len(limits) < 3, "seccomp": not filtered}
    return Info(
        runtime=runtime,
        root=int(ids[0][1]),
        ids=sum(int(count) for _, _, count in ids),
        capabilities=_names(int(status["CapBnd"], 16)),
        no_new_privileges=status["NoNewPrivs"] == "1",
        seccomp=filtered,
        memory=_mebibytes(memory),
        cpu=limits.get("cpu"),
        pids=None if pids is None else int(pids),
        disk=_size(folder / "disk.img"),
        network="outbound" if set(interfaces) - {"lo"} else "none",
        degraded=tuple(name for name, lacks in lacking.items() if lacks),
    )


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _init_of(supervisor: int) -> int:
    """The supervisor's child that is process 1 of a namespace of its own."""
    for child in _children(supervisor):
        if _status(child)["NSpid"].split()[-1] == "1":
            return child
    raise ProcessLookupError(supervisor)


def _sentry_of(init: int) -> int:
    """gVisor's kernel: a child of runsc, which is process 1."""
    for child in _children(init):
        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"runsc-sandbox"):
            return child
    raise ProcessLookupError(init)


def _status(pid: int) -> dict[str, str]:
    pairs = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _filters(status: dict[str, str]) -> int:
    """How many filters of system calls there are: in another container, some are not the sandbox's. Linux counts them since 5.9."""
    return int(status.get("Seccomp_filters", status["Seccomp"] == "2"))


def _names(bits: int) -> tuple[str, ...]:
    return tuple(name for number, name in enumerate(_CAPABILITIES) if bits >> number & 1)


def _mebibytes(size: float | None) -> int | None:
    return None if size is None else int(size) >> 20


def _size(disk: Path) -> int | None:
    return _mebibytes(os.stat(disk).st_size) if disk.exists() else None
