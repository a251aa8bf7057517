"""An agent that waits to be told what it shall be (SETUP), and what it reports at its end."""

from __future__ import annotations

import base64
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.native.conftest import Start
from tests.native.frames import Closed, Link, Refused, frame, many, text

SETUP, AUTH, OK, PING, SHUTDOWN = 0x17, 0x02, 0x23, 0x15, 0x16
WAITING = ("--setup-ms", "60000")


def setup(
    token: str = "secret", *argv: str | bytes, env: tuple[str, ...] = (), timeout_ms: int = 0, idle_ms: int = 0
) -> bytes:
    payload = text(token) + struct.pack("<QQ", timeout_ms, idle_ms) + text("") + text("/tmp") + struct.pack("<I", 0)
    return frame(SETUP, payload + many(list(argv)) + many(list(env)))


def accept(link: Link, request: bytes) -> Link:
    link.send(request)
    link.expect(OK)
    return link


def report_of(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes, list[bytes]]:
    """What an ended agent said: stdout, stderr, and the words of its last line."""
    assert process.stdout
    lines = process.stdout.read().splitlines()
    outputs = {b"1": b"", b"2": b""}
    for line in lines[:-1]:
        outputs[line[:1]] += base64.b64decode(line[2:], validate=True)
    return outputs[b"1"], outputs[b"2"], lines[-1].split()


def test_before_setup_it_does_nothing_for_anybody(start: Start) -> None:
    agent = start(*WAITING)
    link = agent.link()
    link.send(frame(PING))
    with pytest.raises((Refused, Closed)):
        link.expect(OK)
    accept(agent.link(), setup()).ping()


def test_setup_sets_environment_workdir_and_main_command(start: Start) -> None:
    agent = start(*WAITING)
    link = accept(
        agent.link(), setup("secret", "sh", "-c", "echo $NAME; pwd; echo err >&2; exit 3", env=("NAME=value",))
    )
    assert agent.process.wait(300) == 3
    out, err, words = report_of(agent.process)
    assert (out, err) == (b"value\n/tmp\n", b"err\n")
    assert words[:4] == [b"end", b"exited", b"3", b"0"]
    assert abs(int(words[4]) / 1e6 - time.time()) < 60
    assert words[5:] == [b"11", b"4"]
    link.close()


def test_commands_later_have_the_environment_too(start: Start) -> None:
    agent = start(*WAITING, env={"NAME": "engine", "KEPT": "image", "HOME": "/engine", "KUBERNETES_PORT": "x"})
    link = accept(agent.link(), setup(env=("NAME=value",)))
    assert link.run("/bin/sh", "-c", "echo $NAME $KEPT $HOME $KUBERNETES_PORT").stdout.split()[:2] == [
        b"value",
        b"image",
    ]
    assert b"engine" not in link.run("/bin/sh", "-c", "env").stdout


def test_after_setup_who_connects_needs_the_token(start: Start) -> None:
    agent = start(*WAITING)
    accept(agent.link(), setup()).ping()
    stranger = agent.link()
    stranger.send(frame(PING))
    with pytest.raises((Refused, Closed)):
        stranger.expect(OK)
    wrong = agent.link()
    wrong.send(frame(AUTH, text("wrong")))
    with pytest.raises((Refused, Closed)):
        wrong.expect(OK)
    accept(agent.link(), frame(AUTH, text("secret"))).ping()


def test_setup_again_changes_nothing(start: Start) -> None:
    """Its answer may be lost, so who sent it asks again; nobody else may."""
    agent = start(*WAITING)
    accept(agent.link(), setup(env=("NAME=one",)))
    again = accept(agent.link(), setup(env=("NAME=two",)))
    assert again.run("sh", "-c", "echo $NAME").stdout == b"one\n"
    other = agent.link()
    other.send(setup("other"))
    with pytest.raises((Refused, Closed)):
        other.expect(OK)


def test_an_agent_without_the_option_is_not_set_up(start: Start) -> None:
    link = start().link()
    link.send(setup())
    with pytest.raises((Refused, Closed)):
        link.expect(OK)


def test_a_big_environment_fits(start: Start) -> None:
    link = accept(start(*WAITING).link(), setup(env=("BIG=" + "x" * 60_000,)))
    assert link.run("sh", "-c", "printf %s $BIG | wc -c").stdout.strip() == b"60000"


def test_nobody_sets_it_up_so_it_ends(start: Start) -> None:
    agent = start("--setup-ms", "300")
    assert agent.process.wait(300) == 124
    assert report_of(agent.process)[2][:3] == [b"end", b"abandoned", b"124"]


def test_the_lifetime_begins_with_setup(start: Start) -> None:
    agent = start(*WAITING)
    time.sleep(0.6)
    link = accept(agent.link(), setup(timeout_ms=500))
    link.ping()
    assert agent.process.wait(300) == 124
    assert report_of(agent.process)[2][:3] == [b"end", b"timeout", b"124"]


@pytest.mark.parametrize("size", [1, 2, 3, 8999, 9000, 9001, 100_000])
def test_output_of_any_size_and_kind_is_reported(start: Start, size: int) -> None:
    agent = start(*WAITING)
    accept(agent.link(), setup("secret", "sh", "-c", f"head -c {size} /dev/zero"))
    assert agent.process.stdout
    out, err, words = report_of(agent.process)
    assert (len(out), out.strip(b"\0"), err) == (size, b"", b"")
    assert words[1] == b"exited"


def test_of_endless_output_the_newest_is_reported(start: Start) -> None:
    agent = start(*WAITING)
    accept(agent.link(), setup("secret", "seq", "1", "2000000"))
    out, _, _ = report_of(agent.process)
    assert out.endswith(b"1999999\n2000000\n")
    assert len(out) <= 3 << 20


@pytest.mark.parametrize("attempt", range(10))
def test_what_was_sent_arrives_before_the_end(program: Path, start: Start, attempt: int) -> None:
    """An exit kills `dial`, as process 1 of a container; it must have passed everything on."""
    agent = start(*WAITING)
    exit_wanted = frame(0x11, bytes(16) + struct.pack("<BQQQBIII", 4, 0, 0, 0, 0, 1 << 20, 0xFFFFFFFF, 0))
    with subprocess.Popen([program, "dial", agent.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dial:
        assert dial.stdin
        assert dial.stdout
        dial.stdin.write(setup("secret", "sh", "-c", "exit 5") + exit_wanted)
        dial.stdin.flush()
        said = dial.stdout.read()
        record = said[-(4 + 32) :]
        assert (record[:2], said[-45 - 5 + 4]) == (b"\0\5", 0x22)


def test_a_name_of_the_network_namespace_is_listened_on(program: Path, tmp_path: Path) -> None:
    name = f"@openmodal-test-{tmp_path.name}-{id(tmp_path)}"
    with subprocess.Popen([program, "init", "--listen", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as agent:
        with socket.socket(socket.AF_UNIX) as client:
            for _ in range(500):
                if client.connect_ex("\0" + name[1:]) == 0:
                    break
                time.sleep(0.01)
            assert client.recv(100)[4] == 1, "it says HELLO"
        second = subprocess.run([program, "init", "--listen", name], capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "in use" in second.stderr.lower()
        agent.terminate()


def test_dial_carries_nothing_while_it_is_traced(program: Path, start: Start) -> None:
    """PTRACE_TRACEME before exec: the tracer is our test, as a command in the sandbox would be."""
    agent = start()
    code = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    libc.ptrace(0, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])\n"
        "while True:\n"
        "    _, status = os.waitpid(pid, 0)\n"
        "    if os.WIFEXITED(status): sys.exit(os.WEXITSTATUS(status))\n"
        "    libc.ptrace(7, pid, 0, 0)\n"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, str(program), "dial", agent.path],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "tracing" in done.stderr
