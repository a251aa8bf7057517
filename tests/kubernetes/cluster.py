"""The cluster as tests look at it, beside the engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openmodal.engines import machine
from openmodal.engines.kubernetes.api import Api, connect
from openmodal.engines.kubernetes.pods import DOMAIN, name_of
from openmodal.engines.kubernetes.settings import read
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually

Make = Callable[..., Sandbox]


def api() -> Api:
    """The API server, with the namespace of this run."""
    settings = read()
    return connect(settings.context, settings.namespace)


def objects() -> Iterator[str]:
    """Pods, pools and configurations of the namespace that nobody has deleted, but for what sandboxes share."""
    client = api()
    for kind, group in (
        ("pods", "api/v1"),
        ("configmaps", "api/v1"),
        ("persistentvolumeclaims", "api/v1"),
        ("replicasets", "apis/apps/v1"),
    ):
        for metadata in client.metadata(client.path(kind, group=group)):
            labels = metadata.get("labels", {})
            shared = labels.get(f"{DOMAIN}/part", "volume") != "volume" or metadata["name"] == "kube-root-ca.crt"
            if not (shared or f"{DOMAIN}/warm" in labels or "deletionTimestamp" in metadata):
                yield f"{kind} {metadata['name']}"


def pod_of(sandbox: Sandbox) -> dict[str, Any]:
    client = api()
    found = client.get(client.pods(), labelSelector=f"{DOMAIN}/id={name_of(sandbox.id)}")["items"]
    assert len(found) == 1
    return dict(found[0])


def waiting(name: str) -> list[dict[str, Any]]:
    client = api()
    return list(client.get(client.pods(), labelSelector=f"{DOMAIN}/pool={name},{DOMAIN}/warm=true")["items"])


@contextmanager
def settings(monkeypatch: pytest.MonkeyPatch, **values: object) -> Iterator[None]:
    with monkeypatch.context() as changed:
        for name, value in values.items():
            changed.setenv(f"OPENMODAL_KUBERNETES_{name.upper()}", str(value))
        yield


def kubeconfig(path: Path, token: str, server: str = "") -> str:
    """The same cluster as somebody else, who has only a token."""
    from lightkube.config.kubeconfig import KubeConfig

    given = KubeConfig.from_env().get()
    assert given
    cluster = {"server": server or given.cluster.server}
    if given.cluster.certificate_auth_data:
        cluster["certificate-authority-data"] = given.cluster.certificate_auth_data
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": cluster}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


def account(name: str, namespace: str) -> str:
    """A new service account's token."""
    client = api()
    client.create(client.path("serviceaccounts"), {"metadata": {"name": name}})
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    return str(client.create(client.path("serviceaccounts", f"{name}/token"), body)["status"]["token"])


@contextmanager
def quota(pods: int) -> Iterator[None]:
    """So many pods in the namespace, and no more."""
    client = api()
    path = client.path("resourcequotas", "full")
    client.create(client.path("resourcequotas"), {"metadata": {"name": "full"}, "spec": {"hard": {"pods": str(pods)}}})
    try:
        eventually(lambda: client.get(path).get("status", {}).get("hard"), seconds=60)
        yield
    finally:
        client.delete(path)


def pods() -> list[dict[str, Any]]:
    """All of the namespace."""
    client = api()
    return list(client.get(client.pods())["items"])


def pods_are_here() -> bool:
    """Whether this machine is the node."""
    nodes = api().get("/api/v1/nodes")["items"]
    addresses = [address for node in nodes for address in node["status"]["addresses"]]
    inner = {address["address"] for address in addresses if address["type"] == "InternalIP"}
    return inner <= set(machine.own_addresses())


def keep_bridges_address(pod: dict[str, Any]) -> None:
    """Have the bridge that this pod is in keep its hardware address.

    By itself it takes the lowest one of its ports, which come and go with pods; and those that are
    there reach nothing but each other until they ask for it anew, half a minute later. Plug-ins of
    today set it.
    """
    route = subprocess.run(["ip", "-j", "route", "get", pod["status"]["podIP"]], capture_output=True, check=True)
    folder = Path("/sys/class/net") / json.loads(route.stdout)[0]["dev"]
    if (folder / "bridge").exists():
        address = (folder / "address").read_text(encoding="ascii").strip()
        subprocess.run(["ip", "link", "set", folder.name, "address", address], check=True, capture_output=True)
