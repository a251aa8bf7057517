"""The gate's service: takes its sockets, drops its rights, serves until the supervisor ends."""

from __future__ import annotations

import asyncio
import os
import socket

from openmodal._gate import rights
from openmodal._gate.log import Log
from openmodal._gate.main import LIFELINE
from openmodal._gate.policy import load
from openmodal._gate.server import Gate

LISTENER, DATAGRAMS, FILTER = 3, 4, 6  # as native/gate.c numbers them

_NICENESS = 5


def run(policy: bytes, log: int, id: str, died: str) -> None:
    """Serve by that policy, and log there. Any failure ends the gate: nothing gets out then."""
    notes = Log(log)
    gate = Gate(load(policy), notes)
    if died:
        notes.add("gate", "", "", f"the gate had ended ({died}) and was started again", allowed=False)
    calls = rights.read_filter(FILTER)
    rights.become(id)
    with (
        socket.socket(fileno=LIFELINE) as lifeline,
        socket.socket(fileno=LISTENER) as listener,
        socket.socket(fileno=DATAGRAMS) as datagrams,
    ):

        def begin() -> None:
            """Everything is loaded; nothing from inside was read."""
            os.nice(_NICENESS)
            rights.keep_to(calls)
            lifeline.send(b"ready")

        asyncio.run(gate.serve(listener, datagrams, lifeline, begin))
