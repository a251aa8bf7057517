"""What an administrator gives programs that say `import modal`: a door in the cluster (`openmodal
serve`), reached by a port-forward. Manifests as values.

The door listens on its pod's loopback only, so nothing of the cluster reaches it, and who may
forward ports in the namespace does.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence

from openmodal.engines.kubernetes import policies
from openmodal.engines.kubernetes.api import Api, Json
from openmodal.engines.kubernetes.settings import Settings

NAME = "openmodal-serve"
PORT = 8260

_APP = {"app.kubernetes.io/name": NAME}
_STATE, _TOKENS, _LOGIN = "/var/lib/openmodal", "/etc/openmodal/tokens", "/etc/openmodal/login"
_FILE = "tokens"
_LOOK = (
    "python3",
    "-c",
    f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}/healthz', timeout=5)",
)
_USER = 1000


def manifests(settings: Settings, image: str, registry: str) -> list[Json]:
    """All of it, in the order in which it is to be made; the namespace and its Role are `setup`'s.

    Args:
        image: has this package with the extras `kubernetes` and `serve`.
        registry: where the door has images built to.
    """
    found = [
        _account(),
        _binding(settings),
        _tokens(),
        _claim(settings),
        _deployment(settings, image, registry),
        _service(),
    ]
    for item in found:
        item["metadata"] = {**item["metadata"], "namespace": settings.namespace, "labels": policies.OURS}
    return found


def builds(settings: Settings) -> Json:
    """The right of the door to build images in the namespace of builds."""
    return {**_binding(settings), "metadata": {"name": NAME, "namespace": settings.builds, "labels": policies.OURS}}


def words(cluster: Api) -> Sequence[str]:
    """What a client's shell is told."""
    data = cluster.get(cluster.path("secrets", NAME))["data"]
    id, secret = base64.b64decode(data[_FILE]).decode().split()[:2]
    return (
        f"kubectl --namespace {cluster.namespace} port-forward service/{NAME} {PORT} &",
        f"export MODAL_SERVER_URL=http://127.0.0.1:{PORT}",
        f"export MODAL_TOKEN_ID={id}",
        f"export MODAL_TOKEN_SECRET={secret}",
    )


def _account() -> Json:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME}}


def _binding(settings: Settings) -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": NAME},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "openmodal"},
        "subjects": [{"kind": "ServiceAccount", "namespace": settings.namespace, "name": NAME}],
    }


def _tokens() -> Json:
    """One token. If the Secret is there, `apply` leaves it as it is, with what was added to it."""
    line = f"ak-{secrets.token_hex(8)} as-{secrets.token_hex(16)}\n"
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": NAME},
        "data": {_FILE: base64.b64encode(line.encode()).decode()},
    }


def _claim(settings: Settings) -> Json:
    """For what a door keeps: recipes, uploaded files, named secrets."""
    storage = {"storageClassName": settings.volume_class} if settings.volume_class else {}
    requests = {"requests": {"storage": f"{settings.volume_size}Mi"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": requests, **storage}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": NAME}, "spec": spec}


def _service() -> Json:
    """A name for the port-forward."""
    spec = {"selector": _APP, "ports": [{"name": "grpc", "port": PORT, "targetPort": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": spec}


def _deployment(settings: Settings, image: str, registry: str) -> Json:
    # Not `managed-by`: by that the policies choose sandboxes, and this pod reaches the API server.
    labels = {**_APP, policies.CLIENT: "true"}
    template = {"metadata": {"labels": labels}, "spec": _pod(settings, image, registry)}
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": _APP}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME}, "spec": spec}


def _pod(settings: Settings, image: str, registry: str) -> Json:
    login = {"secretName": "openmodal-registry", "optional": True}
    return {
        "serviceAccountName": NAME,
        "enableServiceLinks": False,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(settings, image, registry)],
        "volumes": [
            {"name": "state", "persistentVolumeClaim": {"claimName": NAME}},
            {"name": "tokens", "secret": {"secretName": NAME}},
            {"name": "login", "secret": {**login, "items": [{"key": ".dockerconfigjson", "path": "config.json"}]}},
        ],
    }


def _container(settings: Settings, image: str, registry: str) -> Json:
    look = {"exec": {"command": [*_LOOK]}, "periodSeconds": 20, "timeoutSeconds": 10}
    return {
        "name": "door",
        "image": image,
        "command": ["python3", "-m", "openmodal", "--engine", "kubernetes", "serve"],
        "args": ["--port", str(PORT), "--token-file", f"{_TOKENS}/{_FILE}"],
        "env": [{"name": name, "value": value} for name, value in _variables(settings, registry).items()],
        "ports": [{"name": "grpc", "containerPort": PORT}],
        "readinessProbe": look,
        "livenessProbe": {**look, "failureThreshold": 5, "initialDelaySeconds": 30},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "state", "mountPath": _STATE},
            {"name": "tokens", "mountPath": _TOKENS, "readOnly": True},
            {"name": "login", "mountPath": _LOGIN, "readOnly": True},
        ],
    }


def _variables(settings: Settings, registry: str) -> dict[str, str]:
    """The settings of the door: those of who sets it up that a pod needs, too."""
    told = {
        "namespace": settings.namespace,
        "owner": settings.owner,
        "overcommit": str(settings.overcommit),
        "architecture": settings.architecture,
        "network_policy": str(settings.network_policy).lower(),
        "inside": ",".join(settings.inside),
        "user_namespaces": str(settings.user_namespaces).lower(),
        "direct": str(settings.direct).lower(),
        "runtime_class": settings.runtime_class,
        "builder": settings.builder if settings.builder == "cloudbuild" else "cluster",
        "build_namespace": settings.build_namespace,
        "build_image": settings.build_image,
        "gpu_label": settings.gpu_label,
        "probe_image": settings.probe_image,
        "volume_class": settings.volume_class,
        "volume_size": str(settings.volume_size),
        "volume_access": settings.volume_access,
        "patience": str(settings.patience),
    }
    named = {f"OPENMODAL_KUBERNETES_{name.upper()}": value for name, value in told.items() if value}
    own = {"HOME": _STATE, "OPENMODAL_HOME": f"{_STATE}/openmodal", "DOCKER_CONFIG": _LOGIN}
    return {**own, **({"OPENMODAL_REGISTRY": registry} if registry else {}), **named}
