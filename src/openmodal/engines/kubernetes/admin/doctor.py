"""What `openmodal doctor` says of the cluster. Looks only; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from openmodal import _config
from openmodal.engines.check import Check
from openmodal.engines.kubernetes import agent, api
from openmodal.engines.kubernetes.admin import probe
from openmodal.engines.kubernetes.api import Api, ApiError
from openmodal.engines.kubernetes.settings import Settings, read
from openmodal.errors import Error


def examine(*, network: bool = False) -> Iterator[Check]:
    """Look at the cluster that the kubeconfig names, as far as it can be seen. `network`: also find out whether policies are enforced."""
    settings = read()
    try:
        cluster = api.connect(settings.context, settings.namespace)
        version = str(cluster.get("/version")["gitVersion"])
    except Error as error:
        yield Check("kubernetes", False, str(error))
        return
    yield Check("kubernetes", True, f"{version}, namespace {settings.namespace}, sandboxes of {settings.owner}")
    yield _rights(cluster)
    yield _agent(settings)
    yield _registry()
    yield policies_enforced(cluster, settings) if network else _network(settings)


def _rights(cluster: Api) -> Check:
    """Asked for what cannot be done without; a dry run would say no more."""
    try:
        cluster.get(cluster.pods(), limit="1")
        for resource, verb in (
            ("pods", "create"),
            ("pods/exec", "create"),
            ("configmaps", "create"),
            ("pods", "delete"),
        ):
            if not _may(cluster, resource, verb):
                return Check("kubernetes rights", False, f"you may not {verb} {resource}", _GIVE)
    except ApiError as error:
        return Check("kubernetes rights", False, str(error), _GIVE)
    return Check("kubernetes rights", True, "pods can be made, entered and deleted")


_GIVE = "openmodal setup kubernetes --grant user:NAME   (a cluster administrator)"


def _may(cluster: Api, resource: str, verb: str) -> bool:
    name, _, part = resource.partition("/")
    wanted = {"namespace": cluster.namespace, "verb": verb, "resource": name, "subresource": part}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": wanted},
    }
    answer = cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


def _agent(settings: Settings) -> Check:
    try:
        size = len(agent.binary(settings))
    except Error as error:
        return Check("kubernetes agent", False, str(error))
    return Check("kubernetes agent", True, f"for {settings.cpu} nodes, {size / 1024:.0f} KiB")


def _registry() -> Check:
    if host := _config.registry():
        return Check("kubernetes registry", True, f"images are pushed to {host}")
    text = "none is set; only Image.from_registry works"
    return Check("kubernetes registry", False, text, f'registry = "host/path" in {_config.config_file()}')


def _network(settings: Settings) -> Check:
    if settings.network_policy:
        return Check("kubernetes network", True, "the configuration says that NetworkPolicies are enforced")
    text = "NetworkPolicies are not known to be enforced, so block_network=True is refused and pods reach each other"
    return Check("kubernetes network", False, text, "find out with: openmodal doctor --network")


def policies_enforced(cluster: Api, settings: Settings, seconds: int = 10) -> Check:
    """Find out, with two pods, whether the cluster enforces NetworkPolicies within so many seconds, and whether the configuration knows."""
    name = "kubernetes network"
    try:
        found = probe.enforced(cluster, settings, seconds)
    except Error as error:
        return Check(name, False, str(error))
    if not found.enforced:
        text = "NetworkPolicies are not enforced: a pod went on reaching another that a policy cut it off from"
        wrong = f"network_policy = false in {_config.config_file()}, or " if settings.network_policy else ""
        return Check(name, False, text, f"{wrong}a network plug-in that enforces them, such as Calico or Cilium")
    if not settings.network_policy:
        text = "NetworkPolicies are enforced, but the configuration does not say so" + (_NODE if found.node else "")
        return Check(name, False, text, f"network_policy = true in the table [kubernetes] of {_config.config_file()}")
    if found.node:
        return Check(name, False, f"NetworkPolicies are enforced{_NODE}", "let a firewall of the nodes refuse pods")
    return Check(name, True, "NetworkPolicies are enforced")


_NODE = ", but a pod goes on reaching its own node: so does a sandbox, also one with block_network"
