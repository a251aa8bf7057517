"""Networks that sandboxes share, on a machine apart: what the router's rules hold, by nft and by
iptables, and what is left of a network whose supervisors were killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from openmodal import _binary, _config
from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.embedded import Embedded, launch
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating, eventually
from openmodal.testing.limits import addresses, connects
from openmodal.testing.neighbours import PORT, serving
from tests.embedded.apart import Machine
from tests.embedded.internet import ECHO, PUBLIC

pytestmark = pytest.mark.root

INSIDE = 0x10000  # as native/net.h says


@pytest.fixture
def create(here: Machine, image: Image, engine: Embedded) -> Iterator[Create]:
    with creating(app=App("apart"), image=image, engine=engine, timeout=1000) as create:
        yield create


@pytest.fixture(params=["nft", "iptables"])
def firewall(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The only program that loads rules."""
    for name in ("iptables", "iptables-restore", "nsenter") if request.param == "iptables" else ("nft", "nsenter"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setattr(_binary, "PATH", str(tmp_path))
    return str(request.param)


def put(sandbox: Sandbox, group: int) -> None:
    """Give a sandbox's interface in the router another group, as only root of this machine can."""
    (address,) = addresses(sandbox)
    third, fourth = address.split(".")[2:]
    link = ("ip", "link", "set", f"om{int(third) * 256 + int(fourth)}", "group", str(group))
    subprocess.run(["nsenter", f"--net={_config.machine() / 'router'}", *link], check=True)


def _is_dead(engine: Embedded, id: str) -> bool:
    return not engine.store.alive(id)


def networks() -> list[str]:
    """The networks that are there."""
    return sorted(set(os.listdir(_config.machine() / "networks")) - {"lock"})


def reach(strangers: Sequence[Sandbox], address: str) -> list[bool]:
    """Which of them can connect to an address, all asked at once."""
    processes = [stranger.spawn("timeout", "2", "nc", address, str(PORT)) for stranger in strangers]
    for process in processes:
        process.stdin.close()
    return [process.wait() == 0 for process in processes]


def test_the_groups_of_two_interfaces_must_be_the_same(create: Create, firewall: str) -> None:
    """In all 16 bits, and whoever has none reaches nobody; the control is the same group."""
    first, strangers = serving(create(network="first")), [create() for _ in range(8)]
    (address,) = addresses(first)
    for group in (0x8000, 0x4321, 0xFFFF):
        put(first, group)
        others = (0, group ^ 0x8000, group ^ 1, group ^ 0x100, 0xFFFF ^ group, INSIDE)
        for stranger, other in zip(strangers, (*others, group, group | INSIDE), strict=True):
            put(stranger, other)
        assert reach(strangers, address) == [False] * 6 + [True] * 2, f"{group:#x}; the last two are the control"
    put(first, 0)
    put(strangers[0], 0)
    assert reach(strangers[:1], address) == [False], "two that are in no network"


def test_who_is_inside_reaches_no_address_outside(create: Create, firewall: str) -> None:
    sandbox = create(network="first", block_network=True)
    assert not connects(sandbox, PUBLIC, ECHO)
    put(sandbox, 1)
    assert connects(sandbox, PUBLIC, ECHO, seconds=20), "the control"
    put(sandbox, 1 | INSIDE)
    assert not connects(sandbox, PUBLIC, ECHO)


def test_a_killed_supervisor_leaves_no_name_and_no_network(create: Create, engine: Embedded) -> None:
    first, second = create(network="first", network_alias="db"), create(network="first", network_alias="page")
    for sandbox in (first, second):
        os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
        eventually(partial(_is_dead, engine, sandbox.id))
        if sandbox is first:
            third = create(network="first", network_alias="other")
            assert "db" not in third.filesystem.read_text("/etc/hosts").split()
            assert "page" in third.filesystem.read_text("/etc/hosts").split(), "the control"
            third.terminate()
    assert len(networks()) == 1, "the control"
    engine.gc()
    assert networks() == []


def test_a_network_ends_with_its_last_sandbox_and_its_number_is_free(create: Create) -> None:
    first, second = create(network="first"), create(network="second")
    assert networks() == ["1", "2"]
    assert second.exec("sh", "-c", "echo 1.2.3.4 db >> /etc/hosts").returncode, "none can write to it"
    first.terminate()
    assert networks() == ["2"]
    create(network="third")
    assert networks() == ["1", "2"]
    second.terminate()
    assert networks() == ["1"]
