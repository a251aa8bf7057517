"""The same life on a cluster, beside bare pods of the same image, in turns. Needs KUBECONFIG,
OPENMODAL_REGISTRY, and the namespace.

Where the nodes are small, OPENMODAL_KUBERNETES_OVERCOMMIT makes room for 30 sandboxes at once.
Where this machine reaches pods' addresses, OPENMODAL_KUBERNETES_DIRECT=true has direct links
measured, too; of all other rows the links then are direct.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row
from openmodal._dual import run_sync
from openmodal._spec import Resources
from openmodal.engines.kubernetes import Kubernetes, api, pods
from openmodal.engines.kubernetes.settings import read

APP = openmodal.App("bench")
AT_ONCE = 30
_POOL = 4
_PATIENCE = 120.0  # seconds: what no node has room for never comes


def rows() -> dict[str, Row]:
    """Every step, with its target. "floor" is a bare pod, and for `exec` an exec of its own."""
    return {
        "create": Row("create, no pool | a bare pod to Running", times_floor=1.15),
        "pool": Row("create from a pool, until the first command is done", target=150),
        "exec": Row("exec true, link open | an exec of its own", target=15),
        "terminate": Row("terminate", target=100),
        "direct": Row("exec true, direct link open | through the API server", target=15),
        "link": Row("a new direct link | through the API server"),
        "many": Row(f"{AT_ONCE} created at once | {AT_ONCE} bare pods", "s", times_floor=1.2),
    }


class Cluster:
    """The cluster, and bare pods on it."""

    def __init__(self, image: openmodal.Image) -> None:
        self.image = image
        self.engine = Kubernetes()
        self._root = run_sync(self.engine.prepare(image.recipe, lambda news: None))
        settings = read()
        self._api = api.connect(settings.context, settings.namespace)
        self._spec = pods.pod_spec(self._root, Resources(memory=200), "none", settings)

    def bare(self) -> float:
        """Seconds from asking for a pod until it runs: one as `kubectl run` makes it, with the
        volume of its account's token.

        A pod without any volume is there sooner, for the kubelet then has no mounts to wait for.
        """
        name = f"bench-{secrets.token_hex(4)}"
        spec = {**self._spec, "restartPolicy": "Never", "volumes": [], "automountServiceAccountToken": True}
        spec["containers"] = [{**self._spec["containers"][0], "command": ["sleep", "600"], "volumeMounts": []}]
        begun = time.monotonic()
        with Stopwatch() as watch:
            pod = self._api.create(
                self._api.pods(), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            )
            while not pods.started(pod):
                _still_waits(begun, pods.waits_for(pod))
                pod = self._api.changed(self._api.pods(), name, pod["metadata"]["resourceVersion"], 10) or pod
        self._api.delete(self._api.pods(name), grace=0)
        return watch.seconds

    def sandbox(self, memory: int = 200) -> openmodal.Sandbox:
        return openmodal.Sandbox.create(app=APP, image=self.image, engine=self.engine, memory=memory, timeout=600)

    def link(self, sandbox: openmodal.Sandbox) -> float:
        """Seconds until a new link to its agent can be used."""
        with Stopwatch() as watch:
            stream = run_sync(self.engine.connect(sandbox.id))
        stream.close()
        return watch.seconds

    def own_exec(self, sandbox: openmodal.Sandbox) -> float:
        """Seconds for one command by an exec of its own, as `kubectl exec` makes them."""
        from openmodal.engines.kubernetes.websocket import WebSocket

        query: api.Query = [("command", "true"), ("container", pods.CONTAINER), ("stdout", "true")]
        with Stopwatch() as watch:
            stream = WebSocket(self._api.upgrade(self._api.pods(f"{pods.name_of(sandbox.id)}/exec"), query))
            run_sync(stream.until_end(None))
        return watch.seconds


def measure(found: dict[str, Row], image: openmodal.Image, rounds: int, progress: Callable[[str], None]) -> None:
    """Fill the rows."""
    cluster = Cluster(image)
    for number in range(rounds):
        _one_life(found, cluster)
        progress(f"pods {number + 1}/{rounds}")
    if read().direct:
        _near_and_far(found, cluster, rounds)
        progress("direct links")
    _pool(found["pool"], cluster, rounds)
    for _ in range(max(1, rounds // 5)):
        _many(found["many"], cluster)
        progress("many pods")


def _one_life(found: dict[str, Row], cluster: Cluster) -> None:
    _at_any_moment()
    found["create"].floor.append(cluster.bare() * 1000)
    _at_any_moment()
    with Stopwatch() as watch:
        sandbox = cluster.sandbox()
    found["create"].ours.append(watch.seconds * 1000)
    sandbox.exec("true")
    for _ in range(5):
        with Stopwatch() as watch:
            sandbox.exec("true")
        found["exec"].ours.append(watch.seconds * 1000)
        found["exec"].floor.append(cluster.own_exec(sandbox) * 1000)
    with Stopwatch() as watch:
        sandbox.terminate()
    found["terminate"].ours.append(watch.seconds * 1000)


def _near_and_far(found: dict[str, Row], cluster: Cluster, rounds: int) -> None:
    """Links to one sandbox, in turns; new ones last, for the cluster is busy with their ends for a while."""
    exec_, link = found["direct"], found["link"]
    with cluster.sandbox() as sandbox:
        near, far = (openmodal.Sandbox.from_id(sandbox.id, engine=cluster.engine) for _ in range(2))
        near.exec("true")
        with _through_the_api_server():
            far.exec("true")
        for _ in range(5 * rounds):
            for who, figures in ((near, exec_.ours), (far, exec_.floor)):
                with Stopwatch() as watch:
                    who.exec("true")
                figures.append(watch.seconds * 1000)
        for _ in range(rounds):
            link.ours.append(cluster.link(sandbox) * 1000)
            with _through_the_api_server():
                link.floor.append(cluster.link(sandbox) * 1000)
            _at_any_moment()


@contextmanager
def _through_the_api_server() -> Iterator[None]:
    """New links are no direct ones."""
    os.environ["OPENMODAL_KUBERNETES_DIRECT"] = "false"
    try:
        yield
    finally:
        os.environ["OPENMODAL_KUBERNETES_DIRECT"] = "true"


def _still_waits(since: float, awaited: str) -> None:
    if time.monotonic() > since + _PATIENCE:
        raise TimeoutError(f"waited {_PATIENCE:.0f} s in vain for {awaited}; set OPENMODAL_KUBERNETES_OVERCOMMIT=20")


def _at_any_moment() -> None:
    """A kubelet looks once a second: who begins when another has just begun to run, waits the longest."""
    time.sleep(random.random())


def _pool(row: Row, cluster: Cluster, rounds: int) -> None:
    """Claims from a pool that is full. The pod that the cluster makes in place of the one that was taken starts meanwhile."""
    pool = openmodal.Pool.create("bench", image=cluster.image, size=_POOL, memory=201, engine=cluster.engine)
    try:
        for _ in range(rounds):
            begun = time.monotonic()
            while pool.status().ready < _POOL:
                _still_waits(begun, "the pods of the pool")
                time.sleep(0.1)
            _at_any_moment()
            with Stopwatch() as watch:
                sandbox = cluster.sandbox(201)
                sandbox.exec("true")
            row.ours.append(watch.seconds * 1000)
            sandbox.terminate()
    finally:
        pool.delete()


def _many(row: Row, cluster: Cluster) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        with Stopwatch() as watch:
            list(threads.map(lambda _: cluster.bare(), range(AT_ONCE)))
        row.floor.append(watch.seconds)
        with Stopwatch() as watch:
            made = list(threads.map(lambda _: cluster.sandbox(), range(AT_ONCE)))
        row.ours.append(watch.seconds)
        list(threads.map(lambda sandbox: sandbox.terminate(), made))
