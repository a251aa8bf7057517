"""What trials of sandboxes prove of what was looked at, and what of them is told: the second half of `openmodal doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec.structs import replace

from openmodal import _binary, _config
from openmodal._dual import run_sync
from openmodal._spec import Info, SandboxSpec
from openmodal.engines.check import Check
from openmodal.engines.embedded import network, trace, trial, uplink
from openmodal.engines.embedded.engine import Embedded
from openmodal.errors import EngineError, Error

_NAME = "example.com"
# Of a documentation range: what is sent there gets no farther than the first router.
_NOBODYS = "192.0.2.1"

# What a sandbox of any kind proves, in the order in which the native program comes to it.
PROVED = ("kernel", "user namespaces", "user ids", "store", "overlayfs", "seccomp")

SPECIAL = ("disk limit", "gVisor")
"""What only some sandboxes have, and is tried where it seems to be there."""


class Tried(msgspec.Struct, frozen=True):
    """What came of a trial: what the kernel says of the sandbox, or why there is none and what of the machine is lacking for it."""

    info: Info | None = None
    said: str = ""
    aspect: str = ""
    seconds: float = 0.0


def attempt(state: Path, special: Mapping[str, SandboxSpec]) -> dict[str, Tried]:
    """Try sandboxes in the store, by name: "bare", and where that works "full" and the special ones."""
    try:
        with trial.place(state) as engine, ThreadPoolExecutor() as pool:
            tried = {"bare": _try(engine, trial.bare())}
            if tried["bare"].info:
                tried |= _with_network(engine)
                running = {name: pool.submit(_try, engine, spec) for name, spec in special.items()}
                if (info := tried["full"].info) and info.network == "outbound":
                    running["names"] = pool.submit(_try, engine, trial.full(), "ask", _NAME)
                tried |= {name: future.result() for name, future in running.items()}
            return tried
    except EngineError as error:
        return {"bare": Tried(said=str(error), aspect=error.aspect)}


def _with_network(engine: Embedded) -> dict[str, Tried]:
    """The sandbox "full", and "network" if that has none: there `said` tells why."""
    full = _try(engine, trial.full())
    if full.info and "network" in full.info.degraded:
        return {"full": full, "network": _try(engine, trial.full(network=True))}
    return {"full": full, "network": full} if full.aspect == "network" else {"full": full}


def _try(engine: Embedded, spec: SandboxSpec, *argv: str) -> Tried:
    begin = time.monotonic()
    try:
        info = run_sync(trial.run(engine, spec, *argv))
    except (Error, OSError) as error:
        return Tried(said=str(error), aspect=getattr(error, "aspect", ""))
    return Tried(info, seconds=time.monotonic() - begin)


def judged(check: Check, tried: Mapping[str, Tried]) -> Check:
    """A look, corrected by the trial that proves more than what can be seen."""
    if check.name in PROVED:
        return _by_any(check, tried["bare"])
    special = tried.get(check.name)
    if special:
        return replace(check, ok=False, text=special.said, remedy="") if special.said else check
    untried = check.name in SPECIAL or (check.name == "network" and "full" not in tried)
    return replace(check, text=f"{check.text} (not tried)") if untried and check.ok else check


def _by_any(check: Check, bare: Tried) -> Check:
    if bare.info:
        return check if check.name == "user ids" else replace(check, ok=True)
    if check.name == bare.aspect:
        remedy = "" if check.ok else check.remedy
        return replace(check, ok=False, text=f"{check.text}; {bare.said}", remedy=remedy, required=True)
    if bare.aspect in PROVED and PROVED.index(check.name) < PROVED.index(bare.aspect):
        return check
    return replace(check, text=f"{check.text} (not tried)")


def sandboxes(tried: Mapping[str, Tried]) -> list[Check]:
    """The sum: a sandbox as one gets it, and what holds it, or else what holds one without network and limits."""
    bare, full = tried["bare"], tried.get("full")
    if full is None or bare.info is None:
        text = f"none can be created; see {bare.aspect}" if bare.aspect else bare.said
        return [Check("sandbox", False, text, required=True)]
    if full.info is None:
        text = f"none with a network can be created; see {full.aspect}" if full.aspect == "network" else full.said
        return [Check("sandbox", False, text, required=True), isolation(bare.info)]
    text = f"created, asked and ended in {full.seconds * 1000:.0f} ms"
    return [Check("sandbox", True, text, required=True), isolation(full.info), *names(tried)]


def names(tried: Mapping[str, Tried]) -> list[Check]:
    """Whether names resolve in a sandbox, and whether this machine's firewall lets its packets out.

    The native program itself asks, for there is nothing else in the sandbox.
    """
    if "names" not in tried:
        return []
    answered, servers = tried["names"].info is not None, network.resolvers()
    if os.geteuid() == 0 and (not answered or set(servers) <= set(network.own_addresses())):
        router = _config.machine() / "router"
        if chain := trace.dropper(router, servers if not answered else (_NOBODYS,)):
            text = f"this machine's firewall drops what sandboxes send, in its chain `{chain}`"
            remedy = f"let it accept what comes from {uplink.NAME}: see `nft list chain {chain}`"
            return [Check("names", False, text, remedy, required=True)]
    return [Check("names", True, "a sandbox's name server answers")] if answered else [_unanswered()]


def _unanswered() -> Check:
    remedy = "name a server in /etc/resolv.conf that answers from elsewhere than this machine's loopback; for a firewall, let it be asked"
    if _binary.run([_binary.find(_config.state()), "ask", _NAME]).returncode:
        return Check("names", False, "no name server answers, neither a sandbox nor this machine", remedy)
    if os.geteuid() != 0:
        return Check("names", False, "no name server answers a sandbox, although one answers this machine", remedy)
    text = "what sandboxes send is dropped: no name server answers one, although one answers this machine"
    remedy = (
        f"let this machine's firewall forward what comes from {uplink.NAME}: see `nft list ruleset` and `iptables-save`"
    )
    return Check("names", False, text, remedy, required=True)


_ALL_IDS = 2**32 - 1  # a sandbox without a user namespace of its own


def isolation(info: Info) -> Check:
    """The controls in force."""
    limits = [
        *([f"{info.memory} MiB"] if info.memory else []),
        *([f"{info.cpu:g} CPUs"] if info.cpu else []),
        *([f"{info.pids} processes"] if info.pids else []),
    ]
    held = [
        _ids(info),
        f"{len(info.capabilities)} capabilities",
        *(["no new privileges"] if info.no_new_privileges else []),
        *(["system calls filtered"] if info.seccomp else []),
        f"limits: {', '.join(limits) or 'none'}",
    ]
    lacks = f"; lacks {', '.join(info.degraded)}" if info.degraded else ""
    text = f"{info.runtime}: {'; '.join(held)}{lacks}"
    return Check("isolation", not info.degraded, text, "see the lines above that are not ok")


def _ids(info: Info) -> str:
    if info.ids == 1:
        return "one id, the user's own"
    if info.ids == _ALL_IDS:
        return "the machine's ids: root is root outside"
    return f"{info.ids} ids of its own, root is {info.root} outside"
