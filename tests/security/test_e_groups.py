"""E. Control groups."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded, cgroup, host
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.security import attack
from tests.security.attack import sh, works

Create = Callable[..., Sandbox]


def test_no_hierarchy_can_be_mounted_and_no_release_agent_be_set(inside: Sandbox, bare: Sandbox) -> None:
    """E1: as CVE-2022-0492 did."""
    for words in ("cgroup -o memory", "cgroup -o rdma", "cgroup2", "cgroup -o none,name=om"):
        assert not works(inside, f"mount -t {words} none /srv"), words
    assert sh(inside, "find / -name release_agent 2>/dev/null") == ""
    assert works(bare, "mount -t cgroup2 none /srv && umount /srv"), "the control"


def test_no_process_leaves_its_group(engine: Embedded, create: Create) -> None:
    """E2: neither through /sys nor through process 1."""
    sandbox = create()
    sandbox.spawn("sleep", "54321")
    for path in ("/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup"):
        assert not works(
            sandbox, f"for f in {path}/cgroup.procs {path}/*/cgroup.procs; do echo $$ > $f && exit 0; done; exit 1"
        )
    # The processes of `sh` may be just ending.
    eventually(lambda: set(attack.members(engine, sandbox)) <= in_groups(engine, sandbox))
    assert os.getpid() not in in_groups(engine, sandbox), "the control"


@pytest.mark.parametrize("how", ["exec", "terminal", "user", "background"])
def test_every_command_is_in_the_group(engine: Embedded, create: Create, how: str) -> None:
    """E4: of every hierarchy that has one."""
    sandbox = create()
    if how == "background":
        sandbox.exec("sh", "-c", "setsid sleep 54321 >/dev/null 2>&1 &")
    else:
        sandbox.spawn("sleep", "54321", pty=how == "terminal", user="agent" if how == "user" else None)
    eventually(lambda: "sleep 54321" in sh(sandbox, "ps"))
    # The processes of `sh` may be just ending.
    eventually(lambda: set(attack.members(engine, sandbox)) <= in_groups(engine, sandbox))


def in_groups(engine: Embedded, sandbox: Sandbox) -> set[int]:
    """The processes that are in all of the sandbox's groups."""
    found = host.hierarchies()
    folders = {*(point for _, point in found.v1), *([found.v2] if found.v2 else [])}
    inside = [
        set(map(int, Path(f"{folder}/{cgroup.PARENT}/{sandbox.id}/cgroup.procs").read_text().split()))
        for folder in folders
    ]
    return set.intersection(*inside)
