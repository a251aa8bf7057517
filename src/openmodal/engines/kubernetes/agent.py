"""The agent's way into any image: a ConfigMap of the namespace, one per content and CPU."""

from __future__ import annotations

from openmodal import _binary
from openmodal.engines.kubernetes import pods
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError


def binary(settings: Settings) -> bytes:
    """The native program for the nodes' CPU.

    Raises:
        EngineError: this installation has none.
    """
    try:
        return _binary.content(settings.cpu)
    except EngineError as error:
        raise EngineError(f"{error}, or set kubernetes.architecture to the nodes' CPU") from error


def config_map(settings: Settings) -> Json:
    """The ConfigMap's manifest."""
    return pods.agent_map(binary(settings), settings)


def ensure(cluster: Api, manifest: Json) -> str:
    """Make the ConfigMap if it is not there; its name."""
    name = str(manifest["metadata"]["name"])
    if not cluster.exists(cluster.path("configmaps", name)):
        try:
            cluster.create(cluster.path("configmaps"), manifest)
        except ApiError as error:
            if error.status != 409:  # another process was faster
                raise
    return name
