"""The native child that lets a port of this machine lead into a sandbox of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping

from openmodal import _binary, _config
from openmodal.engines.contract import Door
from openmodal.errors import InvalidError

LOCAL = "127.0.0.1"

_WAITING = 128  # connections that nobody has accepted yet


def listen(port: int = 0) -> socket.socket:
    """A listener on this machine's loopback address.

    Raises:
        InvalidError: another process has that port.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCAL, port))
        listener.listen(_WAITING)
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise InvalidError(
            f"port {port} of {LOCAL} cannot be had ({error.strerror}); choose another, or leave it out for any"
        ) from None
    return listener


@contextlib.contextmanager
def listening(ports: Mapping[int, int]) -> Iterator[dict[int, socket.socket]]:
    """A listener for each port of a sandbox, on the port of this machine that is given for it (0:
    any). This process has them until the block's end."""
    with contextlib.ExitStack() as stack:
        yield {port: stack.enter_context(listen(local)) for port, local in ports.items()}


def start(door: Door, listener: socket.socket, port: int) -> int:
    """Start it and return its process id. It ends with the sandbox, and with this process."""
    return _start(door, listener, port, os.getpid())


def start_to_stay(door: Door, listener: socket.socket, port: int) -> None:
    """Start it so that it outlives this process, and ends with the sandbox only."""
    pid = _start(door, listener, port, 0)
    with contextlib.suppress(ChildProcessError):  # the user's program may ignore SIGCHLD
        os.waitpid(pid, 0)


def _start(door: Door, listener: socket.socket, port: int, owner: int) -> int:
    folder = os.open(door.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        arguments = ["forward", str(owner), str(door.agent), str(port)]
        return _binary.start(_binary.find(_config.state()), arguments, folder, nothing, listener.fileno())
    finally:
        os.close(folder)
        os.close(nothing)
