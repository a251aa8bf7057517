"""Ports of the embedded engine: what holds them, what ends them, what many visitors cannot do."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from openmodal._dual import run_sync
from openmodal.engines import machine
from openmodal.engines.embedded import Embedded, launch
from openmodal.sandbox import Sandbox
from openmodal.testing.connections import PATIENCE, PORT
from openmodal.testing.faces import plain
from openmodal.testing.fixtures import Create, eventually
from openmodal.testing.ports import crowd, is_open, listening, rest, visit
from openmodal.tunnel import Tunnel

pytestmark = pytest.mark.embedded

_OTHER_PROGRAM = """
import pickle, sys
sandbox, port = pickle.load(sys.stdin.buffer)
tunnel = sandbox.forward(port)
print(tunnel.port, flush=True)
sys.stdin.buffer.read(1)
"""


def supervisor(engine: Embedded, sandbox: Sandbox) -> int:
    return run_sync(launch.supervisor(engine.store.folder(sandbox.id)))


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def test_the_supervisor_holds_them_and_a_kill_of_it_leaves_none(create: Create, engine: Embedded) -> None:
    sandbox = create(ports=[PORT, 81, 82, 83, 84])
    listening(sandbox, "cat")
    tunnels = sandbox.tunnels()
    held = supervisor(engine, sandbox)
    assert len(children(held)) == 3, "process 1, and a child for each four ports"
    visitor = visit(tunnels[PORT])
    visitor.sendall(b"hello")
    assert visitor.recv(100) == b"hello"
    os.kill(held, signal.SIGKILL)
    assert rest(visitor) == b""
    visitor.close()
    for tunnel in tunnels.values():
        eventually(lambda tunnel=tunnel: not is_open(tunnel))  # type: ignore[misc]


def test_no_address_of_the_network_leads_there(create: Create) -> None:
    """G19: a tunnel has no address to be guessed but on this machine's loopback."""
    sandbox = create(ports=[PORT])
    listening(sandbox, "cat")
    tunnel = sandbox.tunnels()[PORT]
    assert is_open(tunnel)
    for address in machine.own_addresses():
        host = address.partition("/")[0]
        if not host.startswith("127."):
            assert not is_open(Tunnel(host, tunnel.port))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_tunnel_ends_with_the_program_that_opened_it(create: Create, number: signal.Signals) -> None:

    sandbox = create()
    listening(sandbox, "cat")
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdin
        assert program.stdout
        pickle.dump((plain(sandbox), PORT), program.stdin)
        program.stdin.flush()
        tunnel = Tunnel("127.0.0.1", int(program.stdout.readline()))
        with visit(tunnel) as visitor:
            visitor.sendall(b"hello")
            assert visitor.recv(100) == b"hello"
            program.send_signal(number)
            assert rest(visitor) == b""
        eventually(lambda: not is_open(tunnel))


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_hundred_are_in_at_once(create: Create) -> None:
    sandbox = create(ports=[PORT])
    listening(sandbox, "cat")
    with crowd(sandbox.tunnels()[PORT], 200) as visitors:
        for number, visitor in enumerate(visitors):
            visitor.sendall(b"%d" % number)
        assert [visitor.recv(10) for visitor in visitors] == [b"%d" % number for number in range(200)]


def test_ten_thousand_that_say_nothing_stop_nobody_but_themselves(create: Create) -> None:
    """A visitor that waits at the door costs this machine a socket, and the sandbox nothing."""
    crowded, other = create(ports=[PORT]), create(ports=[PORT])
    for sandbox in (crowded, other):
        listening(sandbox, "cat")
    tunnel = crowded.tunnels()[PORT]
    visitors: list[socket.socket] = []
    with many_files(10_500):
        try:
            for _ in range(10_000):
                visitor = socket.socket()
                visitor.setblocking(False)
                visitor.connect_ex(tunnel.tcp_socket)
                visitors.append(visitor)
            assert crowded.exec("echo", "alive").stdout.read() == "alive\n"
            processes = int(crowded.exec("sh", "-c", "ls -d /proc/[0-9]* | wc -l").stdout.read())
            assert processes < 2 * 256 + 20
            with visit(other.tunnels()[PORT]) as visitor:
                visitor.sendall(b"hello")
                assert visitor.recv(100) == b"hello"
        finally:
            for visitor in visitors:
                visitor.close()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), visit(tunnel) as visitor:
            visitor.sendall(b"hello")
            if visitor.recv(100) == b"hello":
                return
    raise AssertionError("the tunnel is of use again")
