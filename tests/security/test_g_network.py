"""G. The network. What is reached or not is counted by servers of the test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from openmodal import _config
from openmodal.engines.embedded import network, uplink
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from openmodal.testing.limits import connects, own_addresses, server
from tests.embedded.test_network import on_loopback
from tests.security import attack
from tests.security.attack import sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]


@contextlib.contextmanager
def counting(host: str) -> Iterator[tuple[int, list[str]]]:
    """A server that notes who came."""
    came: list[str] = []
    with socket.create_server((host, 0), backlog=64) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    client, (address, _) = listener.accept()
                    came.append(address)
                    with client, contextlib.suppress(OSError):  # they may be gone already
                        client.sendall(b"counted\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], came
        listener.shutdown(socket.SHUT_RDWR)


def reached(sandbox: Sandbox, hosts: Iterable[str], port: int) -> list[str]:
    """Which of these a sandbox connects to; all are tried at once."""
    script = "".join(f"(timeout 2 nc {host} {port} </dev/null && echo {host}) & " for host in hosts) + "wait"
    return sandbox.exec("sh", "-c", script, timeout=60).stdout.read().split()


def in_router(*command: str) -> str:
    enter = ["nsenter", f"--net={_config.machine() / 'router'}"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout


def test_there_is_one_interface_and_no_ipv6(inside: Sandbox, create: Create) -> None:
    """G1: and none but lo where the network is blocked."""
    assert sh(inside, "ls /sys/class/net").split() == ["eth0", "lo"]
    assert sh(inside, "cat /proc/net/if_inet6 2>/dev/null | grep -v ' lo$'") == ""
    assert sh(create(block_network=True), "ls /sys/class/net").split() == ["lo"]
    assert set(os.listdir("/sys/class/net")) - {"lo", "eth0"}, "the control: this machine has others"


def test_services_of_this_machine_are_never_reached(inside: Sandbox, weaken: Weaken) -> None:
    """G2: on loopback, on its own addresses, on the gateway's."""
    with counting("0.0.0.0") as (port, came):
        hosts = {
            "127.0.0.1",
            "0.0.0.0",
            "127.1.2.3",
            network.GATEWAY,
            uplink.HOST,
            uplink.ROUTER,
            *own_addresses(),
        }
        assert reached(inside, hosts, port) == []
        assert came == []
        assert connects(weaken(net=[("net", "host")]), "127.0.0.1", port), "the control"
        assert len(came) == 1


def test_nobody_inside_changes_addresses_routes_or_rules(inside: Sandbox, bare: Sandbox) -> None:
    """G7: the network namespace belongs to the machine's root."""
    for script in (
        "ip addr add 10.1.2.3/8 dev eth0",
        "ip link set eth0 address 02:00:00:00:00:01",
        "ip link set eth0 down",
        "ip route add 169.254.0.0/16 dev eth0",
        "ip neigh add 10.251.0.1 lladdr 02:00:00:00:00:01 dev eth0",
        "ip link add dummy0 type dummy",
    ):
        assert not works(inside, script), script
    assert works(bare, "ip addr add 10.1.2.3/32 dev lo"), "the control"


SNIFF = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sniffer:
    sniffer.bind(("up0", 0))
    sniffer.settimeout(0.2)
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        try:
            data = sniffer.recv(65536)
        except TimeoutError:
            break
        if b"forged" in data:
            print("seen", flush=True)
"""


@pytest.mark.parametrize("source", ["own", "10.251.222.1", "8.8.8.8", "127.0.0.1"])
def test_a_packet_with_a_forged_source_goes_nowhere(create: Create, source: str) -> None:
    """G7, G17: the router knows which address each interface has."""
    sandbox = create()
    own = sh(sandbox, "ip -o -4 addr show eth0 | awk '{print $4}'").split("/")[0]
    enter = ["nsenter", f"--net={_config.machine() / 'router'}", sys.executable, "-c", SNIFF]
    with subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sniffer:
        assert sniffer.stdout is not None
        assert sniffer.stdout.readline() == "ready\n"
        sh(sandbox, f"probe forge {own if source == 'own' else source}")
        said, _ = sniffer.communicate("go\n")
    assert said == ("seen\n" if source == "own" else "")  # its own is the control


def test_the_routers_settings_keep_martians_out(inside: Sandbox) -> None:
    """G17: CVE-2020-8558 needed route_localnet."""
    assert sh(inside, "ls /sys/class/net/eth0")  # so the router is there
    for path, value in (
        ("conf/all/rp_filter", "1"),
        ("conf/all/route_localnet", "0"),
        ("conf/default/route_localnet", "0"),
        ("conf/all/accept_redirects", "0"),
        ("conf/all/accept_source_route", "0"),
        ("ip_forward", "1"),
    ):
        assert in_router("cat", f"/proc/sys/net/ipv4/{path}").strip() == value, path
    assert Path(f"/proc/sys/net/ipv4/conf/{uplink.NAME}/rp_filter").read_text().strip() == "1"
    assert not works(inside, "ip route add 127.0.0.0/8 via 10.251.0.1")


def test_a_blocked_sandbox_asks_nobody_for_names(create: Create, outbound: tuple[str, int]) -> None:
    """G8: neither a server of its file (for when `set_network` lets it) nor one that it knows."""
    blocked = create(block_network=True)
    for script in (f"nslookup {outbound[0]}", f"nslookup {outbound[0]} 8.8.8.8", "nc -w 1 1.1.1.1 53"):
        assert not works(blocked, f"timeout 3 {script}"), script
    assert works(create(), f"nslookup {outbound[0]}"), "the control"


def test_only_tcp_udp_and_ping_leave(inside: Sandbox, weaken: Weaken) -> None:
    """G10: no tunnel's protocol can be had, and the router would drop it."""
    for protocol in (4, 47, 50, 132, 33, 136, 255, 262):  # IPIP, GRE, ESP, SCTP, DCCP, UDP-Lite, raw, MPTCP
        for kind in (1, 2, 3, 5, 6):
            assert attack.call(inside, "socket", 2, kind, protocol) != 0, protocol
    assert attack.call(inside, "socket", 2, 2, 17) == 0, "the control"
    assert attack.call(weaken("seccomp"), "socket", 2, 1, 262) in (0, 92, 93)
    assert "hook forward priority filter; policy drop;" in in_router(
        "nft", "list", "chain", "ip", "openmodal", "forward"
    )


def test_nobody_connects_to_a_sandbox(create: Create) -> None:
    """G11: neither this machine nor a neighbour."""
    sandbox, other = create(), create()
    listener = sandbox.spawn("nc", "-l", "-p", "9999")  # ends with the first who comes
    own = sh(sandbox, "ip -o -4 addr show eth0 | awk '{print $4}'").split("/")[0]
    eventually(lambda: ":270F " in sh(sandbox, "cat /proc/net/tcp /proc/net/tcp6"))
    assert not connects(other, own, 9999)
    with contextlib.suppress(OSError):  # something else may answer to this address
        socket.create_connection((own, 9999), 2).close()
    assert listener.poll() is None
    assert connects(sandbox, own, 9999), "the control"
    assert listener.wait() == 0


def test_the_first_packet_of_a_sandbox_is_stopped_already(create: Create) -> None:
    """G14: the rules are there before the interface is."""
    address = "169.254.99.99"
    with on_loopback(address), counting(address) as (port, came):
        sandboxes = [create("nc", "-w", "1", address, str(port), timeout=30) for _ in range(30)]
        for sandbox in sandboxes:
            sandbox.wait()
        assert came == []
        socket.create_connection((address, port), 5).close()
        eventually(lambda: len(came) == 1)  # the control


def test_a_flushed_firewall_of_this_machine_opens_nothing(create: Create) -> None:
    """G16: the sandboxes' rules are in a namespace of their own; without this machine's rules, even less goes out."""
    if not network.tool("nft"):
        pytest.skip("needs nft")
    sandbox = create()
    with server() as port:
        subprocess.run(["nft", "flush", "table", "ip", "openmodal"], check=True)
        try:
            assert reached(sandbox, {*own_addresses(), uplink.HOST, network.GATEWAY}, port) == []
        finally:
            subprocess.run(["nft", "-f", "-"], input=uplink.nft_rules(network.resolvers()), text=True, check=True)


def test_nothing_of_a_cluster_comes_along(monkeypatch: pytest.MonkeyPatch, create: Create) -> None:
    """G20: where the maker runs in a pod."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    sandbox = create()
    assert "KUBERNETES" not in sh(sandbox, "env")
    assert not works(sandbox, "ls /var/run/secrets")
    with on_loopback("10.96.0.1"), server() as port:
        socket.create_connection(("10.96.0.1", port), 5).close()  # the control
        assert not connects(sandbox, "10.96.0.1", port)
