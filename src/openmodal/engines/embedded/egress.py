"""Allow lists: the plan's lines for a gate (openmodal._gate), and what the gate has logged."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from openmodal._spec import Egress, Network
from openmodal.engines import machine
from openmodal.engines.embedded import network
from openmodal.engines.embedded.plan import Lines
from openmodal.errors import EngineError, UnsupportedError

POLICY = "egress.json"
"""In the folder of a sandbox that has a gate: what it may reach."""

# Where the package is: Python starts with the standard library alone (-I -S), in half the time.
_ROOT = Path(__file__).parents[3]
_GATE = _ROOT / "openmodal" / "_gate" / "main.py"


def prepare(wanted: Network, folder: Path, log: Path, resolvers: Sequence[str], mirrors: Sequence[str] = ()) -> Lines:
    """Write the policy into the sandbox's folder; return the plan's lines. `mirrors`
    ("10.0.0.5:3141") may be reached.

    Raises:
        EngineError: no program here loads firewall rules.
    """
    load = network.loader()
    policy = folder / POLICY
    policy.write_text(policy_text(wanted, network.own_addresses(), resolvers, mirrors))
    begin = (sys.executable, "-I", "-S", str(_GATE), str(_ROOT), str(policy), str(log))
    return [
        ("net", "gate"),
        *(("net_exec", word) for word in begin),
        *(("firewall", word) for word in load),
        ("rules", network.gate_rules(mirrors, nft=load[0].endswith("nft"))),
    ]


@contextmanager
def rewritten(wanted: Network, folder: Path, resolvers: Sequence[str]) -> Iterator[None]:
    """Replace the policy of a sandbox that has one, for good unless the block fails. Its gate reads
    it when it begins again, in the block.

    Raises:
        UnsupportedError: the whole network is wanted.
    """
    if not wanted.block and not wanted.listed:
        raise UnsupportedError(
            "a sandbox that was created with an allow list cannot get the whole network; say what it may reach: "
            'outbound_cidr_allowlist=["0.0.0.0/0"] is every public address over TCP'
        )
    before = (folder / POLICY).read_text()
    _replace(folder, policy_text(wanted, network.own_addresses(), resolvers, ()))
    try:
        yield
    except EngineError:  # it goes on as it was, and so does a gate that begins again by itself
        _replace(folder, before)
        raise


def _replace(folder: Path, policy: str) -> None:
    new = folder / f"{POLICY}.{os.urandom(4).hex()}"  # two processes may do the same
    new.write_text(policy)
    new.replace(folder / POLICY)


def policy_text(wanted: Network, own: Sequence[str], resolvers: Sequence[str], mirrors: Sequence[str]) -> str:
    """What the gate reads (`_gate.policy.load`)."""
    import json

    return json.dumps(
        {
            "networks": wanted.cidrs or (),
            "domains": wanted.domains or (),
            "never": (*own, *network.NEVER),
            "private": machine.DENIED,
            "resolvers": resolvers,
            "mirrors": mirrors,
        }
    )


def read(log: Path) -> list[Egress] | None:
    """What the gate has logged; None without a log. A half-written line is left out."""
    try:
        lines = log.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    found: list[Egress] = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Egress))
        except msgspec.DecodeError:
            continue
    return found
