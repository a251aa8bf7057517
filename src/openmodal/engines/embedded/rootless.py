"""What differs for a plain user: id maps, delegated control groups, a network by a helper program. Looks only; changes nothing."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from ipaddress import IPv4Network, collapse_addresses
from pathlib import Path

from openmodal.engines import machine
from openmodal.engines.embedded import network
from openmodal.engines.groups import Hierarchies

Lines = list[tuple[str, str]]

# Addresses inside a user's sandbox; its own network namespace has only these, so they collide with nothing.
ADDRESS, ROUTER, RESOLVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"


def id_lines() -> Lines:
    """The id map: a range from /etc/subuid if `newuidmap` is there to write it, else the user's own id alone."""
    uid, gid = os.getuid(), os.getgid()
    ranges = [
        subordinate(Path(name).read_text(), uid) for name in ("/etc/subuid", "/etc/subgid") if os.path.exists(name)
    ]
    if len(ranges) < 2 or not all(ranges) or not network.tool("newuidmap"):
        return [("ids", "single")]
    (first_uid, uids), (first_gid, gids) = (found for found in ranges if found)
    return [
        ("ids", "sub"),
        ("uid_map", f"0 {uid} 1"),
        ("uid_map", f"1 {first_uid} {uids}"),
        ("gid_map", f"0 {gid} 1"),
        ("gid_map", f"1 {first_gid} {gids}"),
    ]


def subordinate(text: str, uid: int) -> tuple[int, int] | None:
    """First id and count of the user's first range in /etc/subuid or /etc/subgid (subuid(5))."""
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            return int(first), int(count)
    return None


def network_lines(own: Sequence[str]) -> Lines:
    """How a user's sandbox reaches the internet: pasta, slirp4netns, or not at all (`openmodal doctor` says so).

    The box's first process loads rules against what must not be reached (`own`: this machine's addresses), before anything else runs.
    """
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return [("net", "none")]
    denied = collapse_addresses(
        map(IPv4Network, (*own, *machine.DENIED))
    )  # few: most own addresses lie in private networks
    refused = [("unreachable", str(prefix)) for prefix in denied]
    if pasta := network.tool("pasta"):
        options = f"--config-net -4 -f -q -a {ADDRESS} -n 24 -g {ROUTER} --dns-forward {RESOLVER} --no-map-gw"
        ports = "-t none -u none -T none -U none"
        return [
            ("net", "exec"),
            *refused,
            *(("net_exec", word) for word in (pasta, *options.split(), *ports.split(), "@PID@")),
        ]
    if slirp := network.tool("slirp4netns"):
        options = "--configure --mtu=65520 --disable-host-loopback"
        return [("net", "exec"), *refused, *(("net_exec", word) for word in (slirp, *options.split(), "@PID@", "eth0"))]
    return [("net", "none")]


def servers() -> Sequence[str]:
    """Both helpers answer questions for names at this address, and ask the machine's resolver."""
    return (RESOLVER,)


def hierarchies(own: str, mount: str) -> Hierarchies:
    """The part of cgroup v2 that systemd delegates to the user, if it does; `own` is /proc/self/cgroup."""
    unified = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "")
    service = f"/user@{os.getuid()}.service"
    head, found, _ = unified.partition(service)
    folder = f"{mount}{head}{found}"
    if not found or not os.access(f"{folder}/cgroup.procs", os.W_OK):
        return Hierarchies()
    try:
        controllers = tuple(Path(folder, "cgroup.controllers").read_text().split())
    except OSError:
        return Hierarchies()
    return Hierarchies((), folder, controllers)
