"""A door in the cluster, as `openmodal setup kubernetes --serve` makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from openmodal._dual import run_sync
from openmodal.engines.kubernetes import Kubernetes
from openmodal.engines.kubernetes.admin import serving, setup
from openmodal.engines.kubernetes.settings import read
from openmodal.image import Image
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import Make, api, pods_are_here
from tests.serve.conftest import ROOT, environment

PROGRAM = """
import modal
app = modal.App.lookup("kube", create_if_missing=True)
(sandbox,) = modal.Sandbox.list(app_id=app.app_id)
sandbox.filesystem.write_text("kept", "/note")
print(sandbox.exec("cat", "/note").stdout.read(), sandbox.poll())
"""


@pytest.fixture
def door(engine: Kubernetes, image: Image, registry: str) -> Iterator[None]:
    """The objects of a door. Its image is a stand-in, in which this machine's Python is mounted; no
    image can be built there."""
    if os.geteuid() or not pods_are_here():
        pytest.skip("needs root and a cluster on this machine, whose Python the door's pod runs")
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    settings = read()
    items = [*setup.manifests(settings)[1:], *serving.manifests(settings, root.reference, registry)]
    for item in items:
        if item["kind"] == "Deployment":
            on_this_machine(item["spec"]["template"]["spec"])
    kinds = {"Role", "RoleBinding", "ServiceAccount", "Secret", "PersistentVolumeClaim", "Deployment", "Service"}
    wanted = [item for item in items if item["kind"] in kinds]
    try:
        setup.apply(api(), wanted)
        yield
    finally:
        for item in wanted:
            api().delete(f"{setup.path(api(), item)}/{item['metadata']['name']}")
        eventually(lambda: not door_pods(), seconds=100)


def on_this_machine(pod: dict[str, Any]) -> None:
    """Have a pod run this machine's Python, in its network, where the API server is."""
    from lightkube.config.kubeconfig import KubeConfig

    pod |= {"hostNetwork": True, "securityContext": {"runAsUser": 0}}
    container = pod["containers"][0]
    container["command"][0] = sys.executable
    folders = {"/usr", "/lib", "/lib64", sys.base_prefix, str(ROOT), str(Path(sys.prefix).resolve())}
    for number, folder in enumerate(sorted(folders)):
        pod["volumes"].append({"name": f"own-{number}", "hostPath": {"path": folder}})
        container["volumeMounts"].append({"name": f"own-{number}", "mountPath": folder, "readOnly": True})
    config = KubeConfig.from_env().get()
    assert config
    server = urlsplit(config.cluster.server)
    told = {"KUBERNETES_SERVICE_HOST": server.hostname, "KUBERNETES_SERVICE_PORT": str(server.port or 443)}
    variables = {**told, "PYTHONPATH": str(ROOT / "src")}
    container["env"] += [{"name": name, "value": value} for name, value in variables.items()]
    for probe in ("readinessProbe", "livenessProbe"):
        container[probe]["exec"]["command"][0] = sys.executable


def door_pods() -> list[dict[str, Any]]:
    found = api().get(api().pods(), labelSelector=f"app.kubernetes.io/name={serving.NAME}")["items"]
    return list(found)


def is_ready() -> bool:
    conditions = [each for pod in door_pods() for each in pod["status"].get("conditions", ())]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@pytest.mark.timeout(400)
def test_a_client_uses_a_door_that_was_set_up(door: None, make: Make) -> None:
    sandbox = make()
    eventually(is_ready, seconds=200)
    words = [line.removeprefix("export ").partition("=") for line in serving.words(api())[1:]]
    variables = {name: value for name, _, value in words}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment("1.6", variables), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["kept", "None"], f"{done.stdout}\n{done.stderr[-3000:]}"
    assert sandbox.filesystem.read_text("/note") == "kept"
