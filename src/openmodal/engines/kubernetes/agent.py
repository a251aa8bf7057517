"""The agent's way into any image: a ConfigMap of the namespace, one per content and CPU."""

from __future__ import annotations

import os
from pathlib import Path

from openmodal.engines.kubernetes import pods
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def binary(settings: Settings) -> bytes:
    """The native program for the nodes' CPU.

    Raises:
        EngineError: this installation has none.
    """
    chosen = os.environ.get("OPENMODAL_AGENT")
    name = f"openmodal-agent-{_MACHINES[settings.cpu]}"
    path = Path(chosen) if chosen else Path(__file__).parents[2] / "_native" / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"there is no native program for {settings.cpu} nodes in this installation ({path.name}: {error.strerror}); "
            "install a release wheel of openmodal, which has both CPUs', or set kubernetes.architecture"
        ) from error


def config_map(settings: Settings) -> Json:
    """The ConfigMap as it shall be."""
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
