"""What the Kubernetes engine does by itself: pods, names, pools, failures. The contract is in test_contract.py."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from openmodal import _wire
from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.kubernetes import Kubernetes, setup
from openmodal.engines.kubernetes.pods import DOMAIN, name_of
from openmodal.engines.kubernetes.settings import read
from openmodal.errors import (
    EngineError,
    ImageError,
    InvalidError,
    NotFoundError,
    RegistryError,
    SandboxNotRunningError,
    SandboxTerminatedError,
)
from openmodal.image import Image
from openmodal.pool import Pool
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.fixtures import eventually
from tests.kubernetes.cluster import api

Make = Callable[..., Sandbox]


@pytest.fixture
def make(engine: Kubernetes, image: Image) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(*args: str, **options: Any) -> Sandbox:
        given: dict[str, Any] = {"app": App("kube"), "image": image, "engine": engine, "timeout": 100, **options}
        made.append(Sandbox.create(*args, **given))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.terminate()


def pod_of(sandbox: Sandbox) -> dict[str, Any]:
    client = api()
    found = client.get(client.pods(), labelSelector=f"{DOMAIN}/id={name_of(sandbox.id)}")["items"]
    assert len(found) == 1
    return dict(found[0])


@contextmanager
def settings(monkeypatch: pytest.MonkeyPatch, **values: object) -> Iterator[None]:
    with monkeypatch.context() as changed:
        for name, value in values.items():
            changed.setenv(f"OPENMODAL_KUBERNETES_{name.upper()}", str(value))
        yield


# ------------------------------------------------------------------------------------------------------------ pods


def test_a_sandbox_outside_of_a_pool_is_a_pod_of_its_own_name(make: Make) -> None:
    sandbox = make(memory=100)
    pod = pod_of(sandbox)
    assert pod["metadata"]["name"] == name_of(sandbox.id)
    assert pod["spec"]["activeDeadlineSeconds"] > 100
    assert sandbox.exec("true").returncode == 0


def test_secrets_are_in_no_object_of_the_cluster(make: Make) -> None:
    sandbox = make(secrets=[Secret.from_dict({"KEY": "canary-4711"})], env={"OTHER": "canary-4712"}, memory=100)
    assert sandbox.exec("sh", "-c", "echo $KEY $OTHER").stdout.read() == "canary-4711 canary-4712\n", "the control"
    client = api()
    for kind in ("pods", "configmaps", "secrets", "events"):
        assert "canary" not in json.dumps(client.get(client.path(kind)))


def test_a_sandbox_has_no_rights_in_the_cluster(make: Make) -> None:
    sandbox = make()
    assert not sandbox.filesystem.exists("/var/run/secrets/kubernetes.io")
    assert "KUBERNETES" not in sandbox.exec("env").stdout.read()


def test_the_agent_is_the_same_for_everybody_and_made_once(make: Make) -> None:
    for _ in range(2):
        make()
    client = api()
    maps = client.get(client.path("configmaps"), labelSelector=f"{DOMAIN}/part=agent")["items"]
    assert len(maps) == 1
    assert maps[0]["immutable"]


# ---------------------------------------------------------------------------------- who may speak for the sandbox

LISTEN = "nc -l -p 1 local:@openmodal"  # busybox has no abstract sockets; the test asks with the agent's own `dial`


def test_what_runs_in_a_sandbox_cannot_speak_to_its_agent(make: Make) -> None:
    sandbox = make()
    shutdown = _wire.frame(_wire.Kind.SHUTDOWN)
    asked = sandbox.exec("/.openmodal/openmodal-agent", "dial", "@openmodal", stdin=shutdown, text=False, timeout=20)
    answer = asked.stdout.read()
    assert b"wants a token first" in answer
    assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"


def test_who_knows_the_token_can_so_the_token_is_what_is_missed(make: Make) -> None:
    """The negative control of the test above."""
    sandbox = make()
    token = pod_of(sandbox)["metadata"]["annotations"][f"{DOMAIN}/token"]
    request = _wire.auth(token) + _wire.frame(_wire.Kind.PING)
    asked = sandbox.exec("/.openmodal/openmodal-agent", "dial", "@openmodal", stdin=request, text=False, timeout=20)
    assert asked.stdout.read().count(_wire.frame(_wire.Kind.OK)) == 2


def test_the_token_is_nowhere_in_the_sandbox(make: Make) -> None:
    sandbox = make()
    token = pod_of(sandbox)["metadata"]["annotations"][f"{DOMAIN}/token"]
    script = (
        'for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr "\\0" "\\n" < $f; done 2>/dev/null | grep -c "$1"'
    )
    assert sandbox.exec("sh", "-c", script, "sh", token[:-4] + "[" + token[-4] + "]").stdout.read() == "0\n"
    assert sandbox.exec("cat", "/proc/1/environ").returncode != 0


def test_the_agents_name_cannot_be_taken_while_it_lives(make: Make) -> None:
    sandbox = make()
    again = sandbox.exec("/.openmodal/openmodal-agent", "init", "--listen", "@openmodal", timeout=20)
    assert again.returncode == 2
    assert "in use" in again.stderr.read().lower()
    other = sandbox.spawn("/.openmodal/openmodal-agent", "init", "--listen", "@another")
    eventually(lambda: "@another" in sandbox.exec("cat", "/proc/net/unix").stdout.read())
    other.kill()


def test_the_agent_cannot_be_traced_or_looked_into(make: Make) -> None:
    sandbox = make()
    for path in ("/proc/1/mem", "/proc/1/fd/0", "/proc/1/root/etc"):
        assert sandbox.exec("ls", "-l", path + "/").returncode != 0 or sandbox.exec("head", "-c1", path).returncode != 0


# ---------------------------------------------------------------------------------------------------------- ends


def test_a_pod_that_somebody_deletes_is_told_of(make: Make) -> None:
    sandbox = make()
    client = api()
    client.delete(client.pods(pod_of(sandbox)["metadata"]["name"]), grace=0)
    with pytest.raises(SandboxNotRunningError, match=r"does not exist|deleted|terminated"):
        sandbox.exec("sleep", "30")


def test_a_pod_that_is_deleted_in_the_middle_of_a_command_is_told_of(make: Make) -> None:
    sandbox = make()
    client = api()
    name = pod_of(sandbox)["metadata"]["name"]
    with ThreadPoolExecutor() as pool:
        call = pool.submit(sandbox.exec, "sh", "-c", "touch /tmp/up; sleep 100")
        eventually(lambda: sandbox.filesystem.exists("/tmp/up"))
        client.delete(client.pods(name))
        with pytest.raises(SandboxNotRunningError):
            call.result(60)


def test_gc_removes_sandboxes_whose_end_nobody_saw(make: Make, engine: Kubernetes) -> None:
    sandbox = make(timeout=1, memory=100)
    eventually(lambda: sandbox.id in " ".join(engine.gc(check=True)), seconds=60)
    assert f"sandbox {sandbox.id}" in engine.gc()
    assert sandbox.poll() == 124
    assert f"sandbox {sandbox.id}" not in engine.gc(check=True)


def test_a_pod_whose_maker_died_before_it_was_ready_is_no_sandbox(engine: Kubernetes, image: Image) -> None:
    from openmodal._spec import SandboxSpec
    from openmodal.engines.kubernetes.start import Start

    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    half = Start(api(), read(), "kube-0badcafe", SandboxSpec(app="kube", timeout=1, name=""), root)
    try:
        run_sync(half.pod())
        assert "kube-0badcafe" not in {status.id for status in run_sync(engine.list())}
    finally:
        api().delete(api().pods(half.name), grace=0)


# ------------------------------------------------------------------------------------------------------- failures


def test_an_image_that_cannot_be_pulled_is_told(make: Make, registry: str) -> None:
    with pytest.raises((ImageError, RegistryError), match="no-such-image"):
        make(image=Image.from_registry(f"{registry}/no-such-image:1"))


def test_an_image_that_only_the_nodes_miss_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    from openmodal._spec import Root
    from openmodal.engines.kubernetes.images import Images

    missing = f"{registry}/openmodal@sha256:{'0' * 64}"
    monkeypatch.setattr(Images, "_as_it_is", lambda self, text: Root(key="x", layers=(missing,)))
    with pytest.raises(ImageError, match=r"cannot pull .*0000.*check its name"):
        make(image=Image.from_registry("anything:1"))


def test_a_pod_that_no_node_has_room_for_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        settings(monkeypatch, patience=3, overcommit=1),
        pytest.raises(EngineError, match=r"in vain for a node .*cpu.*kubernetes\.patience"),
    ):
        make(cpu=1000)


def test_blocking_the_network_is_refused_where_nobody_enforces_it(make: Make, engine: Kubernetes) -> None:
    assert "network_block" in engine.lacks
    with pytest.raises(EngineError, match="NetworkPolicies"):
        make(block_network=True)


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


def kubeconfig(path: Path, token: str, server: str = "") -> str:
    """The same cluster as somebody else, who has only a token."""
    from lightkube.config.kubeconfig import KubeConfig

    given = KubeConfig.from_env().get()
    assert given
    cluster = {"server": server or given.cluster.server}
    if given.cluster.certificate_auth_data:
        cluster["certificate-authority-data"] = given.cluster.certificate_auth_data
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": cluster}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


def test_a_server_that_cannot_be_reached_is_named(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "x", "https://127.0.0.1:1"))
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1.* cannot be reached"):
        make()


def test_expired_credentials_are_told(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", "expired"))
    with pytest.raises(EngineError, match="log in again"):
        make()


def account(name: str, namespace: str) -> str:
    """A new service account's token."""
    client = api()
    client.create(client.path("serviceaccounts"), {"metadata": {"name": name}})
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    return str(client.create(client.path("serviceaccounts", f"{name}/token"), body)["status"]["token"])


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
    client = api()
    used = len(client.get(client.pods())["items"])
    quota = {"metadata": {"name": "full"}, "spec": {"hard": {"count/configmaps": "1000", "pods": str(used)}}}
    first = make(memory=100)
    client.create(client.path("resourcequotas"), quota)
    try:
        eventually(lambda: client.get(client.path("resourcequotas", "full")).get("status", {}).get("hard"))
        with ThreadPoolExecutor() as pool:
            second = pool.submit(make, memory=101)
            time.sleep(1)
            assert not second.done()
            first.terminate()
            client.delete(client.path("resourcequotas", "full"))
            assert second.result(60).exec("true").returncode == 0
    finally:
        client.delete(client.path("resourcequotas", "full"))


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


# ---------------------------------------------------------------------------------------------------------- pools


@pytest.fixture
def small_pool(engine: Kubernetes, image: Image) -> Iterator[Pool]:
    pool = Pool.create("small", image=image, size=3, memory=123, engine=engine)
    yield pool
    pool.delete()


def waiting(name: str) -> list[dict[str, Any]]:
    client = api()
    return list(client.get(client.pods(), labelSelector=f"{DOMAIN}/pool={name},{DOMAIN}/warm=true")["items"])


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


# ---------------------------------------------------------------------------------------------------------- images


def test_an_image_of_a_registry_is_used_as_it_is(make: Make, engine: Kubernetes, image: Image) -> None:
    pushed = run_sync(engine.prepare(image.recipe, lambda news: None)).layers[0]
    sandbox = make(image=Image.from_registry(pushed))
    assert pod_of(sandbox)["spec"]["containers"][0]["image"] == pushed
    assert sandbox.exec("sh", "-c", "pwd; echo $FROM_IMAGE").stdout.read() == "/srv\nimage\n"


def test_what_was_pushed_is_not_pushed_again(engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    from openmodal.build.push import Pusher

    first = run_sync(engine.prepare(image.recipe, lambda news: None))
    monkeypatch.setattr(Pusher, "image", lambda *unused: pytest.fail("pushed again"))
    assert run_sync(engine.prepare(image.recipe, lambda news: None)) == first


@pytest.mark.skipif(
    "KUBE_UP" not in os.environ and not Path("/var/tmp/kube").exists(), reason="needs a cluster that may be disturbed"
)
@pytest.mark.timeout(400)
def test_many_at_once(make: Make) -> None:
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda n: make(memory=70 + n % 2), range(12)))
        outputs = list(pool.map(lambda sandbox: sandbox.exec("hostname").stdout.read(), made))
    assert len(set(outputs)) == 12
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda sandbox: sandbox.terminate(), made))
    with pytest.raises(SandboxTerminatedError):
        made[0].exec("true")
