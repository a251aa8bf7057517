"""Plans of control groups, and what is prepared for them, on folders that look like control groups; and what a container lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmodal.engines import groups
from openmodal.engines.asked import Limits
from openmodal.engines.embedded import cgroup, container
from openmodal.engines.groups import Hierarchies
from openmodal.errors import EngineError

MIB = 1 << 20
POINT = "30 21 0:25 {root} {point} rw - cgroup2 cgroup2 rw\n"


def version_2(root: Path, *, parent: bool = False, first: int = 0) -> Hierarchies:
    """A group with the files of version 2, and one for all sandboxes as the kernel makes it, or none."""
    for folder in (root, root / "openmodal") if parent else (root,):
        folder.mkdir(exist_ok=True)
        for name, text in {
            "cgroup.subtree_control": "",
            "cgroup.procs": f"{first}\n" * bool(first),
            "pids.max": "max",
        }.items():
            (folder / name).write_text(text)
    return Hierarchies((), str(root), ("cpu", "io", "memory", "pids"))


def version_1(root: Path) -> Hierarchies:
    (root / "memory").mkdir()
    (root / "memory" / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 62))
    return Hierarchies(tuple((name, str(root / name)) for name in ("cpu", "memory", "pids")))


def test_a_half_made_parent_gets_what_it_lacks(tmp_path: Path) -> None:
    """Only its folder was there: every later creation failed."""
    cgroup.prepare(version_2(tmp_path, parent=True))
    for group in (tmp_path, tmp_path / "openmodal"):
        assert (group / "cgroup.subtree_control").read_text().split() == ["+memory", "+cpu", "+pids"]
    assert int((tmp_path / "openmodal" / "pids.max").read_text()) >= 512


def test_only_what_is_lacking_is_written(tmp_path: Path) -> None:
    found = version_2(tmp_path, parent=True)
    for group in (tmp_path, tmp_path / "openmodal"):
        (group / "cgroup.subtree_control").write_text("cpu memory\n")
    (tmp_path / "openmodal" / "pids.max").write_text("700\n")
    cgroup.prepare(found)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert (tmp_path / "openmodal" / "pids.max").read_text() == "700\n", "the administrator's"


@pytest.mark.parametrize(
    ("first", "root", "own"),
    [
        ("0::/", "/", ""),  # a container with a namespace of groups, or a machine without systemd
        ("0::/init", "/", ""),  # the same, when its processes have been moved
        ("0::/init.scope", "/", ""),  # systemd, on a machine or in a container
        ("0::/machine.slice/pod.scope", "/", "machine.slice/pod.scope"),  # a container that sees the machine's groups
        ("0::/machine.slice/pod.scope/init", "/", "machine.slice/pod.scope"),
        ("0::/docker/1", "/docker/1", ""),  # one that has its own group mounted
        ("0::/", "/../..", ""),  # one that has the machine's mounted
        ("0::/../other", "/", ""),  # process 1 is another container's, or the machine's
        ("0::/../../init.scope", "/", ""),
        ("9:name=systemd:/\n0::/a", "/", "a"),
        ("", "/", ""),
    ],
)
def test_groups_are_made_below_the_one_of_process_1(tmp_path: Path, first: str, root: str, own: str) -> None:
    found = groups.hierarchies(POINT.format(root=root, point=tmp_path), first)
    assert found.v2 == str(tmp_path / own).rstrip("/")


def test_a_group_that_holds_processes_of_others_is_not_the_containers(tmp_path: Path) -> None:
    """A shell in a PID namespace of its own is in a group of systemd's, among processes that it does not see: those are 0."""
    own = tmp_path / "session.scope"
    own.mkdir()
    (own / "cgroup.procs").write_text("1\n0\n")
    assert groups.hierarchies(POINT.format(root="/", point=tmp_path), "0::/session.scope").v2 == str(tmp_path)
    (own / "cgroup.procs").write_text("1\n")
    assert groups.hierarchies(POINT.format(root="/", point=tmp_path), "0::/session.scope").v2 == str(own), "the control"


@pytest.mark.parametrize(
    ("processes", "leaf", "steps_aside"),
    [("1\n41\n", "", True), ("41\n", "1\n", True), ("1\n0\n", "", False), ("41\n", "", False)],
)
def test_only_a_containers_own_processes_are_moved(
    tmp_path: Path, processes: str, leaf: str, steps_aside: bool
) -> None:
    """Never those of a group that is not process 1's, such as one of systemd's, and none that are foreign."""
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "cgroup.procs").write_text(leaf)
    (tmp_path / "cgroup.procs").write_text(processes)
    assert cgroup._step_aside(tmp_path) is steps_aside
    assert (tmp_path / "init" / "cgroup.procs").read_text() == (
        processes.rsplit(maxsplit=1)[-1] if steps_aside else leaf
    )


def test_who_may_not_is_told_the_group_and_what_to_do(tmp_path: Path) -> None:
    found = version_2(tmp_path)
    (tmp_path / "openmodal").write_text("not a folder")
    with pytest.raises(EngineError, match=r"openmodal/cgroup.subtree_control cannot be set up: .*; run as root, or"):
        cgroup.prepare(found)


@pytest.mark.parametrize(
    ("cpu", "shares", "weight"), [(1.0, 1024, 100), (0.25, 256, 25), (2.5, 2560, 250), (200, 204_800, 10_000)]
)
def test_a_sandbox_weighs_what_it_may_use(tmp_path: Path, cpu: float, shares: int, weight: int) -> None:
    limits = Limits(256 * MIB, cpu, 512)
    first, second = cgroup.plan(version_1(tmp_path), "id", limits), cgroup.plan(version_2(tmp_path / "2"), "id", limits)
    assert (f"{tmp_path}/cpu/openmodal/id/cpu.shares", str(shares)) in first.values
    assert (f"{tmp_path}/2/openmodal/id/cpu.weight", str(weight)) in second.values


def test_all_together_weigh_no_more_than_the_kernel_takes_and_on_version_2_a_slice_for_each_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    limits = Limits(256 * MIB, 0, 512)
    first, second = cgroup.plan(version_1(tmp_path), "id", limits), cgroup.plan(version_2(tmp_path / "2"), "id", limits)
    assert first.weight == (f"{tmp_path}/cpu/openmodal/cpu.shares", "262144")
    assert second.weight == (f"{tmp_path}/2/openmodal/cpu.weight", "600")
    assert (f"{tmp_path}/cpu/openmodal/id/cpu.shares", "6144") in first.values, "without a limit: all CPUs"


def test_version_1_counts_sockets_apart(tmp_path: Path) -> None:
    limits = Limits(256 * MIB, 1.0, 512)
    group = f"{tmp_path}/memory/openmodal/id"
    assert (f"{group}/memory.kmem.tcp.limit_in_bytes", str(64 * MIB)) in cgroup.plan(
        version_1(tmp_path), "id", limits
    ).values
    (tmp_path / "memory" / "memory.kmem.tcp.limit_in_bytes").unlink()
    values = dict(cgroup.plan(Hierarchies((("memory", f"{tmp_path}/memory"),)), "id", limits).values)
    assert values == {f"{group}/memory.limit_in_bytes": str(256 * MIB)}, "a kernel without it"


# --------------------------------------------------------------------------------------- containers

ALL = "         0          0 4294967295\n"


def inside(root: Path, rights: int = (1 << 41) - 1, ids: str = ALL, profile: str = "unconfined\n") -> Path:
    """A container's /proc."""
    files = {
        "proc/self/status": f"CapEff:\t{rights:016x}\nSeccomp:\t0\n",
        "proc/self/uid_map": ids,
        "proc/self/attr/current": profile,
    }
    for name, text in {**files, "proc/sys/net/ipv4/ip_forward": "1\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_keeps_nothing_from_root(tmp_path: Path) -> None:
    assert container.lacking(inside(tmp_path)) == ""


def test_a_container_without_rights_is_told_each_flag(tmp_path: Path) -> None:
    said = container.lacking(inside(tmp_path, 0x800405FB))
    assert "root lacks the rights NET_ADMIN, SYS_PTRACE, SYS_ADMIN, MKNOD in this container" in said
    assert "--privileged" in said
    assert said.endswith("--cap-add=NET_ADMIN,SYS_PTRACE,SYS_ADMIN,MKNOD")


def test_apparmor_is_named_where_it_refuses(tmp_path: Path) -> None:
    root = inside(tmp_path, profile="containers-default-0.50.1 (enforce)\n")
    assert container.lacking(root) == "", "a profile alone refuses nothing"
    setting = root / "proc/sys/net/ipv4/ip_forward"
    setting.unlink()
    setting.mkdir()  # cannot be opened for writing
    assert container.lacking(root).endswith("--security-opt apparmor=unconfined")


def test_a_rootless_containers_root_is_told_that_it_is_none(tmp_path: Path) -> None:
    said = container.lacking(inside(tmp_path, ids="0 1000 1\n1 100000 65536\n"))
    assert "65537 of the machine's ids only" in said


def test_a_kernel_that_does_not_account_swap_is_not_asked_to(tmp_path: Path) -> None:
    """Without memory.swap.max (swapaccount=0), every creation failed."""
    found = version_2(tmp_path, parent=True)
    limit = ("openmodal/one/memory.swap.max", "0")
    limits = Limits(memory=64 * MIB, cpu=1, pids=10)

    def written() -> list[tuple[str, str]]:
        cgroup._plan.cache_clear()  # what a kernel has does not change while a program runs
        return [(path.removeprefix(f"{tmp_path}/"), text) for path, text in cgroup.plan(found, "one", limits).values]

    assert limit not in written()
    (tmp_path / "openmodal" / "memory.swap.max").touch()
    assert limit in written()
