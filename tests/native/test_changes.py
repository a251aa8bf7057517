"""The verb `changes since-start`, which stops all processes of a container: none of them stays
stopped, whoever is killed in the middle."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal import _binary, _config
from openmodal.testing.fixtures import eventually

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.feature("box"),
]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def init() -> Iterator[int]:
    """Process 1 of a namespace, with a child that has one."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with subprocess.Popen([*command, "sh", "-c", "sh -c 'sleep 54321; :' & exec sleep 54321"]) as starter:
        eventually(lambda: children(starter.pid) and grandchildren(children(starter.pid)[0]))
        yield children(starter.pid)[0]
        starter.kill()


def grandchildren(pid: int) -> list[int]:
    return [grandchild for child in children(pid) for grandchild in children(child)]


@pytest.mark.parametrize("end", ["it is killed", "nobody takes what it tells"])
def test_nothing_stays_stopped(init: int, end: str) -> None:
    """What it tells, the files of this machine, is more than its pipe holds."""
    program = str(_binary.find(_config.state()))
    quiet = "600000" if end == "it is killed" else "1500"
    (sleeper,) = grandchildren(init)
    command = ["nsenter", f"--target={init}", "--pid", "--mount", program, "changes", "since-start", quiet]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as changes:
        eventually(lambda: state(sleeper) == "T")
        if end == "it is killed":
            os.kill(children(changes.pid)[0], 9)
        eventually(lambda: state(sleeper) == "S")
        assert changes.wait(60) != 0
