"""What a container keeps from its root, and the flags that allow it. Looks only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Those that not every container has unless it is asked for them, by number (linux/capability.h).
_RIGHTS = {12: "NET_ADMIN", 19: "SYS_PTRACE", 21: "SYS_ADMIN", 27: "MKNOD"}
_ALL_IDS = (1 << 32) - 1


def lacking(root: Path = Path("/")) -> str:
    """The beginning of a sentence: what root lacks here, and the remedy; "" if nothing."""
    lines = _text(root / "proc/self/uid_map").splitlines()
    ids = sum(int(line.split()[2]) for line in lines)
    if lines and ids < _ALL_IDS:
        return f"root of this container has {ids} of the machine's ids only; run the container as the machine's root, not rootless"
    lacks = dict(_lacks(root))
    if not lacks:
        return ""
    return (
        f"root lacks {' and '.join(lacks)} in this container; start it with --privileged (Kubernetes: securityContext.privileged), "
        f"or with {' '.join(lacks.values())}"
    )


def _lacks(root: Path) -> Iterator[tuple[str, str]]:
    """What is lacking, and the flag of podman and Docker that gives it."""
    has = next(
        (int(line.split()[1], 16) for line in _text(root / "proc/self/status").splitlines() if "CapEff" in line), -1
    )
    if names := [name for number, name in _RIGHTS.items() if not has >> number & 1]:
        yield f"the rights {', '.join(names)}", f"--cap-add={','.join(names)}"
    reason = _refused(root / "proc/sys/net/ipv4/ip_forward")
    if reason == errno.EROFS:
        yield "a writable /proc/sys", "--security-opt unmask=ALL (Docker: systempaths=unconfined)"
    if reason and _text(root / "proc/self/attr/current").endswith("(enforce)"):
        yield "what AppArmor refuses", "--security-opt apparmor=unconfined"
    if "Seccomp:\t2" in _text(root / "proc/self/status") and _pivot_root_is_filtered():
        yield "the system call pivot_root", "--security-opt seccomp=unconfined"


def _refused(setting: Path) -> int:
    """The errno of opening a setting for writing: AppArmor checks open(2), not access(2)."""
    try:
        os.close(os.open(setting, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0


def _pivot_root_is_filtered() -> bool:
    """Whether a filter refuses the call before the kernel looks for the folder."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.pivot_root(b"", b"")
    return ctypes.get_errno() != errno.ENOENT


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip(" \n\0")
    except OSError:
        return ""
