"""G. Ways round the rules of addresses: interfaces, options and families that a program without rights may choose."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal.engines.embedded import network, rootless
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.embedded.test_network import on_loopback
from tests.embedded.test_plain_user import USER, home, run_as_user  # noqa: F401  (`home` is a fixture)
from tests.security.attack import compiled, sh
from tests.security.conftest import Weaken

PRIVATE = "10.99.95.1"

# A plain user's sandbox, once as it is and once without what keeps it from private addresses.
PROGRAM = """
import openmodal
from openmodal.engines import machine
from openmodal.engines.embedded import network

image = openmodal.Image.from_scratch().add_local_file({sneak!r}, "/bin/sneak")
if {open}:
    machine.DENIED = ()
    network.own_addresses = lambda: ()
with openmodal.Sandbox.create(image=image, timeout=60, allow_degraded=["limits"]) as sandbox:
    print(sandbox.exec("/bin/sneak", *{words!r}).returncode)
"""


@pytest.fixture(scope="module")
def sneak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attacker's tool, compiled."""
    return compiled("sneak.c", tmp_path_factory.mktemp("sneak"))


@contextlib.contextmanager
def noting() -> Iterator[tuple[int, set[str]]]:
    """A server of TCP and UDP at a private address of this machine; and the names of what arrived."""
    came: set[str] = set()
    with (
        on_loopback(PRIVATE),
        socket.create_server((PRIVATE, 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port: int = listener.getsockname()[1]
        datagrams.bind((PRIVATE, port))

        def accept() -> None:
            with contextlib.suppress(OSError):  # shut down at the end
                while True:
                    with listener.accept()[0] as client:
                        client.settimeout(5)
                        came.add(client.recv(100).decode())

        def receive() -> None:
            with contextlib.suppress(OSError):
                while data := datagrams.recv(100):
                    came.add(data.decode())

        threads = [threading.Thread(target=target, daemon=True) for target in (accept, receive)]
        for thread in threads:
            thread.start()
        yield port, came
        listener.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (PRIVATE, port))
        for thread in threads:
            thread.join(10)
    came.discard("")


def test_no_way_leads_round_the_routers_rules(create: Callable[..., Sandbox], sneak: Path, weaken: Weaken) -> None:
    """G5, G7: the rules are where no socket's options reach."""
    with noting() as (port, came):
        words = f"{PRIVATE} {port} {network.GATEWAY}"
        for sandbox in (create(), weaken(net=[("net", "host")])):
            sandbox.filesystem.copy_from_local(str(sneak), "/tmp/sneak")
            assert came == set()
            sh(sandbox, f"chmod 755 /tmp/sneak; /tmp/sneak eth0 {words}")
        eventually(lambda: {"tcp", "udp", "tcp-mapped", "udp-mapped"} <= came)  # the control: this machine's network


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.skipif(not os.path.exists("/dev/net/tun") or not network.tool("pasta"), reason="needs tun and pasta")
def test_no_way_leads_round_a_plain_users_rules(home: Path, sneak: Path) -> None:  # noqa: F811
    """G5, G7: routes were not enough: a socket that is bound to an interface is sent on the link when they refuse its address."""
    shutil.copy(sneak, home / "sneak")
    os.chown(home / "sneak", USER, USER)
    with noting() as (port, came):
        words = ("eth0", PRIVATE, str(port), rootless.ROUTER)
        for weakened in (False, True):
            assert came == set()
            run_as_user(home, PROGRAM.format(sneak=str(home / "sneak"), open=weakened, words=words), expected="0\n")
        control = {f"{kind}{way}" for kind in ("tcp", "udp") for way in ("", "-bound", "-mapped", "-mapped-bound")}
        eventually(lambda: {*control, "udp-unicast-if", "udp-packet-info"} <= came)  # the control
