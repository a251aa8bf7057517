"""What `info()` says of limits, on folders that look like control groups of either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmodal.engines.groups import LIMITED, Hierarchies, held, of

V2 = {"memory.max": "268435456", "cpu.max": "50000 100000", "pids.max": "512", "cgroup.procs": "41\n42\n"}
V1 = {
    "memory": {"memory.limit_in_bytes": "268435456"},
    "cpu": {"cpu.cfs_quota_us": "50000"},
    "pids": {"pids.max": "512"},
}
OURS = dict.fromkeys(LIMITED, "openmodal/id")
ALL = {"memory": 256 << 20, "cpu": 0.5, "pids": 512}


def version_2(root: Path, **changes: str) -> Hierarchies:
    group = root / "openmodal" / "id"
    group.mkdir(parents=True)
    for name, text in (V2 | {name.replace("_", "."): text for name, text in changes.items()}).items():
        (group / name).write_text(text)
    return Hierarchies((), str(root), ("memory", "cpu", "pids"))


def version_1(root: Path, members: str = "42\n") -> Hierarchies:
    for controller, files in V1.items():
        group = root / controller / "openmodal" / "id"
        group.mkdir(parents=True)
        for name, text in {**files, "cgroup.procs": members}.items():
            (group / name).write_text(text)
    return Hierarchies(tuple((name, str(root / name)) for name in V1), "", ())


def test_both_versions_are_read(tmp_path: Path) -> None:
    assert held(version_1(tmp_path / "1"), OURS, 42) == ALL
    assert held(version_2(tmp_path / "2"), OURS, 42) == ALL


@pytest.mark.parametrize("change", [{"memory_max": "max"}, {"cpu_max": "max 100000"}, {"pids_max": "max"}])
def test_no_limit_is_told_as_none(tmp_path: Path, change: dict[str, str]) -> None:
    name = next(iter(change)).split("_")[0]
    assert held(version_2(tmp_path, **change), OURS, 42) == {key: value for key, value in ALL.items() if key != name}


def test_a_group_without_the_process_limits_nothing(tmp_path: Path) -> None:
    assert held(version_1(tmp_path / "1", "41\n"), OURS, 42) == {}
    assert held(version_2(tmp_path / "2"), OURS, 43) == {}
    assert held(Hierarchies(), OURS, 42) == {}


def test_a_processs_groups_are_those_of_its_controllers() -> None:
    assert of("9:cpu,cpuacct:/a\n8:pids:/b:c\n4:memory:/\n0::/d") == {"memory": "", "cpu": "a", "pids": "b:c"}
    assert of("0::/system.slice/docker-1.scope") == dict.fromkeys(LIMITED, "system.slice/docker-1.scope")
