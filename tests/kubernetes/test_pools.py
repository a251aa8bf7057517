"""Warm pods: who takes one, and how many there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmodal._dual import run_sync
from openmodal._spec import Resources, SandboxSpec
from openmodal.engines.kubernetes import Kubernetes
from openmodal.engines.kubernetes.pods import found
from openmodal.engines.kubernetes.settings import read
from openmodal.engines.kubernetes.start import Start
from openmodal.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
)
from openmodal.image import Image
from openmodal.pool import Pool
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import Make, api, pod_of, pods, quota, waiting


@pytest.fixture(scope="module")
def small_pool(engine: Kubernetes, image: Image) -> Iterator[Pool]:
    pool = Pool.create("small", image=image, size=3, memory=123, engine=engine)
    yield pool
    pool.delete()


@pytest.mark.timeout(400)
def test_a_pool_fills_and_gives_its_pods_to_sandboxes_of_its_shape(
    small_pool: Pool, make: Make, engine: Kubernetes
) -> None:
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    names = {pod["metadata"]["name"] for pod in waiting("small")}
    taken = make(memory=123)
    assert pod_of(taken)["metadata"]["name"] in names
    assert pod_of(make(memory=124))["metadata"]["name"] not in names, "another shape"
    assert taken.exec("echo", "hello").stdout.read() == "hello\n"
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    assert Sandbox.from_id(taken.id, engine=engine).poll() is None
    with pytest.raises(AlreadyExistsError, match="choose another id"):
        make(memory=123, id=taken.id)


@pytest.mark.timeout(400)
def test_a_warm_pod_is_no_sandbox_until_it_is_taken(small_pool: Pool, engine: Kubernetes) -> None:
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    assert [sandbox for sandbox in Sandbox.list(engine=engine) if sandbox.id.startswith("small")] == []


@pytest.mark.timeout(400)
def test_of_many_at_once_no_two_get_the_same_pod_and_the_pool_never_outgrows_its_size(
    small_pool: Pool, make: Make
) -> None:
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    sizes: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(make, memory=123) for _ in range(8)]
        while not all(call.done() for call in calls):
            sizes.append(len([pod for pod in waiting("small") if "deletionTimestamp" not in pod["metadata"]]))
            time.sleep(0.05)
        made = [call.result() for call in calls]
    names = [pod_of(sandbox)["metadata"]["name"] for sandbox in made]
    assert len(set(names)) == 8
    assert max(sizes) <= 3
    marks = [sandbox.spawn("sh", "-c", "echo $0 > /tmp/mark; cat /tmp/mark", str(n)) for n, sandbox in enumerate(made)]
    assert [process.stdout.read() for process in marks] == [f"{n}\n" for n in range(8)]


@pytest.mark.timeout(400)
def test_a_sandbox_from_a_pool_ends_for_good(small_pool: Pool, make: Make) -> None:
    """The cluster restarts what exits in a pod of a ReplicaSet; a new agent in the old one's place would be a sandbox that nobody made."""
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    sandbox = make("sh", "-c", "echo done; exit 3", memory=123)
    assert pod_of(sandbox)["metadata"]["name"].startswith("om-pool-small")
    eventually(lambda: sandbox.poll() is not None)
    assert sandbox.poll() == 3
    assert sandbox.stdout.read() == "done\n"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("limit", ["lease", "idle_timeout"])
def test_the_end_of_a_sandbox_from_a_pool_is_seen_although_its_pod_runs_on(
    small_pool: Pool, make: Make, limit: str
) -> None:
    eventually(lambda: small_pool.status().ready == 3, seconds=200)
    sandbox = make(memory=123, **{limit: 0.5})
    assert pod_of(sandbox)["metadata"]["name"].startswith("om-pool-small")
    eventually(lambda: sandbox.poll() is not None)
    assert sandbox.poll() == 124


@pytest.mark.timeout(400)
def test_deleting_a_pool_leaves_its_sandboxes_running(engine: Kubernetes, image: Image, make: Make) -> None:
    pool = Pool.create("gone", image=image, size=1, memory=122, engine=engine)
    eventually(lambda: pool.status().ready == 1, seconds=200)
    sandbox = make(memory=122)
    pool.delete()
    assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"
    with pytest.raises(NotFoundError, match="gone"):
        pool.delete()


def test_wrong_sizes_are_refused(engine: Kubernetes, image: Image) -> None:
    with pytest.raises(InvalidError, match="size"):
        Pool.create("x", image=image, size=0, engine=engine)


@pytest.mark.timeout(400)
def test_of_fifty_who_want_eight_pods_at_once_eight_get_one_each(engine: Kubernetes, image: Image) -> None:
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    pool = Pool.create("fire", image=image, size=8, memory=126, engine=engine)
    spec = SandboxSpec(app="kube", timeout=100, resources=Resources(memory=126))
    wanting = [Start(api(), read(), f"kube-{number:08x}", spec, root) for number in range(50)]
    at_once = threading.Barrier(len(wanting))

    def take(start: Start) -> bool:
        at_once.wait(60)
        return run_sync(start.take())

    try:
        eventually(lambda: pool.status().ready == 8, seconds=200)
        there = {pod["metadata"]["name"] for pod in waiting("fire")}
        # With no room for those that would take their place.
        with quota(0), ThreadPoolExecutor(len(wanting)) as threads:
            took = list(threads.map(take, wanting))
            winners = [start for start, taken in zip(wanting, took, strict=True) if taken]
            owners = {pod["metadata"]["name"]: found(pod) for pod in pods() if pod["metadata"]["name"] in there}
            assert sorted(start.name for start in winners) == sorted(there), "each once, and none is left"
            assert {start.name: start.id for start in winners} == {
                name: owner.status.id for name, owner in owners.items() if owner
            }
    finally:
        pool.delete()
        for start in wanting:
            api().delete(api().pods(start.name), grace=0)
