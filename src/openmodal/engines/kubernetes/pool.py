"""Warm pods: a ReplicaSet keeps so many of one shape running, each with an agent that waits to be
told what sandbox it is.

A sandbox takes one by a single patch that makes it its own: the pod leaves the selector of the
ReplicaSet, which then makes another. Of many that want the same pod one gets it, because the patch
names the version that it saw. No controller of ours is involved.
"""

from __future__ import annotations

import math
import random

from openmodal._spec import PoolStatus, Referenced, Resources
from openmodal.engines.kubernetes import agent, pods
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import AlreadyExistsError, NotFoundError

_GROUP = "apis/apps/v1"
_POOL, _WARM, _SHAPE = (f"{pods.DOMAIN}/{word}" for word in ("pool", "warm", "shape"))


def create(cluster: Api, settings: Settings, name: str, root: Referenced, resources: Resources, size: int) -> None:
    """Make a pool.

    Raises:
        AlreadyExistsError: there is one of that name.
    """
    brought = agent.ensure(cluster, agent.config_map(settings))
    spec = pods.pod_spec(root, resources, brought, settings)
    try:
        cluster.create(cluster.path("replicasets", group=_GROUP), _replica_set(settings, name, root, spec, size))
    except ApiError as error:
        if error.status != 409:
            raise
        raise AlreadyExistsError(f"there is a pool {name!r}; delete it, or choose another name") from error


def listed(cluster: Api, settings: Settings) -> list[PoolStatus]:
    """The pools of this user."""
    chosen = f"{_POOL},{pods.DOMAIN}/owner={settings.owner}"
    answer = cluster.get(cluster.path("replicasets", group=_GROUP), labelSelector=chosen)
    return [_status(item) for item in answer["items"]]


def delete(cluster: Api, name: str) -> None:
    """Delete a pool and its warm pods; sandboxes that came from it run on.

    Raises:
        NotFoundError: there is none of that name.
    """
    if not cluster.delete(cluster.path("replicasets", _set_name(name), group=_GROUP)):
        raise NotFoundError(f"there is no pool {name!r}; `openmodal pool list` shows which there are")


def take(cluster: Api, settings: Settings, spec: Json, changes: Json, lifetime: float) -> Json | None:
    """Take a warm pod of that shape and change it; None if there is none (any more)."""
    chosen = f"{_SHAPE}={pods.shape(spec)},{_WARM}=true,{pods.DOMAIN}/owner={settings.owner}"
    warm = cluster.metadata(cluster.pods(), labelSelector=chosen, fieldSelector="status.phase=Running")
    random.shuffle(warm)  # many who look at once should not all want the same
    claims = (_claim(cluster, seen, changes, lifetime) for seen in warm if "deletionTimestamp" not in seen)
    return next(filter(None, claims), None)


def _claim(cluster: Api, seen: Json, changes: Json, lifetime: float) -> Json | None:
    """Make a pod ours; None if another was faster, or it turns out not to be ready."""
    metadata = {**changes, "labels": {**changes["labels"], _WARM: None}, "resourceVersion": seen["resourceVersion"]}
    deadline = {"activeDeadlineSeconds": _age(seen) + math.ceil(lifetime)}
    path = cluster.pods(seen["name"])
    try:
        pod = cluster.patch(path, {"metadata": metadata, "spec": deadline})
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return None
    if _ready(pod):
        return pod
    cluster.delete(path, grace=0)
    return None


def _age(metadata: Json) -> int:
    """Seconds since the pod was made: at least as many as since its start, from which its deadline counts."""
    from datetime import UTC, datetime

    made = datetime.fromisoformat(metadata["creationTimestamp"])
    return max(0, math.ceil((datetime.now(UTC) - made).total_seconds()))


def _ready(pod: Json) -> bool:
    return (
        pod.get("status", {}).get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
        and pods.started(pod)
        and pods.end(pod) is None
    )


def _replica_set(settings: Settings, name: str, root: Referenced, spec: Json, size: int) -> Json:
    marks = {_POOL: name, _WARM: "true", _SHAPE: pods.shape(spec)}
    managed = {"app.kubernetes.io/managed-by": "openmodal", f"{pods.DOMAIN}/owner": settings.owner}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": _set_name(name),
            "labels": {_POOL: name, **managed},
            "annotations": {f"{pods.DOMAIN}/image": root.reference},
        },
        "spec": {
            "replicas": size,
            "selector": {"matchLabels": marks},
            "template": {
                "metadata": {"labels": {**marks, **managed, f"{pods.DOMAIN}/network": "internet"}},
                "spec": pods.warm(spec),
            },
        },
    }


def _set_name(name: str) -> str:
    return f"om-pool-{name.lower().replace('_', '-').replace('.', '-')}"


def _status(item: Json) -> PoolStatus:
    return PoolStatus(
        name=item["metadata"]["labels"][_POOL],
        image=item["metadata"]["annotations"].get(f"{pods.DOMAIN}/image", ""),
        size=int(item["spec"]["replicas"]),
        ready=int(item["status"].get("readyReplicas", 0)),
    )
