"""This terminal, or these pipes, connected to a command in a sandbox.

Three streams are moved at once, and the SDK has no threads: so here is one for what is typed and,
without a pty, one for stderr. The main thread moves stdout and hears signals. Whatever happens, the
terminal is put back as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from openmodal.errors import Error

if TYPE_CHECKING:
    from openmodal.process import Process, StreamReader

_PIECE = 64 * 1024
_QUIT, _RESIZED = b"q", b"w"


def attach(process: Process[bytes], *, stdin: bool, pty: bool) -> int:
    """Connect this process's standard streams to the command until it ends; return its exit code."""
    with contextlib.ExitStack() as stack:
        if pty:
            stack.enter_context(_raw(0))
        if stdin:
            typist = stack.enter_context(_typing(process, pty=pty))
            if pty:
                stack.enter_context(_on_resize(typist))
        errors = threading.Thread(target=_copy, args=(process.stderr, 2), daemon=True)
        errors.start()
        try:
            _copy(process.stdout, 1)
            errors.join()
        except (KeyboardInterrupt, SystemExit, BrokenPipeError):  # `openmodal exec … | head`
            process.kill()
            raise
        return process.wait()


def size() -> tuple[int, int]:
    """Rows and columns of this terminal, whatever the environment says."""
    found = os.get_terminal_size(0)
    return found.lines, found.columns


def _copy(reader: StreamReader[bytes], fd: int) -> None:
    while data := reader.read_some():
        _write(fd, data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Typist(threading.Thread):
    """Passes on what is typed, and new window sizes, until told to quit or the command reads no more."""

    def __init__(self, process: Process[bytes], *, pty: bool) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._pty = pty
        self._orders, self._order = os.pipe()

    def tell(self, order: bytes) -> None:
        """Give an order; a signal handler may call this."""
        os.write(self._order, order)

    def run(self) -> None:
        with contextlib.suppress(Error):  # the command or the sandbox has ended: the main thread sees it, too
            if self._pty:
                self._process.resize(*size())
            while self._step():
                pass

    def _step(self) -> bool:
        ready, _, _ = select.select([0, self._orders], [], [])
        if self._orders in ready:
            orders = os.read(self._orders, 64)
            if _QUIT in orders:
                return False
            self._process.resize(*size())
        return self._pass_on() if 0 in ready else True

    def _pass_on(self) -> bool:
        data = os.read(0, _PIECE)
        if data:
            self._process.stdin.write(data)
        elif self._pty:
            self._process.stdin.write(b"\x04")
        else:
            self._process.stdin.write_eof()
        self._process.stdin.drain()
        return bool(data)


@contextlib.contextmanager
def _typing(process: Process[bytes], *, pty: bool) -> Iterator[Typist]:
    typist = Typist(process, pty=pty)
    typist.start()
    try:
        yield typist
    finally:
        typist.tell(_QUIT)
        typist.join(1)  # not for ever: it may be in the middle of a write that nobody takes


@contextlib.contextmanager
def _on_resize(typist: Typist) -> Iterator[None]:
    def resized(_number: int, _frame: object) -> None:
        typist.tell(_RESIZED)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """The terminal passes each key on as it is, also Ctrl-C; at the end it is as before."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
