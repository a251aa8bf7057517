"""What the cluster refuses, loses and takes away: each is told in one sentence, and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from openmodal._dual import run_sync
from openmodal._spec import Referenced, SandboxSpec
from openmodal.app import App
from openmodal.engines.kubernetes import Kubernetes
from openmodal.engines.kubernetes import pods as manifests
from openmodal.engines.kubernetes.admin import doctor, setup
from openmodal.engines.kubernetes.pods import name_of
from openmodal.engines.kubernetes.settings import read
from openmodal.engines.kubernetes.start import Start
from openmodal.errors import (
    EngineError,
    ImageError,
    RegistryError,
    SandboxNotRunningError,
    UnsupportedError,
)
from openmodal.image import Image
from openmodal.pool import Pool
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import Make, account, api, kubeconfig, pod_of, quota, settings


def test_an_image_that_cannot_be_pulled_is_told(make: Make, registry: str) -> None:
    with pytest.raises((ImageError, RegistryError), match="no-such-image"):
        make(image=Image.from_registry(f"{registry}/no-such-image:1"))


def test_an_image_that_only_the_nodes_miss_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    from openmodal.engines.kubernetes.images import Images

    missing = f"{registry}/openmodal@sha256:{'0' * 64}"
    monkeypatch.setattr(Images, "_as_it_is", lambda self, text: Referenced("x", reference=missing))
    with pytest.raises(ImageError, match=r"cannot pull .*0000.*check its name"):
        make(image=Image.from_registry("anything:1"))


def test_a_probe_of_the_network_whose_image_cannot_be_pulled_says_what_to_set(
    engine: Kubernetes, monkeypatch: pytest.MonkeyPatch, registry: str
) -> None:
    with settings(monkeypatch, probe_image=f"{registry}/no-such-image:1"):
        found = doctor.policies_enforced(api(), read(), seconds=4)
    assert not found.ok
    assert "cannot run" in found.text
    assert "no-such-image" in found.text
    assert found.text.endswith("set kubernetes.probe_image to one that the nodes can pull")


def test_a_pod_that_no_node_has_room_for_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        settings(monkeypatch, patience=6, overcommit=1),
        pytest.raises(EngineError, match=r"waited .* s for a node .*cpu.*kubernetes\.patience"),
    ):
        make(cpu=1000)


def test_blocking_the_network_is_refused_where_nobody_enforces_it(make: Make, engine: Kubernetes) -> None:
    assert "network_block" in engine.lacks
    with pytest.raises(EngineError, match="NetworkPolicies"):
        make(block_network=True)


def test_allow_lists_are_refused_where_nobody_enforces_them_and_those_of_domains_anyway(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError, match=r"allow lists need .*doctor --network"):
        make(outbound_cidr_allowlist=["203.0.113.0/24"])
    with settings(monkeypatch, network_policy="true"), pytest.raises(UnsupportedError, match="allow lists of domains"):
        make(outbound_domain_allowlist=["pypi.org"])


def test_a_gpu_that_no_node_has_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        settings(monkeypatch, patience=2),
        pytest.raises(EngineError, match=r"a node with nvidia\.com/gpu: 2, nvidia\.com/gpu\.product: A100 \("),
    ):
        make(gpu="A100:2")


def test_without_a_registry_the_remedy_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, image: Image) -> None:
    monkeypatch.delenv("OPENMODAL_REGISTRY")
    with pytest.raises(EngineError, match=r"OPENMODAL_REGISTRY=host/path"):
        make(image=image)


def test_a_namespace_that_is_not_there_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        settings(monkeypatch, namespace="om-nowhere"),
        pytest.raises(EngineError, match=r"om-nowhere.*setup kubernetes"),
    ):
        make()


def test_without_a_kubeconfig_the_remedy_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EngineError, match=r"no Kubernetes cluster is configured.*KUBECONFIG"):
        make()


def test_a_server_that_cannot_be_reached_is_named(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "x", "https://127.0.0.1:1"))
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1.* cannot be reached"):
        make()


def test_expired_credentials_are_told(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "expired"))
    with pytest.raises(EngineError, match="log in again"):
        make()


def test_who_has_no_rights_is_told_who_gives_them(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, namespace: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", account("nobody", namespace)))
    with pytest.raises(EngineError, match=r"cannot .* in the namespace.*setup kubernetes"):
        make()


def test_the_rights_of_setup_are_all_that_sandboxes_need(
    engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, namespace: str
) -> None:
    items = setup.manifests(read(), [f"serviceaccount:{namespace}/somebody"])
    policies = [item for item in items if item["kind"] != "Namespace"]
    for _ in range(2):  # it may be said again
        setup.apply(api(), policies)
    with monkeypatch.context() as as_somebody:
        as_somebody.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", account("somebody", namespace)))
        options: dict[str, Any] = {"app": App("kube"), "image": image, "engine": engine, "timeout": 100}
        with Sandbox.create(**options, name="named", memory=100) as sandbox:
            assert sandbox.exec("echo", "works").stdout.read() == "works\n"
            sandbox.set_tags({"a": "b"})
            assert [found.id for found in Sandbox.list(engine=engine, tags={"a": "b"})] == [sandbox.id]
        Pool.create("theirs", image=image, size=1, cpu=0.5, engine=engine).delete()
        assert engine.gc() == []


def test_a_full_quota_is_waited_for(make: Make) -> None:
    with ThreadPoolExecutor() as pool:
        with quota(0):
            waiting = pool.submit(make, memory=101)
            time.sleep(1)
            assert not waiting.done()
        assert waiting.result(60).exec("true").returncode == 0


@pytest.mark.timeout(400)
def test_a_sandbox_that_writes_more_than_its_disk_is_evicted_and_says_so(make: Make) -> None:
    sandbox = make(disk=16, timeout=300)
    with pytest.raises(SandboxNotRunningError, match=r"Evicted.*storage"):
        sandbox.exec("sh", "-c", "dd if=/dev/zero of=/root/big bs=1M count=64; sleep 300")
    assert sandbox.poll() == 137


def test_a_pod_that_is_evicted_for_the_nodes_sake_is_told_of(make: Make) -> None:
    """As `kubectl drain` does it."""
    sandbox = make()
    client, name = api(), pod_of(sandbox)["metadata"]["name"]
    body = {"kind": "Eviction", "metadata": {"name": name, "namespace": client.namespace}}
    with ThreadPoolExecutor() as pool:
        call = pool.submit(sandbox.exec, "sh", "-c", "touch /tmp/up; sleep 100")
        eventually(lambda: sandbox.filesystem.exists("/tmp/up"))
        client.create(client.pods(f"{name}/eviction"), {"apiVersion": eviction_api(), **body})
        with pytest.raises(SandboxNotRunningError):
            call.result(60)


def eviction_api() -> str:
    """The version that has evictions, of which servers know one or both."""
    return "policy/v1" if api().exists("/apis/policy/v1") else "policy/v1beta1"


@pytest.fixture
def lost(engine: Kubernetes, image: Image) -> Iterator[Sandbox]:
    """A sandbox on a node that nobody can reach: the API server has both, and there is neither."""
    client, node = api(), f"om-lost-{secrets.token_hex(4)}"
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    start = Start(client, read(), f"kube-{secrets.token_hex(4)}", SandboxSpec(app="kube", timeout=300), root)
    pod = manifests.manifest(start.name, {**start._shape, "nodeName": node}, 300)
    pod["metadata"] |= start._metadata()
    pod["metadata"]["annotations"] |= manifests.described(start.status(time.time()))
    running = {
        "name": "sandbox",
        "image": "",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {}},
    }
    client.create("/api/v1/nodes", {"metadata": {"name": node}, "spec": {"unschedulable": True}})
    try:
        endpoint = {"kubeletEndpoint": {"Port": 1}}
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
        client.patch(f"/api/v1/nodes/{node}/status", {"status": {"addresses": addresses, "daemonEndpoints": endpoint}})
        client.create(client.pods(), pod)
        client.patch(
            client.pods(f"{start.name}/status"), {"status": {"phase": "Running", "containerStatuses": [running]}}
        )
        yield Sandbox.from_id(start.id, engine=engine)
    finally:
        client.delete(client.pods(start.name), grace=0)
        client.delete(f"/api/v1/nodes/{node}")


def test_a_node_that_cannot_be_reached_is_told_of(lost: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmodal._agent._RECONNECT_SECONDS", 2.0)
    with pytest.raises(EngineError, match=r"does not answer \(.*127\.0\.0\.1:1.*\)"):
        lost.exec("true")
    assert lost.poll() is None, "the cluster has not given it up yet"


def test_what_the_cluster_gives_up_with_its_node_has_ended(lost: Sandbox) -> None:
    """It marks the pod as deleted; no kubelet is there to say that it is gone."""
    api().delete(api().pods(name_of(lost.id)))
    with pytest.raises(SandboxNotRunningError, match="its pod was deleted by somebody else"):
        lost.exec("true")
    assert lost.poll() == 137


def test_credentials_that_expire_while_a_sandbox_runs_are_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Kubernetes
) -> None:
    sandbox = make()
    with monkeypatch.context() as later:
        later.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "expired"))
        assert sandbox.exec("echo", "alive").stdout.read() == "alive\n", "its connection is open already"
        with pytest.raises(EngineError, match="log in again"):
            Sandbox(sandbox.id, engine).exec("true")
    assert sandbox.poll() is None


class Proxy:
    """A way to the API server that can be cut: everything open breaks, and nothing new is let through."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self._cut = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            sock.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._cut:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def test_a_command_goes_on_while_the_api_server_is_away(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when it is restarted: all connections break, and for some seconds there is nobody."""
    from lightkube.config.kubeconfig import KubeConfig

    given = KubeConfig.from_env().get()
    assert given
    server = urlsplit(given.cluster.server)
    assert server.hostname
    proxy = Proxy(server.hostname, server.port or 443)
    text = Path(os.environ["KUBECONFIG"]).read_text()
    (tmp_path / "config").write_text(text.replace(given.cluster.server, f"https://127.0.0.1:{proxy.port}"))
    if server.hostname != "127.0.0.1":
        proxy.close()
        pytest.skip("the API server's certificate is not for 127.0.0.1, where the proxy of this test is")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    try:
        sandbox = make()
        script = "echo started >> /tmp/starts; for i in 1 2 3 4 5 6; do echo $i; sleep 1; done"
        with ThreadPoolExecutor() as pool:
            call = pool.submit(sandbox.exec, "sh", "-c", script)
            eventually(lambda: sandbox.filesystem.exists("/tmp/starts"))
            proxy.cut()
            time.sleep(3)
            proxy.mend()
            process = call.result(60)
        assert process.stdout.read().split() == ["1", "2", "3", "4", "5", "6"]
        assert sandbox.filesystem.read_text("/tmp/starts") == "started\n", "it was started once"
        sandbox.terminate()
    finally:
        proxy.close()
