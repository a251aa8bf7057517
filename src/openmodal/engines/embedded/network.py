"""The sandboxes' way out: a router of our own, in a network namespace that all sandboxes of this
machine share.

    sandbox eth0 ── om<slot> ┐
    sandbox eth0 ── om<slot> ┤ router: rules, NAT ── up0 ── openmodal0 (this machine) ── NAT ── internet
                             └ 10.251.0.0/16                169.254.137.0/30

Why a namespace: its rules are nobody else's, so a flush or reload of the machine's firewall cannot
open a way, only close one; its addresses collide with no network of the machine; and making an
interface in it wakes no udev and no NetworkManager. A sandbox costs one veth and no rule; which
sandboxes reach each other is told by the group of their interfaces (neighbours.py). The
namespace is bound to a file only after its rules are loaded: no interface can exist before them.
This machine's own side of it is in uplink.py.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openmodal import _binary
from openmodal._files import text
from openmodal.engines import machine
from openmodal.engines.embedded import uplink
from openmodal.engines.embedded.uplink import run
from openmodal.engines.machine import DENIED
from openmodal.engines.machine import resolvers as resolvers  # noqa: PLC0414
from openmodal.errors import EngineError

tool = uplink.tool

GATEWAY = "10.251.0.1"
NAMES = ("10.251.0.2", "10.251.0.3", "10.251.0.4")
"""What sandboxes ask for names. The router sends each question on to a name server that this
machine has now, so those that run go on when it changes; three are as many as C libraries ask."""
GATE = "127.0.0.53"  # as native/gate.c says

# What no allow list opens: beside what none ever does, other sandboxes.
NEVER = (*machine.NEVER, "10.251.0.0/16")

MOST_CONNECTIONS = 2500
"""Of one sandbox at a time: all share the router's table of connections."""

LOOK_SECONDS = 1.0
"""How long a look at this machine's side of the network is good for."""

_LOOKS = 4


def resolv_conf(servers: Sequence[str]) -> str:
    """The /etc/resolv.conf of a sandbox."""
    return "".join(f"nameserver {server}\n" for server in servers)


def asked(servers: Sequence[str]) -> tuple[str, ...]:
    """Whom a sandbox behind the router asks: one address for each of these name servers."""
    return NAMES[: len(servers)]


def own_addresses() -> tuple[str, ...]:
    """This machine's own addresses, now, but for our own uplink's."""
    return tuple(address for address in machine.own_addresses() if address != uplink.HOST)


def _questions(servers: Sequence[str]) -> list[tuple[str, str]]:
    """Which name server each address of NAMES stands for."""
    return [(name, servers[i % len(servers)]) for i, name in enumerate(NAMES)] if servers else []


_REFUSE = "-j REJECT --reject-with icmp-admin-prohibited"

# The group of a sandbox's interface: the number of the network that it shares, and whether it
# reaches nothing else (native/net.h). Rules know bits, so they need not change with the networks.
_NETWORK, _INSIDE = 0xFFFF, 0x10000
_BITS = [1 << bit for bit in range(16)]
NEIGHBOURS = "neighbours"
"""The chain of what goes from one sandbox to another."""


def _neighbours(limit: str) -> list[str]:
    """Rules for iptables: between two sandboxes of one network, and none at all into or out of a
    sandbox that reaches nothing else. They stand before those for packets of known connections: an
    address has another sandbox behind it later."""
    group = "-m devgroup --{0}-group {1:#x}/{2:#x}".format
    return [
        f"-A FORWARD -o up0 {group('src', _INSIDE, _INSIDE)} {_REFUSE}",
        f"-A FORWARD -i up0 {group('dst', _INSIDE, _INSIDE)} -j DROP",
        f"-A FORWARD ! -i up0 ! -o up0 -j {NEIGHBOURS}",
        f"-A {NEIGHBOURS} {group('src', 0, _NETWORK)} -j DROP",
        *(
            f"-A {NEIGHBOURS} -m devgroup {_not[0]}--src-group {bit:#x}/{bit:#x} {_not[1]}--dst-group {bit:#x}/{bit:#x} -j DROP"
            for bit in _BITS
            for _not in (("", "! "), ("! ", ""))
        ),
        f"-A {NEIGHBOURS} {limit}",
        f"-A {NEIGHBOURS} -j ACCEPT",
    ]


def _nft_neighbours() -> str:
    """The same for nft: the rules of the chain."""
    differ = [
        f"    meta iifgroup & {bit:#x} {here} 0 meta oifgroup & {bit:#x} {there} 0 drop"
        for bit in _BITS
        for here, there in (("==", "!="), ("!=", "=="))
    ]
    return "\n".join((f"    meta iifgroup & {_NETWORK:#x} == 0 drop", *differ))


@functools.lru_cache(maxsize=4)
def router_rules(servers: Sequence[str], own: Sequence[str], *, neighbours: bool = True) -> str:
    """Rules of the router's namespace for iptables-restore: out to the internet, from the first
    packet on, and to `neighbours`, if the kernel has what that takes; nowhere else."""
    limit = f"-m connlimit --connlimit-above {MOST_CONNECTIONS} --connlimit-mask 32 --connlimit-saddr -j REJECT"
    denied = [f"-A FORWARD -d {target} {_REFUSE}" for target in (*own, *DENIED)]
    dns = [f"-A FORWARD -d {server} -p {kind} --dport 53 -j ACCEPT" for server in servers for kind in ("udp", "tcp")]
    names = [
        f"-A {chain} -d {name} -p {kind} --dport 53 -j DNAT --to-destination {server}"
        for chain in ("PREROUTING", "OUTPUT")
        for name, server in _questions(servers)
        for kind in ("udp", "tcp")
    ]
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
            *([f":{NEIGHBOURS} -", *_neighbours(limit)] if neighbours else []),
            *gates,
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD ! -o up0 -j DROP",
            f"-A FORWARD {limit}",
            *dns,
            *denied,
            "-A FORWARD -p tcp --dport 25 -j REJECT",
            *(f"-A FORWARD -p {kind} -j ACCEPT" for kind in ("tcp", "udp", "icmp")),
            "COMMIT",
            "*nat",
            ":PREROUTING ACCEPT",
            ":OUTPUT ACCEPT",
            ":POSTROUTING ACCEPT",
            *names,
            # Any port, not the sandbox's own: the next one with its address would meet what servers
            # still keep of the last one.
            "-A POSTROUTING -o up0 -j MASQUERADE --random-fully",
            "COMMIT",
            "",
        )
    )


def nft_router_rules(servers: Sequence[str], own: Sequence[str]) -> str:
    """The same rules for nft."""
    dns = ", ".join(servers)
    names = "; ".join(
        f"ip daddr {name} meta l4proto {{ tcp, udp }} th dport 53 dnat to {server}"
        for name, server in _questions(servers)
    )
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
  chain {NEIGHBOURS} {{
{_nft_neighbours()}
    ct state new add @busy {{ ip saddr ct count over {MOST_CONNECTIONS} }} reject
    accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    meta iifgroup & {_INSIDE:#x} != 0 oifname "up0" reject with icmp type admin-prohibited
    meta oifgroup & {_INSIDE:#x} != 0 iifname "up0" drop
    iifname != "up0" oifname != "up0" jump {NEIGHBOURS}
    ct state established,related accept
    oifname != "up0" drop
    ct state new add @busy {{ ip saddr ct count over {MOST_CONNECTIONS} }} reject
    ip daddr {{ {dns} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @denied reject with icmp type admin-prohibited
    tcp dport 25 reject
    meta l4proto {{ tcp, udp, icmp }} accept
  }}
  chain names {{ type nat hook prerouting priority -100; {names}; }}
  chain gates {{ type nat hook output priority -100; {names}; }}
  chain out {{ type nat hook postrouting priority 100; oifname "up0" masquerade fully-random; }}
}}
"""


def gate_rules(mirrors: Sequence[str], *, nft: bool) -> str:
    """Rules of the own namespace of a sandbox with an allow list: all that it calls is turned to
    its gate (native/gate.c).

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


def loader(rules: str = "") -> Sequence[str]:
    """The command that loads rules from its standard input: any, or that for these.

    Raises:
        EngineError: there is none.
    """
    if (program := tool("iptables-restore")) and not rules.startswith("flush"):
        return program, "-w"
    if program := tool("nft"):
        return program, "-f", "-"
    raise EngineError("a sandbox's network needs iptables or nft; install one with `apt-get install iptables`")


class Router:
    """The router's namespace, made when the first sandbox needs it, and kept until the next boot or `remove`."""

    def __init__(self, machine: Path, agent: str) -> None:
        self.path = machine / "router"
        self._machine = machine
        self._agent = agent
        self._loaded = machine / "router.rules"
        self._sealed = machine / "router.seal"
        self._good_until = 0.0

    def was_ready(self) -> bool:
        """Whether it was ready a moment ago, and is there."""
        return time.monotonic() < self._good_until and self.exists()

    def ready(self, servers: Sequence[str]) -> bool:
        """Whether the namespace is there with the rules that hold now, and nobody has changed this machine's side since we looked."""
        began = time.monotonic()
        loaded, own = text(self._loaded), machine.own_addresses()
        found = (
            self.exists()
            and loaded == _wanted(servers, own, nft=loaded.startswith("flush"), neighbours=NEIGHBOURS in loaded)
            and uplink.seal(servers) == text(self._sealed)
        )
        self._good_until = began + LOOK_SECONDS if found else 0.0
        return found

    def exists(self) -> bool:
        try:
            return os.stat(self.path).st_dev != os.stat(self._machine).st_dev
        except FileNotFoundError:
            return False

    def ensure(self, servers: Sequence[str]) -> None:
        """Make the namespace, or what has changed: the rules of new resolvers and addresses, what
        others did to this machine's firewall.

        Raises:
            EngineError: rights or a firewall program are missing; the text tells the remedy. No
                half-made router stays.
        """
        with self._lock():
            if self.ready(servers):
                return
            self._install(servers)
            self._open_machine(servers)

    def _install(self, servers: Sequence[str]) -> None:
        """With nft, if it is there and this kernel has what its rules take: it can reset the count
        of a sandbox's connections. At last without neighbours: few kernels lack what those take."""
        ways = [(True, True)] if tool("nft") or not tool("iptables-restore") else []
        ways += [(False, True), (False, False)] if tool("iptables-restore") else []
        own = machine.own_addresses()
        if self.exists() and not uplink.is_linked():
            self._link("join", self.path)
        for nft, neighbours in ways:
            wanted = _wanted(servers, own, nft=nft, neighbours=neighbours)
            try:
                if not self.exists():
                    self._make(wanted)
                elif text(self._loaded) != wanted:
                    self._load(self.path, wanted)
            except EngineError:
                if (nft, neighbours) == ways[-1]:
                    raise
                continue
            run([self._agent, "router", "limit", str(self.path)])
            self._loaded.write_text(wanted)
            return

    def has_neighbours(self) -> bool:
        """Whether its rules let sandboxes of one network reach each other."""
        return NEIGHBOURS in text(self._loaded)

    def sweep(self) -> int:
        """Forget the connections of sandboxes whose supervisors were killed; of how many."""
        slots = self._machine / "slots"
        if not self.exists() or not slots.exists():
            return 0
        return int(run([self._agent, "router", "sweep", str(self.path), str(slots)]))

    def remove(self) -> None:
        """Take it down: no sandbox may be running."""
        with self._lock():
            if self.exists():
                run([self._agent, "router", "remove", str(self.path)])
            self._loaded.unlink(missing_ok=True)
            self._sealed.unlink(missing_ok=True)
            uplink.close_machine(resolvers())

    def _make(self, wanted: str) -> None:
        new = f"{self.path}.new"
        _binary.run([self._agent, "router", "remove", new])  # of a crash
        self._link("make", Path(new))
        try:
            self._load(Path(new), wanted)
        except BaseException:
            run([self._agent, "router", "remove", new])
            raise
        run([self._agent, "router", "commit", new, str(self.path)])

    def _link(self, verb: str, path: Path) -> None:
        run([self._agent, "router", verb, str(path), uplink.HOST, uplink.ROUTER, GATEWAY])

    @staticmethod
    def _load(namespace: Path, rules: str) -> None:
        enter = tool("nsenter")
        if not enter:
            raise EngineError("a sandbox's network needs nsenter; install it with `apt-get install util-linux`")
        run([enter, f"--net={namespace}", *loader(rules)], rules)

    def _open_machine(self, servers: Sequence[str]) -> None:
        """Until there is nothing left to do: then nothing has changed since the seal was read.
        Where others change the firewall all the time, there is no seal, and the next sandbox looks
        again."""
        self._sealed.unlink(missing_ok=True)
        for _ in range(_LOOKS):
            seal = uplink.seal(servers)
            if not uplink.open_machine(servers, self._machine / "router.table"):
                self._sealed.write_text(seal)
                return

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._machine.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._machine / "router.lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _wanted(servers: Sequence[str], own: Sequence[str], *, nft: bool, neighbours: bool) -> str:
    """The router's rules as they shall be, where `own` are this machine's addresses."""
    theirs = tuple(address for address in own if address != uplink.HOST)
    if nft:
        return nft_router_rules(tuple(servers), theirs)
    return router_rules(tuple(servers), theirs, neighbours=neighbours)
