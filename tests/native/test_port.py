"""An agent that can be reached over the network (--port): by whoever has the token, whatever others do there."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.native.conftest import Agent, Start
from tests.native.frames import Closed, Link, Refused, frame, many, start_frame, text
from tests.native.test_setup_frame import AUTH, OK, PING, WAITING, accept, setup

TOKEN = frame(AUTH, text("secret"))
STRANGERS = 64  # as many as the agent has room for


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Served:
    """An agent, and links to it over the network. `dial`: one that nobody has said anything on."""

    def __init__(self, agent: Agent, port: int) -> None:
        self.agent = agent
        self.port = port
        self._open = ExitStack()

    def dial(self, address: str = "127.0.0.1") -> socket.socket:
        return self._open.enter_context(socket.create_connection((address, self.port), 20))

    def link(self, *frames: bytes) -> Link:
        link = Link(self.dial())
        link.send(*frames)
        return link

    def refuses(self, *frames: bytes) -> str:
        """Why it does, and that it then closes the link."""
        link = self.link(*frames)
        with pytest.raises(Refused) as refused:
            link.expect(OK)
        with pytest.raises((Closed, ConnectionResetError)):
            link.receive()
        return refused.value.sentence

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def waiting(start: Start, port: int) -> Iterator[Served]:
    """One that is not set up."""
    served = Served(start(*WAITING, "--port", str(port)), port)
    yield served
    served.close()


@pytest.fixture
def served(waiting: Served) -> Served:
    accept(waiting.agent.link(), setup())
    return waiting


def is_over(sock: socket.socket, seconds: float = 20) -> bool:
    sock.settimeout(seconds)
    with suppress(ConnectionResetError):
        while True:
            try:
                if not sock.recv(4096):
                    return True
            except TimeoutError:
                return False
    return True


# ---- who is let in ----


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_with_the_token_it_serves_over_the_network(served: Served, address: str) -> None:
    if address == "::1" and not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    link = accept(Link(served.dial(address)), TOKEN)
    assert link.run("sh", "-c", "echo out; exit 3").exit.code == 3
    big = os.urandom(3 << 20)
    path = f"{served.agent.path}.file"
    link.write(path, big)
    assert link.read(path) == big
    Path(path).unlink()


def test_before_setup_nobody_is_let_in(waiting: Served) -> None:
    for payload in ("", "secret"):
        assert "not set up" in waiting.refuses(frame(AUTH, text(payload)))
    assert "not set up" in waiting.refuses(frame(AUTH, text("")), start_frame(bytes(16), "true"))
    accept(waiting.agent.link(), setup())
    accept(waiting.link(), TOKEN).ping()


def test_before_setup_a_token_is_worth_nothing_on_the_socket_either(waiting: Served) -> None:
    """An AUTH with anything in it once made such an agent start commands."""
    link = waiting.agent.link()
    link.send(frame(AUTH, text("anything")))
    with pytest.raises(Refused, match="not set up"):
        link.expect(OK)


def test_nobody_sets_it_up_over_the_network(waiting: Served) -> None:
    assert "not set up over the network" in waiting.refuses(setup())
    accept(waiting.agent.link(), setup())
    assert "not set up over the network" in waiting.refuses(setup())
    accept(waiting.agent.link(), setup())  # the control: on the socket it may be said again


@pytest.mark.parametrize("wrong", ["", "s", "secre", "secretsecret", "wrong!", "secret\n"])
def test_a_wrong_token_is_refused(served: Served, wrong: str) -> None:
    assert "wrong token" in served.refuses(frame(AUTH, text(wrong)))
    accept(served.link(), TOKEN).ping()


@pytest.mark.parametrize("first", [frame(PING), start_frame(bytes(16), "true"), frame(0x17, many([])), frame(0x99)])
def test_whatever_comes_first_but_the_token_is_refused(served: Served, first: bytes) -> None:
    served.refuses(first)


def test_an_empty_token_is_none(start: Start, port: int) -> None:
    agent = start(*WAITING, "--port", str(port))
    accept(agent.link(), setup(""))
    served = Served(agent, port)
    assert "wrong token" in served.refuses(frame(AUTH, text("")))
    served.close()


def test_without_a_token_there_is_no_port(start: Start, port: int) -> None:
    for options, env in (((), {}), (("--token-env", "TOKEN"), {"TOKEN": ""})):
        agent = start("--port", str(port), *options, env=env)
        assert agent.process.wait(300) == 2
    assert agent.process.stderr
    assert b"without a token" in agent.process.stderr.read()


def test_a_port_that_is_taken_is_told(start: Start, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        agent = start(*WAITING, "--port", str(port))
        assert agent.process.wait(300) == 2
    assert agent.process.stderr
    assert b"in use" in agent.process.stderr.read()


@pytest.mark.parametrize("option", ["", "SO_REUSEADDR", "SO_REUSEPORT"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_the_port_cannot_be_taken_or_shared_while_it_listens(served: Served, option: str, address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as other:
        if option:
            other.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((address, served.port))


# ---- strangers ----


def test_strangers_who_say_nothing_are_dropped(served: Served) -> None:
    begun = time.monotonic()
    assert is_over(served.dial())
    assert time.monotonic() - begun > 1, "but a client that is slow has time to say the token"


def test_strangers_who_send_much_are_dropped_before_it_is_kept(served: Served) -> None:
    sock = served.dial()
    sock.settimeout(20)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sock.sendall((1 << 20).to_bytes(4, "little") + b"\x02" + bytes(8 << 20))


def test_strangers_in_any_number_shut_out_nobody(served: Served) -> None:
    before = accept(served.link(), TOKEN)
    there = [served.dial() for _ in range(STRANGERS)]
    assert not is_over(there[0], 0.2), "so many there is room for"
    more = [served.dial() for _ in range(3 * STRANGERS)]
    accept(served.link(), TOKEN).ping()
    assert is_over(there[0], 1), "the oldest made room"
    accept(served.agent.link(), TOKEN).ping()
    before.ping()
    assert all(map(is_over, more))


def test_strangers_who_never_stop_shut_out_nobody(served: Served) -> None:
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            with ExitStack() as opened, suppress(OSError):
                for _ in range(2 * STRANGERS):
                    opened.enter_context(socket.create_connection(("127.0.0.1", served.port), 5)).send(b"x")

    threads = [threading.Thread(target=knock) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with served.dial() as sock:
                sock.sendall(TOKEN)  # at once, as the SDK does
                accept(Link(sock), frame(PING)).expect(OK)
        accept(served.agent.link(), TOKEN).ping()
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def idle(waiting: Served) -> Served:
    """It ends when nobody asks anything for a second and a half."""
    accept(waiting.agent.link(), setup(idle_ms=1500))
    return waiting


def test_strangers_do_not_keep_an_idle_sandbox_alive(idle: Served) -> None:
    deadline = time.monotonic() + 20
    while idle.agent.process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, Closed, Refused):
            idle.link(frame(AUTH, text("wrong"))).expect(OK)
        time.sleep(0.1)
    assert idle.agent.process.wait(300) == 124


def test_who_has_the_token_keeps_an_idle_sandbox_alive(idle: Served) -> None:
    """The control of the test above."""
    begun = time.monotonic()
    while time.monotonic() - begun < 3:
        accept(idle.link(), TOKEN).ping()
        time.sleep(0.1)
    assert idle.agent.process.poll() is None


# ---- descriptors ----


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("way", ["network", "socket"])
def test_without_descriptors_it_waits_without_work_and_then_serves_again(served: Served, way: str) -> None:
    """It once asked the kernel again at once, and so kept a core busy for as long."""
    process = served.agent.process
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (32, 32))
    kept = [accept(served.link(), TOKEN) for _ in range(8)]
    with ExitStack() as opened:
        for _ in range(40):
            if way == "network":
                served.dial()
            else:
                sock = opened.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(served.agent.path)
        before = cpu_seconds(process)
        time.sleep(1)
        assert cpu_seconds(process) - before < 0.15
        kept[0].ping()
    served.close()
    accept(served.link(), TOKEN).ping()
    accept(served.agent.link(), TOKEN).ping()
