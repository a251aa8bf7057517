"""Whether a cluster enforces NetworkPolicies, found out by trying: of two pods one reaches the
other, until a policy forbids it.

And whether it then goes on reaching its own node, which Kubernetes lets a network plug-in always
allow.

Blocking. Whatever happens the pods are deleted, and the policy goes with them. Should this process
be killed, they end by themselves, and `openmodal gc` removes them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from openmodal._spec import Referenced, Resources
from openmodal.engines.kubernetes import agent, pods, policies
from openmodal.engines.kubernetes.api import Api, Json
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError

_START = 120.0  # seconds for a node, an image and a start
_GET_THROUGH = 1.0  # seconds in which the client gets through before the policy is there
_ALWAYS, _NO_LONGER = 0, 1  # exit codes of `reach`
_POD, _NODE = "pod", "node"  # the containers, by what they reach
_KUBELET = "10250"  # every node listens there


class Found(NamedTuple):
    """Whether policies are enforced, and whether a pod isolated by one still reaches its own node."""

    enforced: bool
    node: bool


def enforced(cluster: Api, settings: Settings, seconds: int) -> Found:
    """Look whether a policy takes effect within so many seconds.

    Raises:
        EngineError: that cannot be found out; the text tells why.
    """
    spec = pods.pod_spec(
        Referenced("", reference=settings.probe_image),
        Resources(cpu=0.05, memory=16, disk=16),
        agent.ensure(cluster, agent.config_map(settings)),
        settings,
    )
    with (
        _pod(cluster, spec, {_POD: (str(pods.PORT), str(int(_START) + seconds))}) as target,
        _pod(cluster, spec, _reaches(target["status"]["podIP"], str(seconds))) as client,
    ):
        time.sleep(_GET_THROUGH)
        cluster.create(cluster.path("networkpolicies", group=policies.GROUP), policies.cut_off(client))
        codes = pods.exit_codes(_until(cluster, client, lambda pod: len(pods.exit_codes(pod)) == 2))
    if codes[_POD] not in (_ALWAYS, _NO_LONGER):
        raise EngineError("neither of two pods reached the other, so it is not known whether policies are enforced")
    return Found(codes[_POD] == _NO_LONGER, codes[_NODE] == _ALWAYS)


def _reaches(address: str, seconds: str) -> dict[str, tuple[str, ...]]:
    """What the pod that is to be cut off runs. The kubelet puts the node's address in."""
    return {_POD: (address, str(pods.PORT), seconds), _NODE: ("$(NODE)", _KUBELET, seconds)}


@contextmanager
def _pod(cluster: Api, spec: Json, runs: Mapping[str, Sequence[str]]) -> Iterator[Json]:
    """A pod with containers of these names, each of which runs `reach` with these arguments."""
    node = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
    containers = [
        {**spec["containers"][0], "name": name, "env": [node], "command": [pods.AGENT, "reach", *arguments]}
        for name, arguments in runs.items()
    ]
    name = f"om-probe-{secrets.token_hex(4)}"
    manifest = pods.manifest(name, {**spec, "containers": containers}, 2 * _START)
    manifest["metadata"]["labels"] = {policies.PROBE: name}
    made = cluster.create(cluster.pods(), manifest)
    try:
        yield _until(cluster, made, pods.started)
    finally:
        cluster.delete(cluster.pods(name), grace=0)


def _until(cluster: Api, pod: Json, reached: Callable[[Json], bool]) -> Json:
    """The pod, once that is so."""
    give_up = time.monotonic() + _START
    while not reached(pod):
        trouble = pods.trouble(pod)
        if trouble and not pods.exit_codes(pod):
            kind, why = trouble
            remedy = "; set kubernetes.probe_image to one that the nodes can pull" if kind == "image" else ""
            raise EngineError(f"the pod that is to find out whether policies are enforced cannot run: {why}{remedy}")
        if time.monotonic() > give_up:
            raise EngineError(
                f"the pod that is to find out whether policies are enforced waits for {pods.waits_for(pod)}"
            )
        metadata = pod["metadata"]
        pod = cluster.changed(cluster.pods(), metadata["name"], metadata["resourceVersion"], 10.0) or pod
    return pod
