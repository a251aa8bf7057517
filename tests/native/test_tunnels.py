"""What docs/protocol.md promises of DIAL, held against the real program."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.native.conftest import Agent
from tests.native.frames import Closed, Link, Refused, frame

DIAL, OK = 0x1A, 0x23
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def accepted(server: socket.socket) -> socket.socket:
    other, _ = server.accept()
    other.settimeout(60)
    return other


def dial(link: Link, port: int, wait_ms: int = 0) -> socket.socket:
    link.send(frame(DIAL, struct.pack("<HI", port, wait_ms)))
    link.expect(OK)
    return link.socket


def test_the_link_becomes_the_connection(link: Link, listening: socket.socket) -> None:
    there = dial(link, port_of(listening))
    with accepted(listening) as other:
        other.sendall(b"hello")
        assert there.recv(100) == b"hello"
        there.sendall(b"there")
        there.shutdown(socket.SHUT_WR)
        assert (other.recv(100), other.recv(100)) == (b"there", b"")
        other.sendall(b" again")
        assert there.recv(100) == b" again"
    assert there.recv(100) == b""


def test_where_nothing_listens_the_link_stays_one(link: Link, listening: socket.socket) -> None:
    port = port_of(listening)
    listening.close()
    for wait_ms in (0, 50):
        with pytest.raises(Refused) as caught:
            dial(link, port, wait_ms)
        assert caught.value.code == 0x100 + errno.ECONNREFUSED
    link.ping()


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0\0\0", b"\1\0\0\0\0", b"\1\0\0\0\0\0\0"], ids=bytes.hex)
def test_what_is_no_dial_closes_the_link(link: Link, payload: bytes) -> None:
    link.send(frame(DIAL, payload))
    with pytest.raises(Refused) as caught:
        link.expect(OK)
    assert caught.value.code == 1
    with pytest.raises(Closed):
        link.receive()


def test_a_connection_that_breaks_closes_the_link_before_its_end(link: Link, listening: socket.socket) -> None:
    there = dial(link, port_of(listening))
    other = accepted(listening)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    assert there.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        there.sendall(b"x")


def test_a_client_that_is_gone_resets_the_connection(link: Link, listening: socket.socket) -> None:
    dial(link, port_of(listening))
    with accepted(listening) as other:
        link.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_256_links_are_connections_and_no_more(agent: Agent, listening: socket.socket) -> None:
    listening.listen(300)
    links = [agent.link(60) for _ in range(257)]
    for link in links[:256]:
        dial(link, port_of(listening))
    with pytest.raises(Refused) as caught:
        dial(links[256], port_of(listening))
    assert caught.value.code == 4
    links[0].close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            dial(links[256], port_of(listening))
            return
        except Refused:
            time.sleep(0.01)
    raise AssertionError("the place of one that ended is free")
