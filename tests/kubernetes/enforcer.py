"""A judge of NetworkPolicies for tests on a one-node cluster whose network plug-in has none:
policies and pods become nftables' rules.

    with enforcing(api(), ["namespace"]) as judge:
        judge.settle()  # what the API server has by now is what holds

`ruleset` is the plan: what Kubernetes documents of policies, as a text for `nft -f`. Its rules are
about the addresses of pods that a policy selects, and nothing else. What it refuses is answered; a
plug-in may also drop it in silence. Its limits: ports have numbers, no names; `from` and `to`
select pods of the given namespaces. What comes from a pod's own node always passes, as is
documented; what goes there only where a test says so, for plug-ins differ.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import collapse_addresses, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from openmodal.engines.kubernetes import policies
from openmodal.engines.kubernetes.api import Api
from openmodal.testing.fixtures import eventually
from tests import leaks

Json = Mapping[str, Any]

_TABLE = f"{leaks.JUDGE}{os.getpid()}"
_PAUSE = 0.5  # seconds between two looks at the API server, where nobody waits for one


class Pod(NamedTuple):
    """What policies know of a pod."""

    namespace: str
    labels: Mapping[str, str]
    addresses: tuple[str, ...]


class Direction(NamedTuple):
    """The traffic that one half of a policy is about. `own` and `other` are nft's words for the two ends' addresses."""

    kind: str
    peers: str
    own: str
    other: str


REFUSED = ("meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited")
EGRESS = Direction("Egress", "to", "saddr", "daddr")
INGRESS = Direction("Ingress", "from", "daddr", "saddr")


class Seen(NamedTuple):
    """What there is. `namespaces`: their labels, by name."""

    policies: Sequence[Json]
    pods: Sequence[Pod]
    namespaces: Mapping[str, Json]


def ruleset(table: str, seen: Seen, *, node: bool = True) -> str:
    """The rules of a table that replaces the one of that name. `node`: the own node is one more place that egress is about."""
    chains: list[str] = []
    jumps: dict[Direction, list[str]] = {EGRESS: [], INGRESS: []}
    for number, pod in enumerate(seen.pods):
        for direction in jumps:
            chosen = [policy for policy in seen.policies if _isolates(policy, pod, direction)]
            if not chosen:
                continue  # of a pod that no policy selects, nothing is said
            allowed = dict.fromkeys(line for policy in chosen for line in _allowed(policy, direction, seen))
            name = f"{direction.kind.lower()}_{number}"
            chains.append(_chain(name, *allowed, *REFUSED))
            jumps[direction] += [f"{_match(direction.own, [address])} jump {name}" for address in pod.addresses]
    # What may leave a pod is then judged by what may come in at the other end: so a rule returns,
    # and does not accept.
    forward = _hook("forward", *jumps[EGRESS], *jumps[INGRESS])
    own_node = _hook("input", *(jumps[EGRESS] if node else ()))
    return "\n".join((*_gone(table), f"table inet {table} {{", *chains, forward, own_node, "}\n"))


def _gone(table: str) -> tuple[str, str]:
    """That there is no such table, whether or not there was one."""
    return f"table inet {table}", f"delete table inet {table}"


def _isolates(policy: Json, pod: Pod, direction: Direction) -> bool:
    """Whether the policy selects the pod, for that direction."""
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    own = policy["metadata"]["namespace"] == pod.namespace and _selects(spec.get("podSelector", {}), pod.labels)
    return own and direction.kind in kinds


def _allowed(policy: Json, direction: Direction, seen: Seen) -> Iterator[str]:
    """What a policy lets through: of each of its rules every peer with every port. A rule without peers, or ports, means all."""
    for rule in policy["spec"].get(direction.kind.lower()) or ():
        wanted = rule.get(direction.peers)
        peers = [
            match for peer in wanted or () for match in _peer(peer, policy["metadata"]["namespace"], direction, seen)
        ]
        for peer in peers if wanted else [""]:
            for port in [_port(port) for port in rule.get("ports") or ()] or [""]:
                yield " ".join(filter(None, (peer, port, "return")))


def _peer(peer: Json, own: str, direction: Direction, seen: Seen) -> Iterator[str]:
    """A block of addresses, or the pods that are selected now; of each family by itself."""
    if block := peer.get("ipBlock"):
        unless = _match(direction.other, block.get("except") or (), "!= ")
        yield " ".join(filter(None, (_match(direction.other, [block["cidr"]]), unless)))
        return
    chosen = peer.get("namespaceSelector")
    inside = {own} if chosen is None else {name for name, labels in seen.namespaces.items() if _selects(chosen, labels)}
    found = [
        pod for pod in seen.pods if pod.namespace in inside and _selects(peer.get("podSelector") or {}, pod.labels)
    ]
    for version in (4, 6):
        addresses = [text for pod in found for text in pod.addresses if ip_address(text).version == version]
        if addresses:
            yield _match(direction.other, addresses)


def _match(end: str, networks: Iterable[str], unless: str = "") -> str:
    """That an address is in one of these networks, all of one family; "" for no networks."""
    found: list[Any] = sorted(collapse_addresses(ip_network(text) for text in networks))  # type: ignore[type-var]
    if not found:
        return ""
    family = "ip" if found[0].version == 4 else "ip6"
    return f"{family} {end} {unless}{{ {', '.join(map(str, found))} }}"


def _port(port: Json) -> str:
    """A port, ports up to `endPort`, or all of a protocol."""
    protocol = port.get("protocol", "TCP").lower()
    if port.get("port") is None:
        return f"meta l4proto {protocol}"
    last = f"-{port['endPort']}" if "endPort" in port else ""
    return f"{protocol} dport {int(port['port'])}{last}"


def _selects(selector: Json, labels: Json) -> bool:
    """An empty selector selects all; requirements are added up."""
    exact = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return exact and all(_meets(labels, **need) for need in selector.get("matchExpressions") or ())


def _meets(labels: Json, key: str, operator: str, values: Sequence[str] = ()) -> bool:
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,  # also who has no such label
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[operator]


def _chain(name: str, *lines: str) -> str:
    return "\n    ".join((f"  chain {name} {{", *lines)) + "\n  }"


def _hook(name: str, *lines: str) -> str:
    begin = (f"type filter hook {name} priority -10; policy accept;", "ct state established,related accept")
    return _chain(name, *begin, *lines)


# ------------------------------------------------------------------------------------ keeping to it


class Judge:
    """Looks at the API server all the time, and loads the rules when they have changed."""

    def __init__(self, cluster: Api, namespaces: Sequence[str], executor: ThreadPoolExecutor) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._passes = 0
        self._node = True
        self._stopped = False
        self._wanted = threading.Event()
        self._running = executor.submit(self._run)

    def settle(self) -> None:
        """Return when what the API server had at the call holds."""
        enough = self._passes + 2  # the pass that is under way may have read already

        def caught_up() -> bool:
            self._wanted.set()
            return self._passes >= enough or self._running.done()

        eventually(caught_up, seconds=60)
        if self._running.done():
            self._running.result()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        self._wanted.set()

    @contextmanager
    def sparing_nodes(self) -> Iterator[None]:
        """For the block, a pod always reaches its own node."""
        self._node = False
        try:
            yield
        finally:
            self._node = True

    def _run(self) -> None:
        loaded = ""
        while not self._stopped:
            if (rules := ruleset(_TABLE, self._see(), node=self._node)) != loaded:
                _nft("-f", "-", text=rules)
                loaded = rules
            self._passes += 1
            self._wanted.wait(_PAUSE)
            self._wanted.clear()

    def _see(self) -> Seen:
        pods = (_pod(item) for item in self._all("api/v1", "pods"))
        labels = {
            name: self._cluster.get(f"/api/v1/namespaces/{name}")["metadata"].get("labels", {})
            for name in self._namespaces
        }
        return Seen(list(self._all(policies.GROUP, "networkpolicies")), [pod for pod in pods if pod], labels)

    def _all(self, group: str, kind: str) -> Iterator[Json]:
        for namespace in self._namespaces:
            yield from self._cluster.get(f"/{group}/namespaces/{namespace}/{kind}")["items"]


def _pod(item: Json) -> Pod | None:
    """None of one that has ended, whose address may be another's by now, or that has none of its own."""
    status, metadata = item["status"], item["metadata"]
    if status.get("phase") in ("Succeeded", "Failed") or item["spec"].get("hostNetwork"):
        return None
    addresses = tuple(str(address["ip"]) for address in status.get("podIPs", ()))
    return Pod(metadata["namespace"], metadata.get("labels", {}), addresses) if addresses else None


@contextmanager
def enforcing(cluster: Api, namespaces: Sequence[str]) -> Iterator[Judge]:
    """Hold pods to the policies of these namespaces; in the end nothing of that is left."""
    for table in leaks.tables():  # of runs that were killed: other pods may have the addresses by now
        _nft("delete", "table", "inet", table)
    with ExitStack() as stack:
        # The chain `forward` sees packets from pod to pod, which stay on the bridge, only with
        # these.
        for what in ("iptables", "ip6tables"):
            switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{what}")
            stack.callback(switch.write_text, switch.read_text(encoding="ascii"), encoding="ascii")
            switch.write_text("1", encoding="ascii")
        stack.callback(_nft, "-f", "-", text="\n".join(_gone(_TABLE)))
        judge = Judge(cluster, namespaces, stack.enter_context(ThreadPoolExecutor(1)))
        stack.callback(judge.stop)
        judge.settle()
        yield judge


def _nft(*arguments: str, text: str = "") -> None:
    done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"nft {' '.join(arguments)}: {done.stderr}\n{text}"
