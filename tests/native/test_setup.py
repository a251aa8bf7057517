"""What `init` is told over a descriptor before it serves anybody (docs/protocol.md, section 4)."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native.frames import Link

Told = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def told(program: Path, tmp_path: Path) -> Iterator[Told]:
    """Starts an agent and tells it these bytes; `end` closes its input afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(setup: bytes, *options: str, end: bool = True) -> subprocess.Popen[bytes]:
        command = [str(program), "init", "--listen", str(tmp_path / "agent.sock"), "--setup-fd", "0", *options]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={"OUTSIDE": "seen"})
        started.append(process)
        assert process.stdin
        process.stdin.write(setup)
        process.stdin.flush()
        if end:
            process.stdin.close()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(300)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def link_to(folder: Path) -> Link:
    wait_for(folder / "agent.sock")
    return Link(str(folder / "agent.sock"))


def said(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr
    text = process.stderr.read()
    process.wait(300)
    return text


def test_variables_are_the_told_ones_and_no_others(told: Told, tmp_path: Path) -> None:
    told(b"env=NAME=a=b\0env=EMPTY=\0\0")
    link = link_to(tmp_path)
    result = link.run("/bin/sh", "-c", 'echo "$NAME,$EMPTY,$OUTSIDE"')
    link.close()
    assert result.stdout == b"a=b,,\n"


def test_it_serves_nobody_before_it_was_told_everything(told: Told, tmp_path: Path) -> None:
    process = told(b"env=NAME=value\0", end=False)
    wait_for(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(tmp_path / "agent.sock"))
        early.settimeout(0.3)
        with pytest.raises(TimeoutError):
            early.recv(1)
        assert process.stdin
        process.stdin.write(b"\0")
        process.stdin.flush()
        early.settimeout(20)
        assert early.recv(1), "now it greets"


@pytest.mark.parametrize(
    ("setup", "word"),
    [
        (b"", b"cut off"),
        (b"env=NAME=value\0", b"cut off"),
        (b"nonsense=1\0\0", b"unknown key"),
        (b"nonsense\0\0", b"no value"),
        (b"deny=10.0.0.0/33\0\0", b"IPv4 prefix"),
        (b"deny=fe80::/10\0\0", b"IPv4 prefix"),
        (b"deny=10.0.0.1\0" * 49 + b"\0", b"48 of them"),
    ],
)
def test_a_setup_that_does_not_fit_is_one_sentence_and_the_end(told: Told, setup: bytes, word: bytes) -> None:
    process = told(setup)
    text = said(process)
    assert process.returncode == 1
    assert word in text
    assert text.startswith(b"openmodal-agent init: ")
    assert text.count(b"\n") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--", "/bin/sh", "-c", "echo err >&2; exit 3"), b"2 ZXJyCg==\n\nopenmodal: exited 3 0 4\n"),
        (("--", "/bin/sh", "-c", "kill -9 $$"), b"\nopenmodal: exited 137 0 0\n"),
        (("--timeout-ms", "50"), b"\nopenmodal: timeout 124 0 0\n"),
        (("--idle-ms", "50"), b"\nopenmodal: idle 124 0 0\n"),
    ],
)
def test_the_last_line_tells_how_it_ended(told: Told, options: tuple[str, ...], line: bytes) -> None:
    assert said(told(b"env=PATH=/usr/bin:/bin\0\0", *options)) == line


def test_sigterm_is_told_as_terminated(told: Told, tmp_path: Path) -> None:
    process = told(b"\0")
    link = link_to(tmp_path)
    link.ping()
    process.terminate()
    assert said(process) == b"\nopenmodal: terminated 137 0 0\n"
    link.close()


@pytest.mark.root
def test_a_caged_agent_has_given_up_its_rights(told: Told, tmp_path: Path) -> None:
    told(b"env=PATH=/usr/bin:/bin\0cage=1\0\0")
    link = link_to(tmp_path)
    lines = link.run("/bin/cat", "/proc/self/status").stdout.decode().splitlines()
    link.close()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0x800404FB
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
