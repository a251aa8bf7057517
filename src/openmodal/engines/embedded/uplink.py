"""The machine's side of the router: forwarding, and what this machine's firewall must let through.

That firewall is others': administrators, Docker, firewalld and ufw load, flush and reload it
whenever they like. So what holds for sandboxes is in a table of our own, which nobody flushes by
the way; a chain of others that drops by default is told, in its last place, that it is not about
our interface; and `seal()` tells in microseconds whether all this may have changed since we looked.

Packets cannot go around the machine's forward hook, and every chain at it must accept them: what
one accepts, the next still drops.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openmodal import _binary
from openmodal._files import text
from openmodal.engines import machine
from openmodal.errors import EngineError

HOST = "169.254.137.1"
ROUTER = "169.254.137.2"
NAME = "openmodal0"

_SOMEWHERE = "1.1.1.1"  # which way it would be; nothing is sent there
_NFTABLES, _GET_GENERATION = 10, 16
_GET_ROUTE, _DESTINATION, _INTERFACE = 26, 1, 4


def tool(*names: str) -> str | None:
    """The first of these programs that is installed where an administrator's are."""
    import shutil

    return next((path for name in names if (path := shutil.which(name, path=_binary.PATH))), None)


def run(command: Sequence[str], text: str = "") -> str:
    """Run a program that sets up networks; return what it says.

    Raises:
        EngineError: it failed, or took too long: another program holds the firewall's lock.
    """
    done = _binary.run(command, text.encode())
    if done.returncode:
        why = _why(command, (done.stderr or done.stdout).decode("utf-8", "replace"))
        raise EngineError(f"the sandboxes' network cannot be set up: {why}", aspect="network")
    return done.stdout.decode("utf-8", "replace")


_MOST_SAID = 200  # characters; some programs complain of every rule
_NO_NFTABLES = (
    "this kernel has no nf_tables, which {program} needs; as root, run `modprobe nf_tables nft_chain_nat`, or boot a "
    "kernel that has it, or create sandboxes without a network (block_network=True)"
)


def _why(command: Sequence[str], said: str) -> str:
    """Why such a program failed, in one line."""
    names = [os.path.basename(word) for word in command]
    firewall = next((name for name in names if name.startswith(("nft", "iptables"))), "")
    if firewall and "legacy" not in said and not _generation():
        return _NO_NFTABLES.format(program=firewall)
    line = " ".join(said.split())
    return f"{firewall or names[0]} said: {line[:_MOST_SAID]}" + ("…" if len(line) > _MOST_SAID else "")


# ---------------------------------------------------------------------------------------- the rules


def nft_rules(servers: Sequence[str]) -> str:
    """Our own table. Of this machine the router may ask its name servers only; out of it come answers only."""
    names = ", ".join(servers)
    return f"""table ip openmodal
delete table ip openmodal
table ip openmodal {{
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "{NAME}" ip daddr {{ {names} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{NAME}" drop
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    oifname "{NAME}" ct state != {{ established, related }} drop
  }}
  chain out {{ type nat hook postrouting priority 100; ip saddr {HOST}/30 oifname != "{NAME}" masquerade; }}
}}
"""


def iptables_rules(servers: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The same where there is no nft, as (table, chain, rule); each is put first in its chain, so the last one wins."""
    answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"]
    return [
        ("nat", "POSTROUTING", ["-s", f"{HOST}/30", "!", "-o", NAME, "-j", "MASQUERADE"]),
        ("filter", "FORWARD", ["-i", NAME, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-o", NAME, *answers]),
        ("filter", "INPUT", ["-i", NAME, "-j", "DROP"]),
        *(
            ("filter", "INPUT", ["-i", NAME, "-d", server, "-p", kind, "--dport", "53", "-j", "ACCEPT"])
            for server in servers
            for kind in ("udp", "tcp")
        ),
    ]


def open_machine(servers: Sequence[str], kept: Path) -> bool:
    """Let the router's packets through this machine, and answers back; whether there was anything
    to do. `kept`: the file for our table as it was loaded.

    Raises:
        EngineError: a program of the firewall refuses, or there is none.
    """
    changed = _forward(servers)
    nft, iptables = tool("nft"), tool("iptables")
    try:
        changed |= nft is not None and _open_nftables(nft, servers, kept)
    except EngineError:  # a kernel without nf_tables, or without NAT in it
        if not iptables:
            raise
        nft = None
    if _legacy_tables():
        iptables = _legacy_program()
    if iptables and (not nft or _legacy_tables()):
        changed |= _open_iptables(iptables, servers)
    return changed


def close_machine(servers: Sequence[str]) -> None:
    """Take our rules away, also those of earlier versions."""
    if nft := tool("nft"):
        for rule in _objects(run([nft, "-j", "-a", "list", "ruleset"]), "rule"):
            if rule.get("comment") == _COMMENT:
                place = (rule["family"], rule["table"], rule["chain"])
                run([nft, "delete", "rule", *place, "handle", str(rule["handle"])])
        _binary.run([nft, "delete", "table", "ip", "openmodal"])
    for program in {tool("iptables"), _legacy_program() if _legacy_tables() else None} - {None}:
        for table, name, words in iptables_rules(servers):
            command = [str(program), "-w", "-t", table, "-D", name, *words]
            _binary.run(command)


def _open_iptables(program: str, servers: Sequence[str]) -> bool:
    changed = False
    for table, chain, rule in iptables_rules(servers):
        place = [program, "-w", "-t", table]
        known = _binary.run([*place, "-C", chain, *rule])
        if known.returncode:
            run([*place, "-I", chain, "1", *rule])
            changed = True
    return changed


# --------------------------------------------------------------------------------- chains of others

_COMMENT = "openmodal"
_Object = dict[str, Any]


def _open_nftables(nft: str, servers: Sequence[str], kept: Path) -> bool:
    """Our table, and a word to each chain that would drop."""
    wanted = nft_rules(servers)
    changed = text(kept) != wanted + _our_table(nft)
    if changed:
        run([nft, "-f", "-"], wanted)
        kept.write_text(wanted + _our_table(nft))
    chains = _objects(run([nft, "-j", "list", "chains"]), "chain")
    commands = [line for chain in _foreign_chains(chains, servers) for line in _exceptions(nft, chain)]
    commands = list(dict.fromkeys(commands))  # two chains may hand all to the same third one
    if commands:
        run([nft, "-f", "-"], "\n".join(commands) + "\n")
    if any(chain["table"] == "firewalld" for chain in chains):
        changed |= _trust()
    return changed or bool(commands)


def _our_table(nft: str) -> str:
    command = [nft, "list", "table", "ip", "openmodal"]
    return _binary.run(command).stdout.decode()


def _foreign_chains(chains: Sequence[_Object], servers: Sequence[str]) -> list[_Object]:
    """The chains of others that see our packets on their way through or, where name servers are at addresses of this machine, into it."""
    hooks = ("forward", "input") if set(servers) & set(machine.own_addresses()) else ("forward",)
    return [
        chain
        for chain in chains
        if chain["family"] in ("ip", "inet")
        and chain["table"] not in ("openmodal", "firewalld")
        and chain.get("type") == "filter"
        and chain.get("hook") in hooks
    ]


def _exceptions(nft: str, chain: _Object) -> Iterator[str]:
    """What adds our exception to a chain that drops what it does not know.

    The exception stands after all that the chain says by itself, so that an administrator's own
    words about our packets hold; and likewise in the chains that it hands every packet to.
    """
    rules = _rules(nft, chain)
    for target in filter(None, map(_handed_to, rules)):
        yield from _exceptions(nft, {**chain, "name": target, "policy": "accept"})
    last = rules[-1] if rules and _drops_all(rules[-1]) else None
    if (chain.get("policy") != "drop" and not last) or any(rule.get("comment") == _COMMENT for rule in rules):
        return
    verb = (
        ["insert", "rule", *_place(chain), "handle", str(last["handle"])] if last else ["add", "rule", *_place(chain)]
    )
    for way in ("iifname", "oifname") if chain["hook"] == "forward" else ("iifname",):
        # What iptables understands, too: else it would refuse to list the whole table.
        yield f'{" ".join(verb)} {way} "{NAME}" accept comment "{_COMMENT}"'


def _handed_to(rule: _Object) -> str:
    """The chain that a rule without a condition jumps or goes to; "" if it is none."""
    last = _all_that_it_does(rule)
    jump = last.get("jump") or last.get("goto")
    return str(jump["target"]) if jump else ""


def _drops_all(rule: _Object) -> bool:
    """Whether it has no condition. "xt": a target of iptables; an old nft does not tell which."""
    last = _all_that_it_does(rule)
    return bool({"drop", "reject"} & last.keys()) or ("xt" in last and _extension(last) in ("REJECT", ""))


def _all_that_it_does(rule: _Object) -> _Object:
    """What a rule does with every packet; nothing, if it does so on a condition."""
    *before, last = rule.get("expr") or [{}]
    free = all({"counter", "log"} & part.keys() or _extension(part) == "comment" for part in before)
    return last if free else {}


def _extension(expression: _Object) -> str:
    """The name of the extension of iptables that it is."""
    return str((expression.get("xt") or {}).get("name", ""))


def _rules(nft: str, chain: _Object) -> list[_Object]:
    found = _objects(run([nft, "-j", "-a", "list", "chain", *_place(chain)]), "rule")
    return [rule for rule in found if rule["chain"] == chain["name"]]


def _objects(text: str, kind: str) -> list[_Object]:
    import json

    return [item[kind] for item in json.loads(text)["nftables"] if kind in item]


def _place(chain: _Object) -> list[str]:
    return [chain["family"], chain["table"], chain["name"]]


def _trust() -> bool:
    """firewalld alone may say what passes its chains: put our interface into its zone that accepts. Our own table refuses still."""
    client = tool("firewall-cmd")
    if not client:
        return False
    zone = _binary.run([client, f"--get-zone-of-interface={NAME}"])
    if zone.stdout.strip() == b"trusted" or zone.returncode == _NOT_RUNNING:
        return False
    run([client, "--zone=trusted", f"--change-interface={NAME}"])
    return True


_NOT_RUNNING = 252  # firewall-cmd(1)

# ---------------------------------------------------------------------------- has it changed since?


def seal(servers: Sequence[str]) -> str:
    """What changes when anybody changes what sandboxes' packets meet on this machine: nftables'
    generation, the size of older tables, and where packets go and whether they are forwarded. Costs
    some 40 µs."""
    forwarding = (f"{name}={text(_forwarding(name)).strip()}" for name in _interfaces(servers))
    return " ".join((str(_generation()), _legacy_size(), *forwarding))


def _forward(servers: Sequence[str]) -> bool:
    """Forward what comes from the router, and answers that come in where questions go out; whether it was off."""
    off = [path for name in _interfaces(servers) if text(path := _forwarding(name)).strip() != "1"]
    for path in off:
        try:
            Path(path).write_text("1")
        except OSError as error:
            raise EngineError(
                f"the sandboxes' network cannot be set up: {path} cannot be written: {error.strerror}; run as root of the whole machine"
            ) from error
    return bool(off)


def _forwarding(interface: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{interface}/forwarding"


def is_linked() -> bool:
    """Whether the link with the router is there, has its addresses, and is up."""
    return NAME in _interfaces(())


def _interfaces(servers: Sequence[str]) -> list[str]:
    """Those that the router, the internet and the name servers are behind: also by rules of routing, as VPNs have."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        found = {_way_to(kernel, address) for address in (ROUTER, _SOMEWHERE, *servers)}
    return sorted(socket.if_indextoname(index) for index in found - {0, 1})


def _way_to(kernel: socket.socket, address: str) -> int:
    """The number of the interface that packets to an address leave by; 0: none."""
    question = struct.pack(
        "=BBBBBBBBIHH4s", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0, 8, _DESTINATION, socket.inet_aton(address)
    )
    answer = _asked(kernel, _GET_ROUTE, question)
    at = 12  # behind rtmsg come attributes
    while at + 8 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _INTERFACE:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    return 0


def _generation() -> int:
    """Every change of this machine's nf_tables has a number; 0: the kernel has none."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as kernel:
            answer = _asked(kernel, _NFTABLES << 8 | _GET_GENERATION, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack_from(">I", answer, 8)[0]) if len(answer) >= 12 else 0


def _asked(kernel: socket.socket, kind: int, question: bytes) -> bytes:
    """One question to the kernel, and its answer without the header; b"" if it is an error."""
    kernel.send(struct.pack("=IHHII", 16 + len(question), kind, 1, 0, 0) + question)
    answer = kernel.recv(8192)
    return answer[16:] if struct.unpack_from("=H", answer, 4)[0] != 2 else b""


# ----------------------------------------------------------------------- tables of before nf_tables


def _legacy_tables() -> bool:
    """Whether this machine's firewall is, or is also, in the tables of iptables-legacy."""
    return "filter" in text("/proc/net/ip_tables_names").split()


def _legacy_program() -> str:
    if program := tool("iptables-legacy", "iptables"):
        return program
    raise EngineError("this machine's firewall is one of iptables-legacy; install it with `apt-get install iptables`")


def _legacy_size() -> str:
    """The number and size of the rules, which change with them: these tables have no generation."""
    if not _legacy_tables():
        return "-"
    import ctypes

    # struct ipt_getinfo; it ends with the number of rules and their size.
    info = ctypes.create_string_buffer(b"filter", 84)
    size = ctypes.c_uint(len(info))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as kernel:
        ctypes.CDLL(None).getsockopt(kernel.fileno(), socket.SOL_IP, 64, info, ctypes.byref(size))
    return "-".join(map(str, struct.unpack_from("=2I", info, 76)))
