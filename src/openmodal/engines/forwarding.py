"""The native child that lets a port of this machine lead into a sandbox of this machine."""

from __future__ import annotations

import contextlib
import os
import socket

from openmodal import _binary, _config
from openmodal.engines.contract import Door


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
