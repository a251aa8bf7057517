"""Which chain of this machine's firewall drops what sandboxes send.

Rules alone do not tell: a chain may drop through others, by sets, maps and marks. But the kernel
can trace a packet through nf_tables. So a packet is sent from the router, as sandboxes' packets
come, and followed. The tables of iptables-legacy cannot be traced.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openmodal import _binary
from openmodal.engines.embedded.uplink import NAME, run, tool
from openmodal.errors import EngineError

_ATTEMPTS, _PAUSE = 10, 0.2
_TABLE = "openmodal-trace"
_SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    for address in sys.argv[1:]:
        client.sendto(b"", (address, 53))
"""
_PACKET = re.compile(rf'^trace id (\w+) \w+ \S+ \S+ packet: iif "{NAME}" ', re.MULTILINE)
_DROPPED = re.compile(r"^trace id (\w+) (\w+) (\S+) (\S+) (?:rule .*\(verdict drop\)|policy drop)", re.MULTILINE)


def dropper(router: Path, addresses: Sequence[str]) -> str:
    """The chain that drops a question for a name to one of these addresses, as `nft list chain`
    takes it; "" if none does, or if it is not known."""
    nft, enter = tool("nft"), tool("nsenter")
    if not nft or not enter:
        return ""
    # A kernel without nf_tables traces nothing.
    with contextlib.suppress(EngineError), _traced(nft, addresses) as said:
        for _ in range(_ATTEMPTS):  # the first may be sent before anybody listens
            _binary.run([enter, f"--net={router}", sys.executable, "-I", "-S", "-c", _SEND, *addresses])
            time.sleep(_PAUSE)
            if chain := dropping(said()):
                return chain
            if _PACKET.search(said()):
                break
    return ""


def dropping(trace: str) -> str:
    """The chain that drops a packet of ours, by what `nft monitor trace` says."""
    ours = set(_PACKET.findall(trace))
    return next((f"{family} {table} {chain}" for id, family, table, chain in _DROPPED.findall(trace) if id in ours), "")


@contextmanager
def _traced(nft: str, addresses: Sequence[str]) -> Iterator[Callable[[], str]]:
    """Have questions to these addresses traced; gives what is said of them so far."""
    where = f'iifname "{NAME}" ip daddr {{ {", ".join(addresses)} }} udp dport 53 meta nftrace set 1'
    hook = "type filter hook prerouting priority -500"
    with tempfile.TemporaryFile("w+") as output:
        run([nft, "-f", "-"], f"table ip {_TABLE} {{ chain c {{ {hook}; {where}; }}; }}\n")
        try:
            with subprocess.Popen([nft, "monitor", "trace"], stdout=output, stderr=subprocess.DEVNULL) as monitor:
                try:
                    yield lambda: _whole(output.fileno())
                finally:
                    monitor.terminate()
        finally:
            _binary.run([nft, "delete", "table", "ip", _TABLE])


def _whole(file: int) -> str:
    return os.pread(file, 1 << 20, 0).decode("utf-8", "replace")
