"""A real cluster, whichever the KUBECONFIG names, with a namespace for this run; and a registry
that its nodes pull from.

The registry is Debian's on loopback, which only a cluster on this machine reaches; for another,
OPENMODAL_REGISTRY names one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openmodal._dual import run_sync
from openmodal._spec import Resources
from openmodal.app import App
from openmodal.engines.kubernetes import Kubernetes
from openmodal.image import Image
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)
from openmodal.testing.fixtures import creating, eventually
from tests.build.test_registry import docker_registry
from tests.kubernetes.cluster import Make, api, keep_bridges_address, pods_are_here, waiting
from tests.kubernetes.provisioner import provisioner
from tests.selection import leave_out


@pytest.fixture(scope="session")
def cluster() -> None:
    """The cluster is there, or its tests are not run."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a Kubernetes cluster: set KUBECONFIG")


@pytest.fixture(scope="session")
def registry(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where images are pushed."""
    if given := os.environ.get("OPENMODAL_REGISTRY"):
        yield given
        return
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        os.environ["OPENMODAL_REGISTRY"] = host
        yield host
        del os.environ["OPENMODAL_REGISTRY"]


@pytest.fixture(scope="session")
def namespace(cluster: None) -> Iterator[str]:
    """A namespace of this run's own."""
    name = f"om-test-{secrets.token_hex(4)}"
    os.environ["OPENMODAL_KUBERNETES_NAMESPACE"] = name
    os.environ["OPENMODAL_KUBERNETES_OVERCOMMIT"] = "20"  # many small sandboxes on few cores
    api().create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    api().delete(f"/api/v1/namespaces/{name}")
    del os.environ["OPENMODAL_KUBERNETES_NAMESPACE"], os.environ["OPENMODAL_KUBERNETES_OVERCOMMIT"]


@pytest.fixture(scope="session")
def volumes(namespace: str) -> Iterator[None]:
    """Claims for volumes are served."""
    with provisioner(Path(os.environ["OPENMODAL_HOME"]) / f"volumes-{namespace}"):
        yield


@pytest.fixture(scope="session")
def engine(namespace: str, registry: str, volumes: None) -> Kubernetes:
    return Kubernetes()


@pytest.fixture(scope="session", autouse=True)
def pool(engine: Kubernetes, image: Image) -> Iterator[None]:
    """Pods that are made beside the tests, while others run: this cluster needs a second or two for one."""
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    # Boxes that look into volumes are of an image that these nodes can pull.
    os.environ["OPENMODAL_KUBERNETES_PROBE_IMAGE"] = root.reference
    run_sync(engine.create_pool("tests", root, Resources(), 8))
    if os.geteuid() == 0 and pods_are_here():
        eventually(_pods_with_addresses, seconds=100)
        keep_bridges_address(_pods_with_addresses()[0])
    yield
    run_sync(engine.delete_pool("tests"))
    del os.environ["OPENMODAL_KUBERNETES_PROBE_IMAGE"]


def _pods_with_addresses() -> list[dict[str, Any]]:
    return [pod for pod in waiting("tests") if "podIP" in pod["status"]]


DEAR = (
    "test_two_writers_of_different_files",
    "test_one_that_is_read_only_is",
    "test_one_that_is_missing",
    "test_set_user_id_programs",
    "test_files_are_",
    "test_nothing_is_written_over",
    "test_links_of_a_hostile",
    "test_it_is_an_image_like_any_other",
    "test_a_dockerfile_begins_with_it",
    "test_a_snapshot_of_a_snapshot",
    "test_it_stays_until_it_expires",
    "test_secrets_are_not_passed_on",
    "test_forks_outlive",
    "test_all_or_none",
)
"""Each takes many pods that no pool has ready, and what they show is the agent's part, as on every
engine, the kubelet's, or above the engines."""

BLOCKING = {"TestLifetime"}
"""Those of the engine's own verbs run in the blocking face, the others in the async one, where each
call of the engine is a `Blocking` in a thread. The embedded engine, for which a sandbox costs a
millisecond and not a second, shows that the faces are alike."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other face, and Debian images, which the embedded engine builds and tests."""
    leave_out(config, items, _is_left_out)


def _is_left_out(item: pytest.Item) -> bool:
    name = getattr(getattr(item, "cls", None), "__name__", "")
    if item.path.parent != Path(__file__).parent:
        return False
    if item.get_closest_marker("slow") or any(map(item.name.startswith, DEAR)):
        return True
    return name.startswith("Test") and ("[async" if name in BLOCKING else "[blocking") in item.name


@pytest.fixture
def make(engine: Kubernetes, image: Image) -> Iterator[Make]:
    with creating(app=App("kube"), image=image, engine=engine, timeout=1000) as create:
        yield create
