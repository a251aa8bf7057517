"""What a StorageClass does: a volume for each claim, here a folder of the node, this machine.

A cluster that has a StorageClass of its own is left to that.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kubernetes.cluster import api

PAUSE = 0.2


@contextmanager
def provisioner(folder: Path) -> Iterator[None]:
    """Serve the claims of this run's namespace, with volumes in that folder."""
    if api().get("/apis/storage.k8s.io/v1/storageclasses")["items"]:
        yield
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=_serve, args=(folder, stop), name="provisioner")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for name in _volumes():
            _remove(folder, name)
        shutil.rmtree(folder)


def _serve(folder: Path, stop: threading.Event) -> None:
    while not stop.wait(PAUSE):
        cluster, made = api(), _volumes()
        claims = cluster.get(cluster.path("persistentvolumeclaims"))["items"]
        wanted = {_name(claim): claim for claim in claims}
        for name in wanted.keys() - made.keys():
            (folder / name).mkdir()
            cluster.create("/api/v1/persistentvolumes", _volume(folder / name, wanted[name]))
        for name in made.keys() - wanted.keys():
            _remove(folder, name)


def _volumes() -> dict[str, Any]:
    items = api().get("/api/v1/persistentvolumes")["items"]
    own = api().namespace
    return {item["metadata"]["name"]: item for item in items if item["spec"]["claimRef"]["namespace"] == own}


def _remove(folder: Path, name: str) -> None:
    api().delete(f"/api/v1/persistentvolumes/{name}")
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
