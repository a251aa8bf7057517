"""What holds a running box: the processes to look at are found from its supervisor."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from openmodal._files import write
from openmodal._spec import Info
from openmodal.engines import asked, groups, posture
from openmodal.engines.embedded import cgroup, egress

_EXPECTED = "network.expected"


def expect_network(folder: Path) -> None:
    """Note that the sandbox should have an interface: its helper may die."""
    write(f"{folder}/{_EXPECTED}", b"")


def read(id: str, folder: Path, supervisor: int, found: groups.Hierarchies, runtime: str, disk: int | None) -> Info:
    """Tell of the sandbox whose supervisor this is, and which has a `disk` of so many MiB.

    With gVisor the process that is held is gVisor's kernel.

    Raises:
        ConnectionError: it has ended meanwhile.
    """
    with posture.while_it_runs(id):
        init, outside = _init_of(supervisor), _status(supervisor)
        seen = posture.seen(init)
        if runtime == "gvisor":
            seen = replace(seen, status=_status(_sentry_of(init)))
        limits = groups.held(found, dict.fromkeys(groups.LIMITED, f"{cgroup.PARENT}/{id}"), init)
        if (folder / egress.POLICY).exists():
            limits = asked.beside_gate(limits)
        info = posture.info(seen, outside, limits, runtime, disk)
        lacks = info.network == "none" and (folder / _EXPECTED).exists()
        return replace(info, degraded=(*info.degraded, "network")) if lacks else info


def moved(supervisor: int) -> tuple[int, int]:
    """How many bytes the sandbox whose supervisor this is has received and sent."""
    return posture.moved(_init_of(supervisor))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _init_of(supervisor: int) -> int:
    """The supervisor's child that is process 1 of a namespace of its own."""
    for child in _children(supervisor):
        with suppress(FileNotFoundError, ProcessLookupError):  # some live for a moment only
            if posture.fields(_status(child))["NSpid"].split()[-1] == "1":
                return child
    raise ProcessLookupError(supervisor)


def _sentry_of(init: int) -> int:
    """gVisor's kernel: a child of runsc, which is process 1."""
    for child in _children(init):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"runsc-sandbox"):
                return child
    raise ProcessLookupError(init)


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()
