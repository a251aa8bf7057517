"""What a sandbox's network reaches, against servers that the test puts there: each is shown to be reachable from this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from openmodal.app import App
from openmodal.engines.embedded import Embedded, host, network
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually
from openmodal.testing.limits import connects, server

pytestmark = pytest.mark.root

Ready = Callable[[network.Router, Sequence[str]], bool]
PORT = 8099
PUBLIC = "198.51.100.77"  # a documentation range: nobody's, and not on the deny list
SERVE = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as listener:
    print("ready", flush=True)
    while True:
        listener.accept()[0].close()
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def on_loopback(address: str) -> Iterator[None]:
    """Give this machine one more address. It has an address once, so another worker with the same one waits."""
    add = ("ip", "addr", "add", f"{address}/32", "dev", "lo")
    eventually(lambda: subprocess.run(add, capture_output=True, check=False).returncode == 0, seconds=60)
    try:
        yield
    finally:
        run("ip", "addr", "del", f"{address}/32", "dev", "lo")


@contextmanager
def neighbour(address: str, serve: str = SERVE) -> Iterator[None]:
    """Another machine beside this one, with a server: a network namespace with that address, behind
    a veth pair.

    There is one at a time, so another worker with one waits.
    """
    ours = address.rpartition(".")[0] + ".254"
    with ExitStack() as stack:
        command = ["unshare", "--net", sys.executable, "-c", f"input(); exec({serve!r})"]
        child = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(child.kill)
        assert child.stdin
        assert child.stdout
        _wait_for_own_network(child.pid)
        pair = ("ip", "link", "add", "omtest0", "type", "veth", "peer", "name", "omtest1", "netns", str(child.pid))
        eventually(lambda: subprocess.run(pair, capture_output=True, check=False).returncode == 0, seconds=100)
        stack.callback(run, "ip", "link", "del", "omtest0")
        run("ip", "addr", "add", f"{ours}/24", "dev", "omtest0")
        run("ip", "link", "set", "omtest0", "up")
        # As a machine that forwards for everybody: what is refused is refused by the sandboxes' own
        # rules.
        run("sysctl", "-w", "net.ipv4.conf.omtest0.forwarding=1")
        inside = ("nsenter", f"--net=/proc/{child.pid}/ns/net", "ip")
        run(*inside, "addr", "add", f"{address}/24", "dev", "omtest1")
        run(*inside, "link", "set", "omtest1", "up")
        run(*inside, "route", "add", "default", "via", ours)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ready\n"
        socket.create_connection((address, PORT), 5).close()  # the control
        yield


def _wait_for_own_network(pid: int) -> None:
    mine = os.readlink("/proc/self/ns/net")
    while True:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") != mine:
                return


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192"])
def test_the_clouds_metadata_is_out_of_reach(create: Create, address: str) -> None:
    """G4: whatever cloud this machine is in."""
    with on_loopback(address), server(address) as port:
        assert not connects(create(), address, port)


@pytest.mark.parametrize("address", ["10.99.98.1", "172.20.98.1", "192.168.98.1", "100.64.98.1", "169.254.98.1"])
def test_private_networks_are_out_of_reach(create: Create, address: str) -> None:
    """G5: one address of each."""
    with neighbour(address):
        assert not connects(create(), address, PORT)


def test_low_numbers_of_interfaces_are_left_to_the_kernel(create: Create) -> None:
    """ipip, sit and gre put an interface into each network namespace of a machine that has loaded
    them; no sandbox began there, for its own wanted the number of theirs."""
    assert int(create().exec("cat", "/sys/class/net/eth0/ifindex").stdout.read()) > 32


def test_a_public_server_is_within_reach(create: Create) -> None:
    """The control of the tests above: the same server, with an address of the internet."""
    with neighbour(PUBLIC):
        assert connects(create(), PUBLIC, PORT, seconds=10)
        assert not connects(create(block_network=True), PUBLIC, PORT)


def test_services_on_this_machines_loopback_are_out_of_reach(create: Create) -> None:
    with server("127.0.0.1") as port:
        assert not connects(create(), "127.0.0.1", port)


@pytest.mark.slow
def test_with_an_allow_list_pip_installs_from_its_index(engine: Embedded, app: App) -> None:
    """A real package over real TLS; the names are those of pip's configuration here, or its defaults."""
    image = Image.debian_slim()
    options: dict[str, Any] = {"app": app, "image": image, "engine": engine, "timeout": 100}
    command = ("python3", "-m", "pip", "install", "--no-cache-dir", "--target", "/tmp/x", "iniconfig")
    with Sandbox.create(**options, outbound_domain_allowlist=_index_hosts()) as sandbox:
        process = sandbox.exec(*command)
        assert process.returncode == 0, process.stderr.read()
        assert sandbox.exec("ls", "/tmp/x/iniconfig/__init__.py").returncode == 0
        assert {record.kind for record in sandbox.egress_log() if record.allowed} == {"dns", "tls"}
    with Sandbox.create(**options, outbound_domain_allowlist=["elsewhere.example"]) as sandbox:
        assert sandbox.exec(*command, "--retries=0").returncode != 0, "the control"


def _index_hosts() -> list[str]:
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [done.stdout.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]]
    return ["pypi.org", "files.pythonhosted.org"]


def test_creations_in_a_row_look_at_this_machines_side_once(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def ready(router: network.Router, servers: Sequence[str], real: Ready = network.Router.ready) -> bool:
        looks.append(1)
        return real(router, servers)

    def looks_not() -> bool:
        looks.clear()
        create().terminate()
        return not looks

    # A new one, because it keeps when it was looked at.
    monkeypatch.setattr(host, "_router_at", functools.cache(network.Router))
    monkeypatch.setattr(network.Router, "ready", ready)
    assert not looks_not(), "the control: for tests no look is good for any time"
    monkeypatch.setattr(network, "LOOK_SECONDS", 600.0)
    eventually(looks_not)
