"""`runtime="gvisor"` on a cluster that has the RuntimeClass: what the engine has a part in.

That the agent works on gVisor's kernel, tests/gvisor shows.
"""

from __future__ import annotations

import pytest

from openmodal._dual import run_sync
from openmodal._spec import SandboxSpec
from openmodal.engines.kubernetes import Kubernetes
from openmodal.errors import EngineError, SandboxNotRunningError, SandboxTimeoutError, UnsupportedError
from openmodal.image import Image
from openmodal.pool import Pool
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import Make, api, objects, pod_of, settings


@pytest.fixture(scope="module", autouse=True)
def gvisor(cluster: None) -> None:
    """The cluster has the class, or these tests are not run."""
    if not api().exists("/apis/node.k8s.io/v1/runtimeclasses/gvisor"):
        pytest.skip('needs a cluster with a RuntimeClass "gvisor"')


def test_commands_and_files_are_gvisors(make: Make) -> None:
    sandbox = make(runtime="gvisor", env={"KEY": "value"})
    assert pod_of(sandbox)["spec"]["runtimeClassName"] == "gvisor"
    assert sandbox.status().runtime == "gvisor"
    assert "gVisor" in sandbox.exec("dmesg").stdout.read()
    process = sandbox.exec("sh", "-c", "echo $KEY; cat; exit 3", stdin=b"x" * 300_000, user="agent")
    assert (process.returncode, len(process.stdout.read())) == (3, 300_000 + len("value\n"))
    sandbox.filesystem.write_bytes("/srv/file", bytes(300_000))
    assert sandbox.exec("wc", "-c", "/srv/file").stdout.read().split()[0] == "300000"
    with pytest.raises(UnsupportedError, match="what holds gVisor itself cannot be told from inside"):
        sandbox.info()


def test_without_it_the_kernel_is_the_nodes(make: Make) -> None:
    sandbox = make()
    assert "runtimeClassName" not in pod_of(sandbox)["spec"]
    assert "gVisor" not in sandbox.exec("dmesg").stdout.read()


def test_the_agent_inside_keeps_the_deadline(make: Make) -> None:
    sandbox = make(runtime="gvisor", timeout=3)
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait(timeout=600)
    assert sandbox.returncode == 124


def test_too_much_memory_ends_the_sandbox_with_the_reason(make: Make) -> None:
    sandbox = make(runtime="gvisor", memory=200)
    sandbox.spawn("dd", "if=/dev/zero", "of=/dev/shm/much", "bs=1M", "count=600")
    assert sandbox.wait(timeout=600) == 137
    with pytest.raises(SandboxNotRunningError, match="it ran out of memory"):
        sandbox.exec("true")


def test_a_class_that_the_cluster_lacks_is_one_sentence_and_leaves_no_pod(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(objects())
    with settings(monkeypatch, runtime_class="of-nobody"), pytest.raises(EngineError) as caught:
        make()
    assert "the cluster has no RuntimeClass 'of-nobody'; an administrator makes it" in str(caught.value)
    assert set(objects()) == before


def test_the_class_is_asked_for_before_an_image_is_built(engine: Kubernetes) -> None:
    before = set(objects())
    with pytest.raises(EngineError, match="the cluster has no RuntimeClass 'of-nobody'"):
        run_sync(engine.check(SandboxSpec("kube", runtime="of-nobody")))
    run_sync(engine.check(SandboxSpec("kube", runtime="gvisor")))
    assert set(objects()) == before


def test_pods_of_a_pool_with_the_class_are_taken_by_those_that_ask_for_it(
    make: Make, image: Image, engine: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings(monkeypatch, runtime_class="gvisor"):
        pool = Pool.create("gvisor", image=image, size=1, memory=210, engine=engine)
    try:
        eventually(lambda: pool.status().ready == 1, seconds=60)
        assert pod_of(make(memory=210))["metadata"]["name"].startswith("om-kube-"), (
            "one of the node's kernel is its own"
        )
        assert pod_of(make(memory=210, runtime="gvisor"))["metadata"]["name"].startswith("om-pool-gvisor-")
    finally:
        pool.delete()
