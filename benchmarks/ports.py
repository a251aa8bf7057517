"""A tunnel into a sandbox, beside the same server on this machine behind a plain relay: `nc`, a
process for each connection."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row

ECHO, MUCH = 8000, 8001
SIZE = 100 * 1000 * 1000
VISITS = 20


def rows() -> dict[str, Row]:
    """Every step, with its target."""
    return {
        "tunnel": Row("connection through a tunnel, until the first byte", target=1.5, times_floor=1.5),
        "tunnel_rate": Row("100 MB through a tunnel", "MB/s", target=300, more_is_better=True),
    }


def measure(found: dict[str, Row], sandbox: openmodal.Sandbox) -> None:
    """Visit both servers in the sandbox, and on this machine."""
    for port, argv in _SERVERS.items():
        sandbox.spawn(*_serve(port, *argv))
        sandbox.connect(port, timeout=20).close()
    with sandbox.forward(ECHO) as echo, sandbox.forward(MUCH) as much:
        _visit(found["tunnel"].ours, found["tunnel_rate"].ours, echo.port, much.port)
    if shutil.which("busybox"):
        with _relayed() as (echo_port, much_port):
            _visit(found["tunnel"].floor, found["tunnel_rate"].floor, echo_port, much_port)


_SERVERS = {ECHO: ("echo", "x"), MUCH: ("dd", "if=/dev/zero", "bs=1000000", "count=100", "status=none")}


def _serve(port: int, *argv: str) -> tuple[str, ...]:
    return ("nc", "-ll", "-p", str(port), "-e", *argv)


@contextlib.contextmanager
def _relayed() -> Iterator[tuple[int, int]]:
    """The same servers here, each behind a relay; the relays' ports."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for argv in _SERVERS.values():
            server, relay = _free(), _free()
            for command in (_serve(server, *argv), _serve(relay, "nc", "127.0.0.1", str(server))):
                started = stack.enter_context(subprocess.Popen(["busybox", *command]))
                stack.callback(started.kill)
            ports.append(relay)
        for port in ports:
            _await(port)
        yield ports[0], ports[1]


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _await(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as visitor:
            if visitor.recv(1):
                return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port}")


def _visit(latencies: list[float], rates: list[float], echo: int, much: int) -> None:
    for _ in range(VISITS):
        with Stopwatch() as watch, socket.create_connection(("127.0.0.1", echo)) as visitor:
            assert visitor.recv(1) == b"x"
        latencies.append(watch.seconds * 1000)
    buffer, got = bytearray(1 << 20), 0
    with Stopwatch() as watch, socket.create_connection(("127.0.0.1", much)) as visitor:
        while size := visitor.recv_into(buffer):
            got += size
    assert got == SIZE, f"{got} bytes of {SIZE} came"
    rates.append(SIZE / 1e6 / watch.seconds)
