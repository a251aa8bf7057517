"""NetworkPolicies as values. They choose pods by the labels that `create` puts on them; what
several say of a pod is added up.

Nothing comes in, but to agents with the setting `direct`; out goes nothing (`block_network`), or
what is not inside (the internet, and name servers wherever they are), or what a list of networks
allows. Whether anybody enforces them is the cluster's affair (`probe`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from openmodal.engines import machine
from openmodal.engines.kubernetes.api import Api
from openmodal.engines.kubernetes.pods import DOMAIN, PORT, Json
from openmodal.engines.kubernetes.settings import Settings

GROUP = "apis/networking.k8s.io/v1"
PROBE = f"{DOMAIN}/probe"
CLIENT = f"{DOMAIN}/client"
OURS = {"app.kubernetes.io/managed-by": "openmodal"}

_METADATA_6 = ("fd00:c1::a9fe:a9fe/128", "fd00:ec2::254/128", "fd20:ce::254/128")  # of Oracle, Amazon and Google
_NO_HOST_6 = ("::/128", "::1/128", "fe80::/10", "ff00::/8")

NEVER = (*machine.NEVER, *_METADATA_6, *_NO_HOST_6)
"""The node itself and the clouds' metadata service: no list opens them."""

INSIDE = tuple(dict.fromkeys((*machine.DENIED, "fc00::/7", *NEVER)))

_ANYWHERE = ("0.0.0.0/0", "::/0")


def deny() -> Json:
    """Of all sandboxes: nothing."""
    return policy("openmodal-deny", OURS, {"policyTypes": ["Ingress", "Egress"]})


def internet(settings: Settings) -> Json:
    """Of those that have no list and are not blocked: what is not inside."""
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    spec = {"policyTypes": ["Egress"], "egress": [{"to": _blocks(_ANYWHERE, settings)}, {"ports": names}]}
    return policy("openmodal-internet", {f"{DOMAIN}/network": "internet"}, spec)


def direct(settings: Settings) -> Json:
    """Of all sandboxes, also those that are cut off: the port of their agents, from pods that say
    they are clients. Nothing goes out.

    Without the setting it lets nothing through; it is said all the same, so that `setup` closes
    what it has opened before.
    """
    clients = {"namespaceSelector": {}, "podSelector": {"matchLabels": {CLIENT: "true"}}}
    ingress = [{"from": [clients], "ports": [{"protocol": "TCP", "port": PORT}]}] if settings.direct else []
    return policy("openmodal-direct", OURS, {"policyTypes": ["Ingress"], "ingress": ingress})


def listed(pod: Json, labels: Mapping[str, str], cidrs: Sequence[str], settings: Settings) -> Json:
    """Of one sandbox: these networks, by TCP. It goes with the sandbox's pod."""
    blocks = _blocks(cidrs, settings)
    egress = [{"to": blocks, "ports": [{"protocol": "TCP"}]}] if blocks else []  # an empty `to` would be everywhere
    own = {f"{DOMAIN}/id": labels[f"{DOMAIN}/id"]}
    made = policy(str(pod["metadata"]["name"]), own, {"policyTypes": ["Ingress", "Egress"], "egress": egress})
    made["metadata"] |= {"labels": OURS, "ownerReferences": [owner(pod)]}
    return made


def cut_off(pod: Json) -> Json:
    """Of one pod of a probe: nothing. It goes with the pod."""
    name = str(pod["metadata"]["name"])
    made = policy(name, {PROBE: name}, {"policyTypes": ["Ingress", "Egress"]})
    made["metadata"] |= {"labels": OURS, "ownerReferences": [owner(pod)]}
    return made


def owner(pod: Json) -> Json:
    """What goes with that pod says so."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


def policy(name: str, labels: Mapping[str, str], spec: Json) -> Json:
    """A policy of the pods with these labels."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": dict(labels)}, **spec},
    }


def _blocks(cidrs: Iterable[str], settings: Settings) -> list[Json]:
    """Networks as a policy names them. One that is wider than a private network was not meant to open it."""
    wanted, inside = [ip_network(text) for text in cidrs], (*INSIDE, *settings.inside)
    return [
        {"ipBlock": {"cidr": str(network), "except": [zone for zone in inside if _opens(network, zone)]}}
        for network in wanted
        if not any(_within(network, zone) for zone in NEVER)
    ]


def _opens(network: IPv4Network | IPv6Network, zone: str) -> bool:
    """Whether a network contains that zone and more."""
    return _within(ip_network(zone), str(network)) and str(network) != zone


def _within(network: IPv4Network | IPv6Network, other: str) -> bool:
    outer = ip_network(other)
    if isinstance(network, IPv4Network) and isinstance(outer, IPv4Network):
        return network.subnet_of(outer)
    return isinstance(network, IPv6Network) and isinstance(outer, IPv6Network) and network.subnet_of(outer)


def finished_probes(cluster: Api) -> list[str]:
    """The pods of probes that ended while nobody was there to delete them."""
    over = "status.phase!=Pending,status.phase!=Running"
    left = cluster.metadata(cluster.pods(), labelSelector=PROBE, fieldSelector=over)
    return [str(metadata["name"]) for metadata in left if "deletionTimestamp" not in metadata]
