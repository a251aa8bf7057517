"""What engines must know of this machine: which addresses no sandbox may reach, and which CPUs one may run on."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import math
import os
from collections.abc import Sequence
from pathlib import Path

from openmodal import _config
from openmodal._files import made, text

# Private, shared, link-local, metadata, protocol and multicast ranges; not the documentation
# ranges, which lead nowhere.
DENIED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)

# What no list of networks opens: this machine, links, the metadata of clouds, and what is no host.
NEVER = (
    "0.0.0.0/8",
    "100.100.100.200/32",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)


def own_addresses() -> tuple[str, ...]:
    """This machine's own addresses."""
    return _local(_fib_trie())


def _fib_trie() -> str:
    with open("/proc/net/fib_trie", "rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(1 << 16), b"")).decode("ascii")


@functools.lru_cache(maxsize=4)  # each create looks; it rarely finds anything new
def _local(fib_trie: str) -> tuple[str, ...]:
    """The addresses of a /proc/net/fib_trie that are the machine's."""
    found: set[str] = set()
    address = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words[:2] == ["/32", "host"] and words[2:3] == ["LOCAL"]:
            found.add(address)
    return tuple(sorted(found))


_PUBLIC_RESOLVERS = ("1.1.1.1", "8.8.8.8")


def resolvers(root: Path = Path("/")) -> tuple[str, ...]:
    """The machine's name servers that others than its loopback reach; public ones if it has none.

    Behind systemd-resolved they are those that it asks.
    """
    for name in ("etc/resolv.conf", "run/systemd/resolve/resolv.conf"):
        if found := tuple(it for it in _servers(root / name) if not is_loopback(it)):
            return found
    return _PUBLIC_RESOLVERS


def own_resolvers(root: Path = Path("/")) -> tuple[str, ...]:
    """The name servers that this machine's programs ask, also on its loopback; else public ones."""
    return _servers(root / "etc/resolv.conf") or _PUBLIC_RESOLVERS


def is_loopback(address: str) -> bool:
    """Whether an address is one of a machine for itself alone."""
    return ipaddress.ip_address(address).is_loopback


def _servers(resolv_conf: Path) -> tuple[str, ...]:
    try:
        return _nameservers(text(str(resolv_conf)))
    except OSError:
        return ()


@functools.lru_cache(maxsize=4)
def _nameservers(resolv_conf: str) -> tuple[str, ...]:
    """The IPv4 addresses: sandboxes have no IPv6."""
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                if ipaddress.ip_address(words[1]).version == 4:
                    found.append(words[1])
    return tuple(found)


def cpus(cpu: float, available: Sequence[int] = ()) -> Sequence[int]:
    """The CPUs that the sandbox sees, of this machine's or of those `available`; [] for all.

    They go round, so that sandboxes made together do not share one while others idle.
    """
    available = available or sorted(os.sched_getaffinity(0))
    return choose_cpus(cpu, available, _ticket()) if cpu < len(available) else []


def choose_cpus(cpu: float, available: Sequence[int], ticket: int) -> list[int]:
    """The CPUs that a sandbox with `cpu` cores sees: as many as it can use, beginning where `ticket` says; [] for all."""
    count = max(1, math.ceil(cpu))
    if not cpu or count >= len(available):
        return []
    start = ticket * count % len(available)
    return sorted([*available[start:], *available[:start]][:count])


@functools.lru_cache(maxsize=16)  # reading it asks each CPU
def cpuinfo(count: int) -> str:
    """The first CPUs of /proc/cpuinfo, for a sandbox that sees so many."""
    blocks = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")
    processors = [block for block in blocks if block.startswith("processor")]
    return "".join(f"{block}\n\n" for block in processors[:count])


def _ticket() -> int:
    """The next number, of all processes of this user on this machine."""
    path = os.path.join(made(_config.machine()), "ticket")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        number = int.from_bytes(os.pread(fd, 4, 0), "little")
        os.pwrite(fd, ((number + 1) & 0xFFFFFFFF).to_bytes(4, "little"), 0)
    finally:
        os.close(fd)
    return number
