"""What the Kubernetes engine does by itself: pods and images. The contract is in test_contract.py."""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmodal import _wire
from openmodal._dual import run_sync
from openmodal._spec import Recipe, Referenced, SandboxSpec, Snapshot
from openmodal.engines.kubernetes import Kubernetes, kept, policies
from openmodal.engines.kubernetes.admin import doctor, serving, setup
from openmodal.engines.kubernetes.pods import DOMAIN, name_of
from openmodal.engines.kubernetes.settings import read
from openmodal.engines.kubernetes.start import Start
from openmodal.engines.posture import KEPT
from openmodal.errors import NotFoundError, SandboxNotRunningError, SandboxTerminatedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.fixtures import eventually
from tests.cli.conftest import CommandLine
from tests.kubernetes.cluster import Make, api, pod_of, pods, quota, settings

# --------------------------------------------------------------------------------------------- pods


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


# -------------------------------------------------------------------- who may speak for the sandbox

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


# --------------------------------------------------------------------------------------------- ends


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


def test_gc_removes_what_a_killed_probe_left(engine: Kubernetes, image: Image) -> None:
    client, pushed = api(), run_sync(engine.prepare(image.recipe, lambda news: None)).reference
    label = {policies.PROBE: "x"}
    spec = {"restartPolicy": "Never", "containers": [{"name": "x", "image": pushed, "command": ["true"]}]}
    client.create(client.pods(), {"metadata": {"name": "om-probe-x", "labels": label}, "spec": spec})
    eventually(lambda: "pod om-probe-x" in engine.gc(check=True), seconds=60)
    assert "pod om-probe-x" in engine.gc()
    assert engine.gc(check=True) == []


def test_a_pod_whose_maker_died_before_it_was_ready_is_no_sandbox(engine: Kubernetes, image: Image) -> None:

    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    half = Start(api(), read(), "kube-0badcafe", SandboxSpec(app="kube", timeout=1, name=""), root)
    try:
        run_sync(half.pod())
        assert "kube-0badcafe" not in {status.id for status in run_sync(engine.list())}
    finally:
        api().delete(api().pods(half.name), grace=0)


def test_what_a_run_of_the_command_line_leaves_ends_with_it(engine: Kubernetes, image: Image, tmp_path: Path) -> None:
    reference = run_sync(engine.prepare(image.recipe, lambda news: None)).reference
    openmodal = CommandLine(tmp_path, tmp_path)
    program = openmodal.program(f"image = openmodal.Image.from_registry({reference!r})\nprint(create().id)\n")
    done = openmodal.run("--engine", "kubernetes", "run", program)
    assert (done.returncode, done.stdout.startswith("cli-")) == (0, True), done.stderr
    assert "Error" not in done.stderr
    assert done.stdout.strip() not in [sandbox.id for sandbox in Sandbox.list(engine=engine)]


# ------------------------------------------------------------------------------------------- images


def test_an_image_of_a_registry_is_used_as_it_is(make: Make, engine: Kubernetes, image: Image) -> None:
    pushed = run_sync(engine.prepare(image.recipe, lambda news: None)).reference
    sandbox = make(image=Image.from_registry(pushed))
    assert pod_of(sandbox)["spec"]["containers"][0]["image"] == pushed
    assert sandbox.exec("sh", "-c", "pwd; echo $FROM_IMAGE").stdout.read() == "/srv\nimage\n"


def test_what_was_pushed_is_not_pushed_again(engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    from openmodal.build.push import Pusher

    first = run_sync(engine.prepare(image.recipe, lambda news: None))
    monkeypatch.setattr(Pusher, "image", lambda *unused: pytest.fail("pushed again"))
    assert run_sync(engine.prepare(image.recipe, lambda news: None)) == first


@pytest.mark.timeout(500)
def test_a_hundred_at_once_wait_for_room_and_all_run(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The quota is what `openmodal setup kubernetes --most N` makes; a node takes 110 pods."""
    lives: list[str] = []

    def live(number: int) -> None:
        sandbox = make(memory=64 + number % 2, cpu=0.1)
        lives.append(sandbox.exec("hostname").stdout.read())
        sandbox.terminate()

    with quota(len(pods()) + 40), ThreadPoolExecutor(100) as threads:
        list(threads.map(live, range(100)))
    assert len(set(lives)) == 100
    assert "waits for room in the quota" in caplog.text


# ------------------------------------------------------------------------------------ what holds it


def test_info_tells_what_the_kernel_and_the_kubelet_hold(make: Make) -> None:
    sandbox = make(memory=256, cpu=0.5, disk=300)
    info = sandbox.info()
    assert (info.memory, info.cpu, info.disk, info.network) == (256, 0.5, 300, "outbound")
    assert (info.no_new_privileges, info.seccomp, info.degraded) == (True, True, ())
    assert {name.upper() for name in info.capabilities} == set(KEPT)
    assert sandbox.exec("true").returncode == 0
    sandbox.terminate()
    with pytest.raises(SandboxTerminatedError):
        sandbox.info()


def test_a_list_of_networks_is_a_policy_of_the_sandbox_alone_and_goes_with_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings(monkeypatch, network_policy="true"):
        sandbox = make(outbound_cidr_allowlist=["203.0.113.0/24"])
    pod, client = pod_of(sandbox), api()
    path = client.path("networkpolicies", pod["metadata"]["name"], group=policies.GROUP)
    spec = client.get(path)["spec"]
    assert spec["podSelector"]["matchLabels"] == {f"{DOMAIN}/id": pod["metadata"]["labels"][f"{DOMAIN}/id"]}
    assert spec["egress"] == [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"protocol": "TCP"}]}]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert pod["metadata"]["labels"][f"{DOMAIN}/network"] == "listed", (
        "which the policy of the internet does not select"
    )
    sandbox.terminate()
    client.delete(client.pods(pod["metadata"]["name"]), grace=0)  # this cluster's kubelet takes its time
    eventually(lambda: not client.exists(path), seconds=60)


def test_a_cluster_that_enforces_no_policies_is_known_by_trying(
    engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the test cluster's bridge plug-in that is the truth. One that enforces them says so, and `network_policy` is then true."""
    pushed = run_sync(engine.prepare(image.recipe, lambda news: None)).reference
    with settings(monkeypatch, probe_image=pushed):
        found = doctor.policies_enforced(api(), read(), seconds=4)
    assert found.ok == read().network_policy
    assert found.ok or "NetworkPolicies are not enforced: a pod went on reaching" in found.line


def test_a_snapshot_goes_when_it_has_expired_and_a_published_image_stays(engine: Kubernetes) -> None:
    brief, image = secrets.token_hex(32), Referenced("k", reference="host/name@sha256:" + "0" * 64)
    kept.keep(api(), read(), brief, image, time.time() - 1)
    named = run_sync(engine.publish("stays", image))
    try:
        assert engine.gc(check=True) == [f"snapshot {brief[:12]}"] == engine.gc()
        assert run_sync(engine.prepare(Recipe((Snapshot(named),)), lambda news: None)) == image
        with pytest.raises(NotFoundError, match="has expired"):
            run_sync(engine.prepare(Recipe((Snapshot(brief),)), lambda news: None))
    finally:
        assert run_sync(engine.unpublish("stays"))
    assert not run_sync(engine.unpublish("stays"))


def test_the_api_server_takes_the_objects_of_a_door(engine: Kubernetes, namespace: str) -> None:
    for item in serving.manifests(read(), "host/openmodal:1", "host/images"):
        path = setup.path(api(), item)
        made = api().request("POST", path, item, {"dryRun": "All"})
        assert made["metadata"]["namespace"] == namespace


def test_what_is_set_up_again_keeps_its_token(engine: Kubernetes) -> None:
    token = [item for item in serving.manifests(read(), "x", "") if item["kind"] == "Secret"]
    try:
        assert setup.apply(api(), token) == ["Secret openmodal-serve: made"]
        said = serving.words(api())
        other = [item for item in serving.manifests(read(), "x", "") if item["kind"] == "Secret"]
        assert setup.apply(api(), other) == ["Secret openmodal-serve: kept"]
        assert serving.words(api()) == said
    finally:
        api().delete(api().path("secrets", serving.NAME))
