"""The gate's service: takes its sockets, gives up its rights, and serves until the supervisor is gone."""

from __future__ import annotations

import asyncio
import codecs
import os
import socket

from openmodal._gate.log import Log
from openmodal._gate.main import LIFELINE
from openmodal._gate.policy import load
from openmodal._gate.server import Gate

LISTENER, DATAGRAMS = 3, 4  # as native/gate.c numbers them

_NOBODY = 65534


def run(policy: bytes, log: int) -> None:
    """Serve by that policy, and write to that descriptor. Whatever fails here ends the gate, and then nothing leaves the sandbox."""
    gate = Gate(load(policy), Log(log))
    give_up_rights()
    with (
        socket.socket(fileno=LIFELINE) as lifeline,
        socket.socket(fileno=LISTENER) as listener,
        socket.socket(fileno=DATAGRAMS) as datagrams,
    ):
        asyncio.run(gate.serve(listener, datagrams, lifeline))


def give_up_rights() -> None:
    """Become nobody: what is read from now on is hostile."""
    codecs.lookup("idna")  # sockets may want it, and its file may be out of nobody's reach
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
