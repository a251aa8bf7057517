"""What differs for a plain user, besides ids (_idmap.py): delegated cgroups, the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, collapse_addresses
from pathlib import Path

from openmodal._idmap import Lines
from openmodal.engines import machine
from openmodal.engines.embedded import network
from openmodal.engines.groups import Hierarchies
from openmodal.errors import EngineError

# Addresses inside a user's sandbox, alone in its network namespace: they collide with nothing.
ADDRESS, ROUTER, RESOLVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"


def network_lines(own: Sequence[str]) -> Lines:
    """How a user's sandbox reaches the internet: by pasta or slirp4netns.

    The box's first process loads rules against what must not be reached, before anything else runs.
    `own` are this machine's addresses.

    Raises:
        EngineError: there is no network here; the text tells the remedy.
    """
    require_network()
    # Few: most own addresses lie in private networks.
    denied = collapse_addresses(map(IPv4Network, (*own, *machine.DENIED)))
    # The empty word ends a command (docs/protocol.md, section 2).
    words = [word for command in helpers(network.tool) for word in (*command, "")]
    return [
        ("net", "exec"),
        *(("unreachable", str(prefix)) for prefix in denied),
        *(("net_exec", word) for word in words),
    ]


def helpers(which: Callable[[str], str | None], root: Path = Path("/")) -> Sequence[Sequence[str]]:
    """The commands that give a sandbox a network, in the order to try them (native/helper.c).

    AppArmor forbids Debian 12's pasta to look at another process, so that one gets open namespaces;
    newer ones close what they are given. Where AppArmor forbids it to read resolv.conf, slirp4netns
    comes first.
    """
    found: list[Sequence[str]] = []
    if pasta := which("pasta"):
        options = f"--config-net -4 -f -q -a {ADDRESS} -n 24 -g {ROUTER} --no-map-gw -t none -u none -T none -U none"
        words = (pasta, *options.split(), "--dns-forward", RESOLVER)
        found += [
            (*words, "--no-netns-quit", "--userns", "@USERNS@", "--netns", "@NETNS@"),
            (*words, "@PID@"),
        ]
    if slirp := which("slirp4netns"):
        options = "--configure --mtu=65520 --disable-host-loopback"
        found.insert(0 if _hides_resolv_conf(root) else len(found), (slirp, *options.split(), "@PID@", "eth0"))
    return found


def _hides_resolv_conf(root: Path) -> bool:
    """Whether AppArmor keeps pasta from resolv.conf: it does if that is a link."""
    return (root / "etc/resolv.conf").is_symlink() and (root / "sys/kernel/security/apparmor").exists()


def require_network() -> None:
    """Refuse where a user's sandbox can have no network.

    Raises:
        EngineError: what is missing, and the remedy.
    """
    if missing := lacking(Path("/"), network.tool):
        cause, remedy = missing
        raise EngineError(
            f"a sandbox can have no network here, because {cause}; {remedy}, or do without: block_network=True, "
            'allow_degraded=["network"], or OPENMODAL_ALLOW_DEGRADED=network, which holds for steps of images, too'
        )


def lacking(root: Path, which: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Why a user's sandbox can have no network, and the remedy; None if nothing is."""
    found: list[tuple[str, str]] = []
    tun = root / "dev/net/tun"
    if not tun.exists():
        device = "or give your container that device (--device /dev/net/tun)"
        found.append(("/dev/net/tun is missing", f"run `modprobe tun` as root, {device}"))
    elif not os.access(tun, os.R_OK | os.W_OK):
        found.append(("you may not open /dev/net/tun", "run `chmod 666 /dev/net/tun` as root"))
    if not helpers(which):
        missing = "neither pasta nor slirp4netns is installed"
        found.append((missing, "run `apt-get install passt` as root"))
    causes, remedies = (" and ".join(words) for words in zip(*found, strict=True)) if found else ("", "")
    return (causes, remedies) if found else None


def servers(which: Callable[[str], str | None], root: Path = Path("/")) -> Sequence[str]:
    """The name servers that a sandbox asks: its helper, which asks the machine's first, and those
    of the others that can be reached from a sandbox.

    A name server on the machine's loopback, such as systemd-resolved, knows whom to ask when the
    machine moves to another network, and slirp4netns reads resolv.conf again.
    """
    if _hides_resolv_conf(root) and not which("slirp4netns"):
        return machine.resolvers(root)
    return (RESOLVER, *(it for it in machine.own_resolvers(root)[1:] if not machine.is_loopback(it)))


def hierarchies(own: str, mount: str) -> Hierarchies:
    """The part of cgroup v2 that systemd delegates; `own` is /proc/self/cgroup."""
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
