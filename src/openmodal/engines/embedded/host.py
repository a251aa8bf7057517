"""What a box gets of this machine: ids, control groups, CPUs, a way out, certificate authorities. For root and for a plain user."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from openmodal import _config, _idmap
from openmodal._dual import Blocking, run_sync
from openmodal._files import made
from openmodal._spec import Network
from openmodal.build.layers import Layers
from openmodal.engines import groups as control_groups
from openmodal.engines import machine
from openmodal.engines.asked import Limits
from openmodal.engines.embedded import cgroup, container, neighbours, network, plan, rootless
from openmodal.errors import EngineError, UnsupportedError


def ids() -> plan.Lines:
    """The ids of a box: a range of its own, or what a plain user has.

    Raises:
        EngineError: root is root of a container only, that lacks what a box takes.
    """
    require_rights()
    if os.geteuid() != 0:
        return _idmap.lines()
    return [("ids", "range"), ("slots", os.path.join(made(_config.machine()), "slots"))]


def groups(id: str, limits: Limits, *, degraded: bool) -> cgroup.Plan:
    """The control groups of a box. `degraded`: what cannot be limited here is not.

    Raises:
        EngineError: a limit cannot be applied here, and none may be lacking.
    """
    found = hierarchies()
    if os.geteuid() == 0:
        cgroup.let_memory_bound_open_files(memory())
    if not degraded:
        require_limits()
    try:
        if found.v1 or found.v2:
            cgroup.prepare(found)
    except EngineError:
        if not degraded:
            raise
        found = control_groups.Hierarchies()
    made = cgroup.plan(found, id, limits)
    return replace(made, devices=()) if degraded else made


def require_all(wants: Iterable[Callable[[], None]]) -> None:
    """Call these, and tell all that they refuse at once: each may need an administrator.

    Raises:
        EngineError: one of them.
    """
    refused: list[EngineError] = []
    for want in wants:
        try:
            want()
        except EngineError as error:
            refused.append(error)
    if refused:
        raise EngineError("; and ".join(map(str, refused)), aspect=refused[0].aspect)


def require_limits() -> None:
    """Raise EngineError if a limit cannot be applied here."""
    if lacking := cgroup.missing(hierarchies()):
        raise EngineError(_refusal(lacking))


def _refusal(lacking: Sequence[str]) -> str:
    """Why limits cannot be applied, and what to do."""
    what = f"the limits of a sandbox ({', '.join(lacking)}) cannot be applied because"
    otherwise = 'or create it without them: allow_degraded=["limits"], or OPENMODAL_ALLOW_DEGRADED=limits'
    if os.geteuid() == 0:
        return f"{what} no cgroup hierarchy has them; mount cgroup2 on /sys/fs/cgroup, {otherwise}"
    return (
        f"{what} no control group with them is delegated to this user; start the program with "
        f"`systemd-run --user --scope -p Delegate=yes`, as root (in a container, its root), {otherwise}"
    )


@functools.cache
def require_rights() -> None:
    """Raise EngineError if root has not what it takes, which does not change while a program runs."""
    if os.geteuid() == 0 and (lacking := container.lacking()):
        raise EngineError(f"sandboxes cannot be made: {lacking}")


async def net(program: str, *, degraded: bool) -> plan.Lines:
    """The way out of a box; made on the machine if it is the first. `degraded`: where it cannot be
    made there is none.

    Raises:
        EngineError: it cannot be made; the text tells the remedy.
    """
    try:
        if os.geteuid() == 0:
            return [("net", "router"), *await router(program)]
        lines = rootless.network_lines(network.own_addresses())
    except EngineError:
        if not degraded:
            raise
        return [("net", "none")]
    return [*lines, ("may_lack", "network")] if degraded else lines


async def shared_net(program: str) -> plan.Lines:
    """The way out of a box of root that others share a network with.

    Raises:
        EngineError: it cannot be made; the text tells the remedy.
    """
    lines = await router(program)
    if not _router(program).has_neighbours():
        raise EngineError(
            "sandboxes that share a network need nft, or a kernel with xt_devgroup for iptables; install one with "
            "`apt-get install nftables`, run `openmodal gc`, and try again"
        )
    return [("net", "router"), *lines]


def require_network(wanted: Network) -> None:
    """Refuse a network that this machine cannot give, as far as a look tells.

    Raises:
        EngineError: it cannot; the text tells the remedy.
    """
    if wanted.shared and os.geteuid() != 0:
        raise UnsupportedError(
            "a plain user's sandboxes cannot share a network, because each has one of its own; run as root, leave network= "
            "out, or use engine='docker'"
        )
    if wanted.block and not wanted.shared:
        return
    if os.geteuid() != 0 and not wanted.listed:
        rootless.require_network()
    elif wanted.listed or not _router("").exists():
        network.loader()


async def router(program: str) -> plan.Lines:
    """The router that boxes of root are behind; made on the machine if it is not there. A plain
    user's have none.

    Raises:
        EngineError: it cannot be made; the text tells the remedy.
    """
    if os.geteuid() != 0:
        return []
    require_rights()
    found = _router(program)
    if not found.was_ready() and not found.ready(servers := network.resolvers()):
        await Blocking(found.ensure, servers)
    return [("router", str(found.path))]


def _router(program: str) -> network.Router:
    return _router_at(_config.machine(), program)


@functools.lru_cache(maxsize=4)  # it knows when it was looked at
def _router_at(machine: Path, program: str) -> network.Router:
    return network.Router(machine, program)


async def mend_router(program: str) -> None:
    """If boxes of root have a router, see that what they send passes: others reload firewalls, and machines move to other networks."""
    if os.geteuid() == 0 and _router(program).exists():
        await router(program)


def tidy_router(program: str) -> None:
    """For `gc`: the same, and what sandboxes left in the tables of connections whose supervisors were killed."""
    run_sync(mend_router(program))
    if os.geteuid() == 0:
        _router(program).sweep()
        neighbours.sweep()


def in_machines_network() -> plan.Lines:
    """Where a gate lives that connects to this machine itself. A plain user's is there anyway."""
    return [("router", f"/proc/{os.getpid()}/ns/net")] if os.geteuid() == 0 else []


def resolvers(wanted: Network) -> Sequence[str]:
    """The name servers of a box."""
    if wanted.block and os.geteuid() != 0:
        return ()
    if wanted.listed:
        return (network.GATE,)
    return network.asked(network.resolvers()) if os.geteuid() == 0 else rootless.servers(network.tool)


def gates_resolvers() -> Sequence[str]:
    """The name servers of a gate, which is behind the router if there is one."""
    return network.asked(network.resolvers()) if os.geteuid() == 0 else machine.own_resolvers()


def over_trust(
    store: Layers, layers: tuple[str, ...], env: Sequence[tuple[str, str]]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The layers and variables with this machine's extra certificate authorities, if it has some."""
    bundle = _config.authorities()
    if not bundle:
        return layers, dict(env)
    from openmodal.build.base import trust_layer

    key, variables = trust_layer(store, bundle)
    return (store.root(key), *layers), {**dict(variables), **dict(env)}


@functools.cache
def hierarchies() -> control_groups.Hierarchies:
    """Where the controllers are mounted, which does not change while a program runs."""
    mountinfo = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    if os.geteuid() == 0:
        return control_groups.hierarchies(mountinfo, Path("/proc/1/cgroup").read_text())
    return rootless.hierarchies(Path("/proc/self/cgroup").read_text(), control_groups.hierarchies(mountinfo).v2)


def memory() -> int:
    """The machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def most_of_memory() -> int:
    """Three quarters of it."""
    return memory() // 4 * 3
