"""`openmodal shell` in a real terminal: a pty, whose other side types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

import pytest

from openmodal.testing.fixtures import eventually
from tests.cli.conftest import COMMAND, CommandLine

pytestmark = pytest.mark.embedded


class Terminal:
    """A terminal with `openmodal …` in it."""

    def __init__(self, openmodal: CommandLine, *arguments: str, rows: int = 40, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        self._slave = os.dup(slave)
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.pid = os.posix_spawn(
            "/usr/bin/env",
            ["env", "-C", str(openmodal.folder), "setsid", "--ctty", "--wait", *COMMAND, *arguments],
            os.environ | {"TERM": "dumb"},
            file_actions=[(os.POSIX_SPAWN_DUP2, slave, fd) for fd in (0, 1, 2)],
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def shows(self, text: str, seconds: float = 20) -> str:
        """Read until the text appears."""
        seen = b""
        deadline = time.monotonic() + seconds
        while text.encode() not in seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear: {seen!r}"
            seen += os.read(self._master, 4096)
        return seen.decode()

    def answers(self, line: str, text: str) -> bool:
        """Type a line; whether the text appears within a second."""
        self.types(line)
        try:
            self.shows(text, seconds=1)
        except AssertionError:
            return False
        return True

    def exit_code(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.after = termios.tcgetattr(self._slave)
        os.close(self._slave)
        os.close(self._master)
        return code


@pytest.fixture
def image(openmodal: CommandLine) -> str:
    name = openmodal.program("")
    openmodal("--local", "image", "build", name)
    return name


def test_keys_size_and_exit_code_pass_and_the_terminal_is_restored(openmodal: CommandLine, image: str) -> None:
    terminal = Terminal(openmodal, "--local", "shell", "--image", image)
    terminal.shows("# ")
    terminal.types("stty size\r")
    terminal.shows("40 100")
    terminal.resize(50, 120)
    eventually(lambda: terminal.answers("stty size\r", "50 120"))  # the signal takes its way
    terminal.types("sleep 100\r")
    time.sleep(0.3)
    terminal.types("\x03")  # ends sleep, not us
    terminal.types("exit 7\r")
    assert terminal.exit_code() == 7
    assert terminal.after == terminal.before
    assert openmodal("--local", "sandbox", "list", "--app", "shell") == ""


def test_leaving_a_shell_in_a_running_sandbox_leaves_it_running(openmodal: CommandLine, sandbox: str) -> None:
    terminal = Terminal(openmodal, "--local", "sandbox", "shell", sandbox)
    terminal.shows("# ")
    terminal.types("\x04")
    assert terminal.exit_code() == 0
    assert openmodal.running() == [sandbox]


def test_closing_the_window_ends_the_sandbox(openmodal: CommandLine, image: str) -> None:
    terminal = Terminal(openmodal, "--local", "shell", "--image", image)
    terminal.shows("# ")
    os.kill(terminal.pid, signal.SIGHUP)  # as the kernel does
    assert terminal.exit_code() != 0
    assert terminal.after == terminal.before
    assert openmodal("--local", "sandbox", "list", "--app", "shell") == ""


def test_exec_with_a_terminal(openmodal: CommandLine, sandbox: str) -> None:
    terminal = Terminal(
        openmodal, "--local", "sandbox", "exec", "-t", sandbox, "sh", "-c", "echo ready; read line; echo got $line"
    )
    terminal.shows("ready")
    terminal.types("this\r")
    terminal.shows("got this")
    assert terminal.exit_code() == 0
