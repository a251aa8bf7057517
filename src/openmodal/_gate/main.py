"""Where the gate begins: takes its sockets, reads its policy, gives up its rights, and serves."""

from __future__ import annotations

import asyncio
import codecs
import os
import socket
import sys
from pathlib import Path

from openmodal._gate.log import Log
from openmodal._gate.policy import load
from openmodal._gate.server import Gate

LISTENER, DATAGRAMS, LIFELINE = 3, 4, 5  # as native/gate.c numbers them

_NOBODY = 65534
_NICENESS = 5


def main() -> None:
    """Run the gate: `POLICY LOG` are its arguments. It says "ready", or in one sentence why not, to the supervisor."""
    policy_path, log_path = sys.argv[1:]
    with socket.socket(fileno=LIFELINE) as lifeline:
        try:
            policy = load(Path(policy_path).read_bytes())
            log = Log(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            give_up_rights()
        except (OSError, ValueError, KeyError) as error:
            lifeline.send(f"network the gate of the sandbox cannot start: {error}".encode())
            return
        with socket.socket(fileno=LISTENER) as listener, socket.socket(fileno=DATAGRAMS) as datagrams:
            asyncio.run(Gate(policy, log).serve(listener, datagrams, lifeline))


def give_up_rights() -> None:
    """Become nobody, and nicer than others: what is read from now on is hostile. The start was not nicer, somebody waits for it."""
    os.nice(_NICENESS)
    codecs.lookup("idna")  # sockets may want it, and its file may be out of nobody's reach
    os.chdir("/")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
