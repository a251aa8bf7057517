"""The cluster as tests look at it, beside the engine."""

from __future__ import annotations

from collections.abc import Iterator

from openmodal.engines.kubernetes.api import Api, connect
from openmodal.engines.kubernetes.pods import DOMAIN
from openmodal.engines.kubernetes.settings import read


def api() -> Api:
    """The API server, with the namespace of this run."""
    settings = read()
    return connect(settings.context, settings.namespace)


def objects() -> Iterator[str]:
    """Pods, pools and configurations of the namespace that nobody has deleted, but for what sandboxes share."""
    client = api()
    for kind, group in (("pods", "api/v1"), ("configmaps", "api/v1"), ("replicasets", "apis/apps/v1")):
        for item in client.get(client.path(kind, group=group))["items"]:
            metadata = item["metadata"]
            shared = f"{DOMAIN}/part" in metadata.get("labels", {}) or metadata["name"] == "kube-root-ca.crt"
            waits = f"{DOMAIN}/warm" in metadata.get("labels", {})
            if not (shared or waits or "deletionTimestamp" in metadata):
                yield f"{kind} {metadata['name']}"
