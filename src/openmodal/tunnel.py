"""Tunnel: a port of this machine that leads into a sandbox.

Nothing of it runs in the caller's process. A small child accepts and copies: the native program
where the agent's socket is on this machine, else a Python that asks as any of the user's would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Any

import msgspec

from openmodal._dual import Blocking, DualContext
from openmodal.engines import Door, forwarding
from openmodal.engines.forwarding import LOCAL, listen
from openmodal.errors import UnsupportedError

_WAITING = 128  # connections that nobody has accepted yet
_CARRIER = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from openmodal.sandbox.carrier import main
main()
"""


class Tunnel(msgspec.Struct, frozen=True):
    """Where this machine reaches a port of a sandbox, over plain TCP.

    Attributes:
        host, port: the address; only this machine reaches it, but every user of it does.
    """

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address for a server that speaks HTTP."""
        return f"http://{self.host}:{self.port}"

    @property
    def tcp_socket(self) -> tuple[str, int]:
        """The address for `socket.create_connection`."""
        return self.host, self.port

    @property
    def tls_socket(self) -> tuple[str, int]:
        """Always refused: there is no TLS to one's own machine.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("a tunnel ends on this machine and speaks plain TCP, without TLS; use tcp_socket or url")


class Forward(Tunnel, DualContext, frozen=True):
    """A tunnel that lasts as long as its `with` block, its process, and its sandbox."""

    _child: _Child

    def __repr__(self) -> str:
        return f"Forward(host={self.host!r}, port={self.port})"

    async def _close(self) -> None:
        await Blocking(self._child.end)


class _Child:
    """A process that carries the bytes of one tunnel. A copy elsewhere is not its parent."""

    def __init__(self, pid: int, handle: int) -> None:
        self._pid = pid
        self._handle = handle

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._pid, -1)

    def __repr__(self) -> str:
        return f"<process {self._pid}>"

    def end(self) -> None:
        """End it, and return when it is gone; again: nothing."""
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            # The user's program may have reaped it, or ignore SIGCHLD.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        finally:
            os.close(handle)


def open_near(door: Door, listener: socket.socket, port: int) -> Forward:
    """Forward to a sandbox whose agent listens on this machine."""
    return _opened(listener, forwarding.start(door, listener, port))


async def open_far(sandbox: object, listener: socket.socket, port: int) -> Forward:
    """Forward to a sandbox that is reached in its engine's own way; `sandbox` goes to the child.

    If we are interrupted, the thread that starts the child goes on: then it ends what it has
    started, unless we are the first to do that.
    """
    opened: list[Forward] = []
    wanted = [True]

    def begin(own: socket.socket) -> None:
        with own:
            opened.append(_begin_far(sandbox, own, port))
        if not wanted:
            end()

    def end() -> None:
        with contextlib.suppress(IndexError):
            opened.pop()._child.end()

    try:
        await Blocking(begin, listener.dup())
    except BaseException:
        wanted.clear()
        end()
        raise
    return opened[0]


def _begin_far(sandbox: object, listener: socket.socket, port: int) -> Forward:
    import pickle
    import subprocess

    command = [sys.executable, "-c", _CARRIER]
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()], start_new_session=True
    )
    assert started.stdin, "it is a pipe"
    with started.stdin as told:
        pickle.dump([*sys.path], told)
        pickle.dump((sandbox, listener.fileno(), port, os.getpid()), told)
    started.returncode = 0  # it is waited for here, and by its handle
    return _opened(listener, started.pid)


def _opened(listener: socket.socket, pid: int) -> Forward:
    host, port = listener.getsockname()
    return Forward(host, port, _Child(pid, os.pidfd_open(pid)))


__all__ = ["LOCAL", "Forward", "Tunnel", "listen", "open_far", "open_near"]
