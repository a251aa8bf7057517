"""The verb `wall`: a firewall around a network whose packets come from another kernel, as frames through a packet socket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a network namespace of its own, with a cable from `inner` to `outer`: which frames that are
# sent at one end come out at the other?
FRAMES = """
import errno, json, socket, struct, subprocess, sys

program, resolv_conf = sys.argv[1:]
for words in ("add inner type veth peer name outer", "set inner up", "set outer up"):
    subprocess.run(["ip", "link", *words.split()], check=True)
IPV4, ARP, IPV6, VLAN = 0x800, 0x806, 0x86DD, 0x8100
receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
receiver.bind(("outer", 3))
receiver.settimeout(5)

def packet(address, port=53):
    payload = struct.pack("!4H", 40000, port, 8, 0)
    head = struct.pack("!2B3H2BH4s4s", 0x45, 0, 28, 1, 0, 64, socket.IPPROTO_UDP, 0, bytes(4), socket.inet_aton(address))
    return head + payload

def passes(ethertype, payload, said=None):
    frame = bytes(12) + struct.pack("!H", ethertype) + payload
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        try:
            sender.sendto(frame, ("inner", said or ethertype))
        except OSError as error:  # the hook has dropped it
            return error.errno != errno.ENOBUFS
    try:
        while True:
            if receiver.recv(2048).endswith(payload[-28:]):  # the kernel has taken a tag off
                return True
    except TimeoutError:
        return False

def all_of_them():
    return {
        "public": passes(IPV4, packet("192.0.2.1")),
        "private": passes(IPV4, packet("10.1.2.3", port=80)),
        "resolver": passes(IPV4, packet("10.0.0.53")),
        "resolver's other port": passes(IPV4, packet("10.0.0.53", port=54)),
        "arp": passes(ARP, bytes(28)),
        "ipv6": passes(IPV6, b"\\x60" + bytes(39)),
        "vlan": passes(VLAN, struct.pack("!2H", 1, IPV4) + packet("10.1.2.3")),
        "private, said to be arp": passes(IPV4, packet("10.1.2.3"), ARP),
    }

before = all_of_them()
done = subprocess.run([program, "wall", "/proc/self/ns/net", resolv_conf], input=b"deny=10.0.0.0/8\\0\\0", capture_output=True)
print(json.dumps({"before": before, "status": [done.returncode, done.stderr.decode()], "after": all_of_them()}))
"""


@pytest.mark.root
def test_what_leaves_by_any_interface_goes_by_the_rules(program: Path, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search example\nnameserver 10.0.0.53\n", encoding="ascii")
    command = ["unshare", "--net", sys.executable, "-c", FRAMES, str(program), str(tmp_path / "resolv.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == [0, ""]
    assert all(found["before"].values()), "the control"
    assert [name for name, passes in found["after"].items() if passes] == ["public", "resolver", "arp"]


@pytest.mark.parametrize(
    ("arguments", "setup", "word"),
    [
        (("/proc/self/ns/net",), b"\0", "say wall"),
        (("/nowhere", "/etc/resolv.conf"), b"\0", "/nowhere"),
        (("/dev/null", "/etc/resolv.conf"), b"\0", "/dev/null"),
        (("/proc/self/ns/net", "/etc/resolv.conf"), b"deny=10.0.0.0/8\0", "cut off"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    program: Path, arguments: tuple[str, ...], setup: bytes, word: str
) -> None:
    done = subprocess.run([str(program), "wall", *arguments], input=setup, capture_output=True, check=False)
    text = done.stderr.decode()
    assert done.returncode == 1
    assert text.startswith("error ") and text.count("\n") == 1
    assert word in text


@pytest.mark.parametrize("arguments", [(), ("/nothing",), ("/etc/passwd",), ("a", "b")])
def test_only_a_network_is_hung_up(program: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([str(program), "hangup", *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr[:6]) == (1, b"error ")
