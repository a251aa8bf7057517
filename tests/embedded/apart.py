"""A machine of its own for tests that flush firewalls and change addresses, as far as networks go.

    with apart(folder) as machine: the thread that runs the test is there, and so is what it starts

Its way out leads to the tests' small internet (internet.py), whose addresses are name servers, too.
Sandboxes have a router of their own, for /run/openmodal is another folder there.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from openmodal import _config
from tests.embedded.internet import OTHER, PUBLIC, Internet, run, serving

_OWN_FOLDER, _NEW_MOUNTS, _NEW_NETWORK = 0x200, 0x00020000, 0x40000000  # unshare(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Machine:
    """The machine that the test is on."""

    net: Internet
    resolv_conf: Path

    def moves(self) -> None:
        """To another network, as a laptop does: other address, other way out, other name server."""
        run("ip", "route", "del", "default")
        run("ip", "route", "replace", "unreachable", f"{PUBLIC}/32")  # the old name server is not there
        run("ip", "addr", "add", "192.0.2.253/32", "dev", "omnet0")
        run("ip", "addr", "del", "192.0.2.254/32", "dev", "omnet0")
        _answer_only_to(self.net, "192.0.2.253")
        run("ip", "route", "add", "default", "via", OTHER, "dev", "omnet0")
        self.resolv_conf.write_text(f"nameserver {OTHER}\n")


@contextmanager
def apart(folder: Path) -> Iterator[Machine]:
    """Go to the machine, and come back."""
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {PUBLIC}\n")
    with ExitStack() as stack:
        stack.enter_context(_other_namespaces())
        _config.machine().mkdir(mode=0o700, exist_ok=True)
        run("mount", "--make-rprivate", "/")
        run("mount", "-t", "tmpfs", "-o", "mode=700", "none", str(_config.machine()))
        run("mount", "--bind", str(resolv_conf), os.path.realpath("/etc/resolv.conf"))
        run("ip", "link", "set", "lo", "up")
        net = stack.enter_context(serving(folder))
        _answer_only_to(net, "192.0.2.254")
        run("ip", "route", "add", "default", "via", PUBLIC, "dev", "omnet0")
        yield Machine(net, resolv_conf)


def _answer_only_to(net: Internet, ours: str) -> None:
    """As the internet does: no answer comes to an address that is only known here."""
    inside = ("nsenter", f"--net=/proc/{net.process.pid}/ns/net", "ip", "route")
    run(*inside, "replace", f"{ours}/32", "dev", "omnet1", "src", PUBLIC)
    run(*inside, "flush", "exact", "default")


@contextmanager
def _other_namespaces() -> Iterator[None]:
    """Of this thread, which is the process's first: so /proc/self shows them."""
    here = os.getcwd()
    with ExitStack() as stack:
        old = [stack.enter_context(open(f"/proc/self/ns/{kind}", "rb")) for kind in ("net", "mnt")]
        _call("unshare", _NEW_MOUNTS | _NEW_NETWORK)
        try:
            yield
        finally:
            _call("unshare", _OWN_FOLDER)  # threads that were started here share it, and then mounts cannot be changed
            for namespace in old:
                _call("setns", namespace.fileno(), 0)
            os.chdir(here)


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name} failed")
