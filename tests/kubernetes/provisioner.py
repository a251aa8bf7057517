"""What a StorageClass does: a volume for each claim, here a folder of the node, this machine.

A cluster that has a StorageClass of its own is left to that.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from openmodal.engines.kubernetes.api import Api
from openmodal.errors import EngineError
from tests.kubernetes.cluster import api

PAUSE = 0.2


@contextmanager
def provisioner(folder: Path) -> Iterator[None]:
    """Serve the claims of this run's namespace, with volumes in that folder."""
    # Tests change KUBECONFIG while the thread runs, so the cluster is looked up once.
    cluster = api()
    if cluster.get("/apis/storage.k8s.io/v1/storageclasses")["items"]:
        yield
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=_serve, args=(cluster, folder, stop), name="provisioner")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for name in _volumes(cluster):
            _remove(cluster, folder, name)
        shutil.rmtree(folder)


def _serve(cluster: Api, folder: Path, stop: threading.Event) -> None:
    while not stop.wait(PAUSE):
        # A look that fails is followed by the next one: claims wait, and tests after this one need them.
        with suppress(EngineError, OSError):
            _look(cluster, folder)


def _look(cluster: Api, folder: Path) -> None:
    made = _volumes(cluster)
    claims = cluster.get(cluster.path("persistentvolumeclaims"))["items"]
    wanted = {_name(claim): claim for claim in claims}
    for name in wanted.keys() - made.keys():
        (folder / name).mkdir(exist_ok=True)
        cluster.create("/api/v1/persistentvolumes", _volume(folder / name, wanted[name]))
    for name in made.keys() - wanted.keys():
        _remove(cluster, folder, name)


def _volumes(cluster: Api) -> dict[str, Any]:
    items = cluster.get("/api/v1/persistentvolumes")["items"]
    own = cluster.namespace
    return {item["metadata"]["name"]: item for item in items if item["spec"]["claimRef"]["namespace"] == own}


def _remove(cluster: Api, folder: Path, name: str) -> None:
    cluster.delete(f"/api/v1/persistentvolumes/{name}")
    shutil.rmtree(folder / name, ignore_errors=True)


def _name(claim: dict[str, Any]) -> str:
    return f"om-test-{claim['metadata']['uid']}"


def _volume(folder: Path, claim: dict[str, Any]) -> dict[str, Any]:
    """A volume that is bound to a claim from the start."""
    metadata = claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _name(claim)},
        "spec": {
            "capacity": claim["spec"]["resources"]["requests"],
            "accessModes": claim["spec"]["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]},
        },
    }
