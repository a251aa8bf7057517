"""What a cluster administrator gives sandboxes: a namespace, the rights to use it, and policies. Manifests as values, and applying them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from openmodal.engines.kubernetes import policies
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.settings import Settings

_RIGHTS = (
    ("", ["pods"], ["get", "list", "watch", "create", "patch", "delete"]),
    ("", ["pods/exec"], ["get", "create"]),
    ("", ["pods/log"], ["get"]),
    ("", ["configmaps"], ["get", "list", "create", "patch", "delete"]),
    ("", ["persistentvolumeclaims"], ["get", "list", "create", "delete"]),
    ("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
    ("apps", ["replicasets"], ["get", "list", "create", "delete"]),
    ("networking.k8s.io", ["networkpolicies"], ["create"]),
)
_BUILD_RIGHTS = (
    ("", ["pods"], ["get", "list"]),
    ("", ["pods/exec"], ["get", "create"]),
    ("", ["configmaps"], ["get", "create"]),
    ("batch", ["jobs"], ["create", "delete"]),
)


def manifests(settings: Settings, grant: Sequence[str] = (), most: int = 0) -> list[Json]:
    """All of it, in the order in which it is to be made.

    Args:
        grant: who may use the namespace, each as "user:NAME", "group:NAME" or
            "serviceaccount:NAMESPACE/NAME".
        most: how many sandboxes there may be at once; 0: as many as the nodes take.
    """
    quota = [_quota(most)] if most else []
    found = [
        _namespace(settings),
        _role(),
        *(_binding(grant) if grant else ()),
        *quota,
        policies.deny(),
        policies.internet(settings),
        policies.direct(settings),
    ]
    for item in found[1:]:
        item["metadata"] = {**item["metadata"], "namespace": settings.namespace, "labels": policies.OURS}
    return found


def builds(settings: Settings, grant: Sequence[str] = ()) -> list[Json]:
    """The namespace of builds and what is in it. BuildKit without root needs system calls that "baseline" does not let it have."""
    there = msgspec.structs.replace(settings, namespace=settings.builds, direct=False)
    namespace, role, *rest = manifests(there, grant)
    labels = {**namespace["metadata"]["labels"], "pod-security.kubernetes.io/enforce": "privileged"}
    open_namespace = {**namespace, "metadata": {**namespace["metadata"], "labels": labels}}
    return [open_namespace, {**role, "rules": _rules(_BUILD_RIGHTS)}, *rest]


def apply(cluster: Api, items: Sequence[Json]) -> list[str]:
    """Make or change the objects; a line for each. May be said again."""
    return [f"{item['kind']} {item['metadata']['name']}: {_apply(cluster, item)}" for item in items]


def path(cluster: Api, item: Json) -> str:
    """Where objects of that kind are made."""
    kind = f"{item['kind'].lower().removesuffix('y')}{'ies' if item['kind'].endswith('y') else 's'}"
    group = "api/v1" if item["apiVersion"] == "v1" else f"apis/{item['apiVersion']}"
    return f"/{group}/{kind}" if item["kind"] == "Namespace" else cluster.path(kind, group=group)


def _apply(cluster: Api, item: Json) -> str:
    there = path(cluster, item)
    try:
        cluster.create(there, item)
    except ApiError as error:
        if error.status != 409:
            raise
        # What is in a Secret was given to somebody, and most of a claim cannot be changed.
        if item["kind"] in ("Secret", "PersistentVolumeClaim"):
            return "kept"
        cluster.patch(f"{there}/{item['metadata']['name']}", item)
        return "up to date"
    return "made"


def _namespace(settings: Settings) -> Json:
    # "baseline" forbids all that opens the node; "restricted" would forbid root in the sandbox,
    # without which agents install nothing.
    labels = {**policies.OURS, "pod-security.kubernetes.io/enforce": "baseline"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.namespace, "labels": labels}}


def _role() -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "openmodal"},
        "rules": _rules(_RIGHTS),
    }


def _rules(rights: Sequence[tuple[str, list[str], list[str]]]) -> list[Json]:
    return [{"apiGroups": [group], "resources": kinds, "verbs": verbs} for group, kinds, verbs in rights]


def _binding(grant: Sequence[str]) -> list[Json]:
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "openmodal"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "openmodal"},
            "subjects": [_subject(who) for who in grant],
        }
    ]


def _subject(who: str) -> Json:
    kind, _, name = who.partition(":")
    if kind == "serviceaccount":
        namespace, _, account = name.partition("/")
        return {"kind": "ServiceAccount", "namespace": namespace, "name": account}
    return {"kind": kind.capitalize(), "apiGroup": "rbac.authorization.k8s.io", "name": name}


def _quota(most: int) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "openmodal"},
        "spec": {"hard": {"pods": str(most)}},
    }
