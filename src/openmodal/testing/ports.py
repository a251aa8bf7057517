"""Ports of this machine that lead into a sandbox, and when what listens there is ready."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from openmodal.engines import Engine
from openmodal.errors import InvalidError, SandboxNotRunningError, SandboxResetError, SandboxTerminatedError
from openmodal.probe import Probe
from openmodal.sandbox import Sandbox
from openmodal.testing.connections import PATIENCE, PORT, serve
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, SandboxClass, eventually, promise
from openmodal.tunnel import Tunnel

MUCH = 20_000_000


def listening(sandbox: Sandbox, *argv: str, port: int = PORT) -> None:
    """As `serve`, and wait until it does."""
    serve(sandbox, *argv, port=port)
    sandbox.connect(port, timeout=PATIENCE).close()


def visit(tunnel: Tunnel) -> socket.socket:
    return socket.create_connection(tunnel.tcp_socket, PATIENCE)


def rest(visitor: socket.socket) -> bytes:
    """All that comes, until the other side ends or breaks the connection."""
    got = bytearray()
    while True:
        try:
            piece = visitor.recv(1 << 20)
        except ConnectionError:
            piece = b""
        if not piece:
            return bytes(got)
        got += piece


def is_open(tunnel: Tunnel) -> bool:
    try:
        visit(tunnel).close()
    except ConnectionError:
        return False
    return True


@contextmanager
def crowd(tunnel: Tunnel, count: int) -> Iterator[list[socket.socket]]:
    """So many visitors of an echo, each let in before the next: nc's queue is short."""
    with ExitStack() as stack:
        visitors: list[socket.socket] = []
        while len(visitors) < count:
            visitors.append(stack.enter_context(visit(tunnel)))
            visitors[-1].sendall(b"x")
            assert visitors[-1].recv(1) == b"x"
        yield visitors


@contextmanager
def forwarded(sandbox: Sandbox, *argv: str) -> Iterator[Tunnel]:
    """A tunnel to what runs a program for each connection."""
    listening(sandbox, *argv)
    with sandbox.forward(PORT) as tunnel:
        yield tunnel


class TestForward:
    def test_a_browser_reaches_a_server(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.write_text("/tmp/www/index.html", "hello")
        sandbox.spawn("httpd", "-f", "-p", f"127.0.0.1:{PORT}", "-h", "/tmp/www")
        sandbox.connect(PORT, timeout=PATIENCE).close()
        with sandbox.forward(PORT) as tunnel, urllib.request.urlopen(tunnel.url, timeout=PATIENCE) as answer:
            assert answer.read() == b"hello"

    @promise("network_block")
    def test_it_talks_where_the_network_is_blocked(self, create: Create) -> None:
        with forwarded(create(block_network=True), "cat") as tunnel, visit(tunnel) as visitor:
            for said in (b"one", b"two"):
                visitor.sendall(said)
                assert visitor.recv(100) == said
            visitor.shutdown(socket.SHUT_WR)
            assert rest(visitor) == b""

    def test_much_goes_either_way_and_one_direction_ends_by_itself(self, sandbox: Sandbox) -> None:
        with (
            forwarded(sandbox, "sh", "-c", f"wc -c; head -c {MUCH} /dev/zero; echo over") as tunnel,
            visit(tunnel) as visitor,
        ):
            visitor.sendall(bytes(MUCH))
            visitor.shutdown(socket.SHUT_WR)
            got = rest(visitor)
        assert got.startswith(f"{MUCH}\n".encode())
        assert got.endswith(b"\0over\n")
        assert got.count(0) == MUCH

    def test_who_has_said_all_and_reads_late_gets_the_end(self, sandbox: Sandbox) -> None:
        """The end must not overtake what waits in the kernel's buffers."""
        with (
            forwarded(sandbox, "sh", "-c", "cat >/dev/null; head -c 1000000 /dev/zero; echo > /tmp/over") as tunnel,
            visit(tunnel) as visitor,
        ):
            visitor.sendall(b"all")
            visitor.shutdown(socket.SHUT_WR)
            eventually(lambda: sandbox.filesystem.exists("/tmp/over"), seconds=PATIENCE)
            time.sleep(0.3)  # nothing tells when the last byte has left the sandbox
            assert len(rest(visitor)) == 1_000_000

    def test_many_are_in_at_once(self, sandbox: Sandbox) -> None:
        with forwarded(sandbox, "cat") as tunnel, crowd(tunnel, 20) as visitors:
            for number, visitor in enumerate(visitors):
                visitor.sendall(b"%d" % number)
                visitor.shutdown(socket.SHUT_WR)
            assert [rest(visitor) for visitor in visitors] == [b"%d" % number for number in range(20)]

    def test_a_port_that_nothing_listens_on_turns_visitors_away(self, sandbox: Sandbox) -> None:
        with sandbox.forward(81) as tunnel:
            with visit(tunnel) as visitor:
                assert rest(visitor) == b""
            listening(sandbox, "echo", "hello", port=81)
            with visit(tunnel) as visitor:
                assert rest(visitor) == b"hello\n"

    def test_it_ends_with_its_block(self, sandbox: Sandbox) -> None:
        with forwarded(sandbox, "cat") as tunnel:
            visitor = visit(tunnel)
            visitor.sendall(b"hello")
            assert visitor.recv(100) == b"hello"
        with visitor:
            assert rest(visitor) == b""
        assert not is_open(tunnel)

    def test_it_ends_with_its_sandbox(self, create: Create) -> None:
        sandbox = create()
        with forwarded(sandbox, "cat") as tunnel, visit(tunnel) as visitor:
            visitor.sendall(b"hello")
            assert visitor.recv(100) == b"hello"
            sandbox.terminate()
            assert rest(visitor) == b""
            eventually(lambda: not is_open(tunnel))
        with pytest.raises(SandboxTerminatedError):
            sandbox.forward(PORT)

    def test_what_is_wrong_is_told(self, sandbox: Sandbox) -> None:
        for port in (0, 65536, "80"):
            with pytest.raises(InvalidError, match="port"):
                sandbox.forward(port)  # type: ignore[arg-type]
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            with pytest.raises(InvalidError, match=f"port {taken} of 127.0.0.1"):
                sandbox.forward(PORT, local_port=taken)
        with sandbox.forward(PORT, local_port=taken) as tunnel:
            assert tunnel.tcp_socket == ("127.0.0.1", taken)
            with pytest.raises(NotImplementedError, match="TLS"):
                tunnel.tls_socket  # noqa: B018


class TestPorts:
    @promise("ports")
    def test_they_are_open_until_the_end_and_everybody_knows_them(
        self, create: Create, sandboxes: SandboxClass, engine: Engine
    ) -> None:
        sandbox = create(ports=[PORT], unencrypted_ports=[81], encrypted_ports=[82, PORT], h2_ports=[83])
        tunnels = sandbox.tunnels()
        assert sorted(tunnels) == [81, 82, 83, PORT]
        assert sandboxes.from_id(sandbox.id, engine=engine).tunnels(timeout=1) == tunnels
        for port in (PORT, 83):
            listening(sandbox, "echo", str(port), port=port)
            with visit(tunnels[port]) as visitor:
                assert rest(visitor) == f"{port}\n".encode()
        sandbox.terminate()
        for tunnel in tunnels.values():
            eventually(lambda tunnel=tunnel: not is_open(tunnel))  # type: ignore[misc]
        with pytest.raises(SandboxTerminatedError):
            sandbox.tunnels()

    @promise("ports")
    def test_a_dict_says_by_which_port_of_this_machine_each_is_reached(self, create: Create) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            with pytest.raises(InvalidError, match=f"port {taken} of 127.0.0.1"):
                create(ports={PORT: taken})
        tunnels = create(ports={PORT: taken, 81: 0}).tunnels()
        assert tunnels[PORT].tcp_socket == ("127.0.0.1", taken)
        assert tunnels[81].port not in (0, taken)

    @promise("ports")
    @promise("reset")
    def test_a_reset_leaves_ways_in(self, create: Create) -> None:
        sandbox = create(ports=[PORT])
        listening(sandbox, "cat")
        with visit(sandbox.tunnels()[PORT]) as visitor, sandbox.connect(PORT) as connection:
            for each in (visitor.sendall, connection.send):
                each(b"before")
            assert visitor.recv(100) == b"before"
            assert connection.recv(100) == b"before"
            sandbox.reset()
            assert rest(visitor) == b""
            with pytest.raises(SandboxResetError):
                connection.recv(100)
        listening(sandbox, "echo", "again")
        with visit(sandbox.tunnels()[PORT]) as visitor:
            assert rest(visitor) == b"again\n"

    @promise("ports")
    def test_only_this_machine_reaches_them(self, create: Create, sandbox: Sandbox) -> None:
        served = create(ports=[PORT])
        listening(served, "cat")
        tunnel = served.tunnels()[PORT]
        assert tunnel.host == "127.0.0.1"
        assert is_open(tunnel), "the control"
        done = sandbox.exec("sh", "-c", f"echo x | nc -w 2 127.0.0.1 {tunnel.port}")
        assert (done.returncode != 0, done.stdout.read()) == (True, "")

    def test_without_any_there_are_none(self, sandbox: Sandbox) -> None:
        assert sandbox.tunnels() == {}

    def test_what_is_wrong_is_told(self, create: Create) -> None:
        for ports in ([0], [65536], ["80"], 80, "80", range(1, 40)):
            with pytest.raises(InvalidError, match="ports"):
                create(ports=ports)


class TestReadiness:
    def test_a_server_is_ready_when_it_listens(self, create: Create, face: Face) -> None:
        sandbox = create(readiness_probe=Probe.with_tcp(PORT))
        with pytest.raises(TimeoutError, match=f"port {PORT}"):
            sandbox.wait_until_ready(timeout=0.1)
        waiting = face.start(sandbox.wait_until_ready, timeout=PATIENCE)
        serve(sandbox, "cat")
        waiting.result()
        sandbox.wait_until_ready()

    def test_a_command_tells_that_it_is_ready(self, create: Create, sandboxes: SandboxClass, engine: Engine) -> None:
        sandbox = create(readiness_probe=Probe.with_exec("test", "-e", "/tmp/ready", interval_ms=10))
        with pytest.raises(TimeoutError, match="test -e /tmp/ready"):
            sandbox.wait_until_ready(timeout=0.3)
        sandbox.spawn("sh", "-c", "sleep 0.3; touch /tmp/ready")
        sandboxes.from_id(sandbox.id, engine=engine).wait_until_ready(timeout=PATIENCE)
        assert sandbox.filesystem.exists("/tmp/ready")

    @pytest.mark.parametrize("probe", [Probe.with_tcp(81), Probe.with_exec("false")], ids=["tcp", "exec"])
    def test_an_end_is_told_to_who_waits(self, create: Create, face: Face, probe: Probe) -> None:
        sandbox = create("sh", "-c", "read line; exit 7", readiness_probe=probe)
        waiting = face.start(sandbox.wait_until_ready, timeout=PATIENCE)
        sandbox.stdin.write("end\n")
        sandbox.stdin.drain()
        with pytest.raises(SandboxNotRunningError, match="exited with 7"):
            waiting.result()
        with pytest.raises(SandboxNotRunningError, match="exited with 7"):
            sandbox.wait_until_ready()

    def test_what_is_wrong_is_told(self, sandbox: Sandbox, create: Create) -> None:
        with pytest.raises(InvalidError, match="readiness_probe"):
            sandbox.wait_until_ready()
        for timeout in (0, -1, "1"):
            with pytest.raises(InvalidError, match="timeout"):
                sandbox.wait_until_ready(timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="readiness_probe"):
            create(readiness_probe=80)


__all__ = ["TestForward", "TestPorts", "TestReadiness"]
