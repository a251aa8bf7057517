"""`Sandbox.connect`: bytes to and from what listens in a sandbox."""

from __future__ import annotations

import random
from typing import cast

import pytest

from openmodal.connection import Connection
from openmodal.engines import Engine
from openmodal.errors import (
    InvalidError,
    SandboxConnectionRefusedError,
    SandboxConnectionResetError,
    SandboxTerminatedError,
)
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, Flaky, eventually, promise, running

PORT = 8000
PATIENCE = 60.0


def serve(sandbox: Sandbox, *argv: str, port: int = PORT) -> None:
    """Run a program for each connection, with the connection as its input and output."""
    sandbox.spawn("nc", "-ll", "-p", str(port), "-e", *argv)


def everything(connection: Connection) -> bytes:
    pieces = []
    while piece := connection.recv():
        pieces.append(piece)
    return b"".join(pieces)


class TestConnections:
    def test_it_talks(self, sandbox: Sandbox) -> None:
        serve(sandbox, "cat")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            for said in (b"one", b"two"):
                connection.send(said)
                assert connection.recv() == said
            connection.send(b"0123456789")
            assert connection.recv(4) + connection.recv(4) + connection.recv(4) == b"0123456789"
            connection.send_eof()
            assert (connection.recv(), connection.recv()) == (b"", b"")

    @promise("network_block")
    def test_a_blocked_network_does_not_block_it(self, create: Create) -> None:
        sandbox = create(block_network=True)
        serve(sandbox, "cat")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            connection.send(b"inside")
            assert connection.recv() == b"inside"

    def test_much_goes_both_ways_at_once(self, sandbox: Sandbox, face: Face) -> None:
        serve(sandbox, "cat")
        data = random.Random(7).randbytes(3_000_000)
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            sent = face.start(connection.send, data)
            got = b""
            while len(got) < len(data):
                got += connection.recv(1 << 20)
            sent.result()
        assert got == data

    def test_the_end_of_one_direction_leaves_the_other(self, sandbox: Sandbox) -> None:
        serve(sandbox, "sh", "-c", "cat | wc -c")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            connection.send(bytes(100_000))
            connection.send_eof()
            assert everything(connection) == b"100000\n"

    def test_links_that_break_do_not_break_it(self, sandbox: Sandbox, engine: Engine, face: Face) -> None:
        serve(sandbox, "cat")
        flaky = Flaky(engine, [("receive", 40_000)] * 5 + [("send", 3)] * 5)
        data = random.Random(8).randbytes(300_000)
        with face(Sandbox(sandbox.id, cast("Engine", flaky))).connect(PORT, timeout=PATIENCE) as connection:
            connection.send(data)
            connection.send_eof()
            assert everything(connection) == data
        assert flaky.links > 3

    @pytest.mark.parametrize("timeout", [0, 0.1])
    def test_a_port_that_nothing_listens_on_is_told(self, sandbox: Sandbox, timeout: float) -> None:
        with pytest.raises(SandboxConnectionRefusedError, match="port 81 ") as caught:
            sandbox.connect(81, timeout=timeout)
        assert isinstance(caught.value, ConnectionRefusedError)

    def test_it_waits_until_something_listens(self, sandbox: Sandbox, face: Face) -> None:
        waiting = face.start(sandbox.connect, PORT, timeout=PATIENCE)
        assert sandbox.exec("true").returncode == 0
        serve(sandbox, "echo", "hello")
        with waiting.result() as connection:
            assert everything(connection) == b"hello\n"

    def test_a_connection_that_is_broken_is_no_end(self, sandbox: Sandbox) -> None:
        """A program that leaves something unread resets the connection."""
        serve(sandbox, "sleep", "0.2")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            connection.send(b"unread")
            with pytest.raises(SandboxConnectionResetError, match="port 8000"):
                connection.recv()

    def test_closing_it_sends_what_was_sent_and_leaves_nothing(self, sandbox: Sandbox) -> None:
        serve(sandbox, "sh", "-c", "cat > /tmp/got; touch /tmp/over")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection:
            connection.send(bytes(200_000))
        eventually(lambda: sandbox.filesystem.exists("/tmp/over"))
        assert sandbox.filesystem.stat("/tmp/got").size == 200_000
        with pytest.raises(InvalidError, match="closed"):
            connection.send(b"late")
        connection.close()

    def test_closing_it_does_not_wait_for_who_does_not_listen(self, sandbox: Sandbox) -> None:
        serve(sandbox, "sleep", "54321")
        sandbox.connect(PORT, timeout=PATIENCE).close()
        before = len(running(sandbox, ""))
        with sandbox.connect(PORT) as connection:
            connection.send(b"unread")
            eventually(lambda: len(running(sandbox, "sleep 54321")) > 1)
            assert len(running(sandbox, "")) > before + 1, "the control: it is carried by processes of the sandbox"
        eventually(lambda: len(running(sandbox, "")) == before + 1)

    def test_it_ends_with_its_sandbox(self, create: Create, face: Face) -> None:
        sandbox = create()
        serve(sandbox, "cat")
        connection = sandbox.connect(PORT, timeout=PATIENCE)
        received = face.start(connection.recv)
        connection.send(b"x")
        assert received.result() == b"x"
        received = face.start(connection.recv)
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            received.result()
        for call in (lambda: connection.send(b"x"), lambda: sandbox.connect(PORT)):
            with pytest.raises(SandboxTerminatedError):
                call()
        connection.close()

    def test_what_is_wrong_is_told(self, sandbox: Sandbox) -> None:
        for port in (0, 65536, -1, "80"):
            with pytest.raises(InvalidError, match="port"):
                sandbox.connect(port)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="timeout"):
            sandbox.connect(PORT, timeout=-1)
        serve(sandbox, "cat")
        with sandbox.connect(PORT, timeout=PATIENCE) as connection, pytest.raises(InvalidError, match="encode"):
            connection.send("text")  # type: ignore[arg-type]


__all__ = ["TestConnections"]
