"""The sandboxes' way out: a router of our own, in a network namespace that all sandboxes of this machine share.

    sandbox eth0 ── om<slot> ┐
    sandbox eth0 ── om<slot> ┤ router: rules, NAT ── up0 ── openmodal0 (this machine) ── NAT ── internet
                             └ 10.251.0.0/16                169.254.137.0/30

Why a namespace: its rules are nobody else's, so a flush or reload of the machine's firewall cannot open a way, only close
one; its addresses collide with no network of the machine; and making an interface in it wakes no udev and no
NetworkManager. A sandbox costs one veth and no rule. The namespace is bound to a file only after its rules are loaded: no
interface can exist before them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openmodal import _binary
from openmodal.engines import machine
from openmodal.engines.machine import DENIED
from openmodal.errors import EngineError

UPLINK_HOST = "169.254.137.1"
UPLINK_ROUTER = "169.254.137.2"
UPLINK = "openmodal0"
GATEWAY = "10.251.0.1"
GATE = "127.0.0.53"  # as native/gate.c says

# What no allow list opens: beside what none ever does, other sandboxes.
NEVER = (*machine.NEVER, "10.251.0.0/16")

MOST_CONNECTIONS = 2500
"""Of one sandbox at a time: all share the router's table of connections."""

_PUBLIC_RESOLVERS = ("1.1.1.1", "8.8.8.8")


def tool(*names: str) -> str | None:
    """The first of these programs that is installed where an administrator's are."""
    return next((path for name in names if (path := shutil.which(name, path=_binary.PATH))), None)


def resolvers(root: Path = Path("/")) -> tuple[str, ...]:
    """The machine's name servers that can be reached from elsewhere than its loopback; public ones where it has none."""
    return named_resolvers(root) or _PUBLIC_RESOLVERS


def named_resolvers(root: Path = Path("/")) -> tuple[str, ...]:
    """The machine's name servers that can be reached from elsewhere than its loopback, where systemd-resolved is, too."""
    for name in ("etc/resolv.conf", "run/systemd/resolve/resolv.conf"):
        try:
            found = _nameservers((root / name).read_text("utf-8", "replace"))
        except OSError:
            continue
        if found:
            return found
    return ()


@functools.lru_cache(maxsize=4)
def _nameservers(resolv_conf: str) -> tuple[str, ...]:
    """The IPv4 addresses (sandboxes have no IPv6) that are not this machine's loopback."""
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(words[1])
                if address.version == 4 and not address.is_loopback:
                    found.append(str(address))
    return tuple(found)


def resolv_conf(servers: Sequence[str]) -> str:
    """The /etc/resolv.conf of a sandbox."""
    return "".join(f"nameserver {server}\n" for server in servers)


def own_addresses() -> tuple[str, ...]:
    """This machine's own addresses, now, but for our own uplink's."""
    return tuple(address for address in machine.own_addresses() if address != UPLINK_HOST)


_REFUSE = "-j REJECT --reject-with icmp-admin-prohibited"


@functools.lru_cache(maxsize=4)
def router_rules(servers: Sequence[str], own: Sequence[str]) -> str:
    """Rules of the router's namespace for iptables-restore: out to the internet, from the first packet on, and nowhere else."""
    denied = [f"-A FORWARD -d {target} {_REFUSE}" for target in (*own, *DENIED)]
    dns = [f"-A FORWARD -d {server} -p {kind} --dport 53 -j ACCEPT" for server in servers for kind in ("udp", "tcp")]
    gates = [  # their own connections; and our refusals of what sandboxes send
        "-A INPUT -i up0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A OUTPUT -p icmp -j ACCEPT",
        "-A OUTPUT ! -o up0 -j DROP",
        *(rule.replace("FORWARD", "OUTPUT") for rule in dns),  # a name server may be at an address of this machine
        *(f"-A OUTPUT -d {target} {_REFUSE}" for target in (*own, *NEVER)),
        "-A OUTPUT -p tcp --dport 25 -j REJECT",
        "-A OUTPUT -p tcp -j ACCEPT",
        "-A OUTPUT -p udp --dport 53 -j ACCEPT",
    ]
    return "\n".join(
        (
            "*filter",
            ":INPUT DROP",
            ":FORWARD DROP",
            ":OUTPUT DROP",
            *gates,
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD ! -o up0 -j DROP",
            f"-A FORWARD -m connlimit --connlimit-above {MOST_CONNECTIONS} --connlimit-mask 32 --connlimit-saddr -j REJECT",
            *dns,
            *denied,
            "-A FORWARD -p tcp --dport 25 -j REJECT",
            *(f"-A FORWARD -p {kind} -j ACCEPT" for kind in ("tcp", "udp", "icmp")),
            "COMMIT",
            "*nat",
            ":POSTROUTING ACCEPT",
            "-A POSTROUTING -o up0 -j MASQUERADE",
            "COMMIT",
            "",
        )
    )


def nft_router_rules(servers: Sequence[str], own: Sequence[str]) -> str:
    """The same rules for nft."""
    dns = ", ".join(servers)
    denied = ", ".join((*own, *DENIED))
    never = ", ".join((*own, *NEVER))
    return f"""flush ruleset
table ip openmodal {{
  set denied {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {denied} }} }}
  set never {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {never} }} }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "up0" ct state established,related accept
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    ip protocol icmp accept
    oifname != "up0" drop
    ip daddr {{ {dns} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @never reject with icmp type admin-prohibited
    tcp dport 25 reject
    meta l4proto tcp accept
    udp dport 53 accept
  }}
  set busy {{ type ipv4_addr; size 65535; flags dynamic; }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    oifname != "up0" drop
    ct state new add @busy {{ ip saddr ct count over {MOST_CONNECTIONS} }} reject
    ip daddr {{ {dns} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @denied reject with icmp type admin-prohibited
    tcp dport 25 reject
    meta l4proto {{ tcp, udp, icmp }} accept
  }}
  chain out {{ type nat hook postrouting priority 100; oifname "up0" masquerade; }}
}}
"""


def gate_rules(mirrors: Sequence[str], *, nft: bool) -> str:
    """Rules of the own namespace of a sandbox with an allow list: all that it calls is turned to its gate (native/gate.c).

    Its loopback is its own, but for `mirrors` that are on this machine's.
    """
    local = [mirror.split(":") for mirror in mirrors if mirror.startswith("127.")]
    if nft:
        turned = [f"ip daddr {address} tcp dport {port}" for address, port in local]
        turned += [f"ip daddr != 127.0.0.0/8 {what}" for what in ("meta l4proto tcp", "udp dport 53")]
        lines = "\n".join(f"    {what} dnat to {GATE}:53" for what in turned)
        return f"""table ip openmodal {{
  chain turn {{
    type nat hook output priority -100;
{lines}
  }}
  chain output {{ type filter hook output priority 0; ip daddr != 127.0.0.0/8 icmp type echo-request reject; }}
}}
"""
    turned = [f"-d {address} -p tcp --dport {port}" for address, port in local]
    turned += [f"! -d 127.0.0.0/8 -p {what}" for what in ("tcp", "udp --dport 53")]
    ping = (
        "-A OUTPUT ! -d 127.0.0.0/8 -p icmp --icmp-type echo-request -j REJECT"  # else the sandbox would answer itself
    )
    nat = [f"-A OUTPUT {what} -j DNAT --to-destination {GATE}:53" for what in turned]
    return "\n".join(("*nat", *nat, "COMMIT", "*filter", ping, "COMMIT", ""))


def loader() -> Sequence[str]:
    """The command that loads rules from its standard input.

    Raises:
        EngineError: there is none.
    """
    if program := tool("iptables-restore"):
        return program, "-w"
    if program := tool("nft"):
        return program, "-f", "-"
    raise EngineError("a sandbox's network needs iptables or nft; install one with `apt-get install iptables`")


def machine_rules(servers: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Rules of the machine for the uplink, as (table, chain, rule); each is put first in its chain, so the last one wins."""
    answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"]
    return [
        ("nat", "POSTROUTING", ["-s", f"{UPLINK_HOST}/30", "!", "-o", UPLINK, "-j", "MASQUERADE"]),
        ("filter", "FORWARD", ["-i", UPLINK, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-o", UPLINK, *answers]),
        ("filter", "INPUT", ["-i", UPLINK, "-j", "DROP"]),
        *(
            ("filter", "INPUT", ["-i", UPLINK, "-d", server, "-p", kind, "--dport", "53", "-j", "ACCEPT"])
            for server in servers
            for kind in ("udp", "tcp")
        ),
    ]


def nft_machine_rules(servers: Sequence[str]) -> str:
    """The same for nft, in a table of our own."""
    return f"""table ip openmodal
delete table ip openmodal
table ip openmodal {{
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "{UPLINK}" ip daddr {{ {", ".join(servers)} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{UPLINK}" drop
  }}
  chain out {{ type nat hook postrouting priority 100; ip saddr {UPLINK_HOST}/30 oifname != "{UPLINK}" masquerade; }}
}}
"""


class Router:
    """The router's namespace, made when the first sandbox needs it, and kept until the next boot or `remove`."""

    def __init__(self, machine: Path, agent: str) -> None:
        self.path = machine / "router"
        self._machine = machine
        self._agent = agent
        self._loaded = machine / "router.rules"

    def ready(self, servers: Sequence[str]) -> bool:
        """Whether the namespace is there with the rules that hold now."""
        loaded = self._loaded_rules()
        return self.exists() and loaded == self._wanted(servers, nft=loaded.startswith("flush"))

    def exists(self) -> bool:
        try:
            return os.stat(self.path).st_dev != os.stat(self._machine).st_dev
        except FileNotFoundError:
            return False

    def ensure(self, servers: Sequence[str]) -> None:
        """Make the namespace, or load new rules when resolvers or addresses of the machine have changed.

        Raises:
            EngineError: rights or a firewall program are missing; the text tells the remedy. No half-made router stays.
        """
        with self._lock():
            if self.ready(servers):
                return
            wanted = self._wanted(servers, nft=not tool("iptables-restore") and tool("nft") is not None)
            if self.exists():
                self._load(self.path, wanted)
            else:
                self._make(wanted)
            self._open_machine(servers)
            self._loaded.write_text(wanted)

    def remove(self) -> None:
        """Take it down: no sandbox may be running."""
        with self._lock():
            if self.exists():
                _run([self._agent, "router", "remove", str(self.path)])
            self._loaded.unlink(missing_ok=True)
            iptables = tool("iptables")
            for table, chain, rule in machine_rules(resolvers()) if iptables else ():
                _binary.run([iptables, "-w", "-t", table, "-D", chain, *rule])  # type: ignore[list-item]

    def _make(self, wanted: str) -> None:
        new = f"{self.path}.new"
        _binary.run([self._agent, "router", "remove", new])  # of a crash
        _run([self._agent, "router", "make", new, UPLINK_HOST, UPLINK_ROUTER, GATEWAY])
        try:
            self._load(Path(new), wanted)
        except BaseException:
            _run([self._agent, "router", "remove", new])
            raise
        _run([self._agent, "router", "commit", new, str(self.path)])

    @staticmethod
    def _load(namespace: Path, rules: str) -> None:
        enter = tool("nsenter")
        if not enter:
            raise EngineError("a sandbox's network needs nsenter; install it with `apt-get install util-linux`")
        _run([enter, f"--net={namespace}", *loader()], rules)

    @staticmethod
    def _wanted(servers: Sequence[str], *, nft: bool) -> str:
        own = own_addresses()
        return nft_router_rules(tuple(servers), own) if nft else router_rules(tuple(servers), own)

    def _loaded_rules(self) -> str:
        try:
            return self._loaded.read_text()
        except FileNotFoundError:
            return ""

    @staticmethod
    def _open_machine(servers: Sequence[str]) -> None:
        """Let packets of the uplink through this machine, and answers back."""
        for interface in {UPLINK, *_default_interfaces(Path("/proc/net/route").read_text())}:
            Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").write_text("1")
        iptables, nft = tool("iptables"), tool("nft")
        if not iptables and nft:
            _run([nft, "-f", "-"], nft_machine_rules(servers))
            return
        for table, chain, rule in machine_rules(servers) if iptables else ():
            known = _binary.run([iptables, "-w", "-t", table, "-C", chain, *rule])  # type: ignore[list-item]
            if known.returncode:
                _run([iptables, "-w", "-t", table, "-I", chain, "1", *rule])  # type: ignore[list-item]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._machine.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._machine / "router.lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _default_interfaces(routes: str) -> list[str]:
    """The interfaces of default routes, from /proc/net/route."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    return [row[0] for row in rows if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000"]


def _run(command: list[str], text: str = "") -> None:
    done = _binary.run(command, text.encode())
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise EngineError(f"the sandboxes' network cannot be set up: {os.path.basename(command[0])} said: {said}")
