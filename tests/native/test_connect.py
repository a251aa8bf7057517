"""What docs/protocol.md promises of commands that are connections (CONNECT), held against the real program."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.native.conftest import Agent
from tests.native.frames import ATTACHED, CONNECT, EXIT, STDERR, STDIN, STDOUT, WITH_STDIN, Link, Refused

FLAGS = CONNECT | WITH_STDIN | ATTACHED


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


def port_of(server: socket.socket) -> str:
    return str(server.getsockname()[1])


def accepted(server: socket.socket) -> socket.socket:
    other, _ = server.accept()
    other.settimeout(60)
    return other


def test_bytes_go_both_ways_and_each_direction_ends_by_itself(link: Link, listening: socket.socket) -> None:
    id = link.start(port_of(listening), flags=FLAGS)
    with accepted(listening) as other:
        other.sendall(b"hello")
        assert link.io(id, STDOUT).data[1] == b"hello"
        link.io(id, STDIN, data=b"there", ends=True)
        assert (other.recv(100), other.recv(100)) == (b"there", b"")
        other.sendall(b" again")
        assert link.io(id, STDOUT, out=5).data[1] == b" again"
        assert link.io(id, EXIT, wait=0).exit is None
    result = link.finish(id, out=11)
    assert (result.stdout, result.stderr, result.exit.code) == (b"", b"", 0)


def test_ipv6_is_tried_after_ipv4(link: Link) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"needs ::1 on this machine ({error})")
    with server:
        id = link.start(port_of(server), flags=FLAGS)
        with server.accept()[0] as other:
            other.sendall(b"six")
        assert link.io(id, STDOUT).data[1] == b"six"


def test_a_connection_that_breaks_says_why_before_its_output_ends(link: Link, listening: socket.socket) -> None:
    id = link.start(port_of(listening), flags=FLAGS)
    other = accepted(listening)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()
    assert link.io(id, STDOUT).data == {}
    assert b"reset" in link.io(id, STDERR, wait=0).data[2]
    assert link.finish(id).exit.code == 1


def test_where_nothing_listens_is_an_error_of_the_kernel(link: Link, listening: socket.socket) -> None:
    port = port_of(listening)
    listening.close()
    for argv in ((port,), (port, "50")):
        with pytest.raises(Refused) as caught:
            link.start(*argv, flags=FLAGS)
        assert caught.value.code == 0x100 + errno.ECONNREFUSED


@pytest.mark.parametrize("argv", [("0",), ("65536",), ("http",), ("-1",), ("80", "soon")], ids=" ".join)
def test_what_is_no_port_is_refused(link: Link, argv: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        link.start(*argv, flags=FLAGS)
    assert caught.value.code == 3


def test_unknown_flags_are_unsupported(link: Link) -> None:
    with pytest.raises(Refused) as caught:
        link.start("80", flags=CONNECT << 1)
    assert caught.value.code == 5


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_ends_when_nobody_has_it_any_more(agent: Agent, listening: socket.socket) -> None:
    """A client that was killed cannot close it, and the other side is not to wait for ever. Others have theirs: the control."""
    kept, gone = agent.link(), agent.link()
    id = kept.start(port_of(listening), flags=FLAGS)
    with accepted(listening) as first:
        gone.start(port_of(listening), flags=FLAGS)
        with accepted(listening) as second:
            began = time.monotonic()
            gone.close()
            assert second.recv(1) == b""
            assert time.monotonic() - began > 5, "a link that broke may be opened again"
        first.sendall(b"x")
        assert kept.io(id, STDOUT).data[1] == b"x"
