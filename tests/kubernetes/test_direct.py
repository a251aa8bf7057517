"""Clients in the cluster (`direct`): they connect to pods themselves. Here this machine is one, for it reaches the pods' addresses."""

from __future__ import annotations

import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from openmodal import _wire
from openmodal._dual import run_sync
from openmodal._spec import SandboxSpec
from openmodal.app import App
from openmodal.engines.kubernetes import Kubernetes, api, pods
from openmodal.engines.kubernetes.settings import read
from openmodal.engines.kubernetes.start import Start
from openmodal.errors import EngineError, SandboxNotRunningError
from openmodal.image import Image
from openmodal.pool import Pool
from openmodal.sandbox import Sandbox
from openmodal.testing import TestExecInput, TestLostLinks
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import eventually
from tests.kubernetes import cluster
from tests.kubernetes.cluster import Make, pod_of, settings
from tests.reuse import swept

__all__ = ["TestExecInput", "TestLostLinks"]  # what of the contract is about links, over direct ones


@pytest.fixture(scope="module", autouse=True)
def direct(engine: Kubernetes) -> Iterator[None]:
    """The setting is on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMODAL_KUBERNETES_DIRECT", "true")
        yield


@pytest.fixture(scope="module")
def shared(direct: None, engine: Kubernetes, image: Image) -> Iterator[Sandbox]:
    """One that was made with the setting. Where its address cannot be reached from here, that is no cluster for these tests."""
    with Sandbox.create(app=App("contract"), image=image, engine=engine, timeout=600) as sandbox:
        try:
            socket.create_connection(address(sandbox), 5).close()
        except OSError as error:
            pytest.skip(f"needs a cluster whose pods this machine reaches by their addresses ({error})")
        yield sandbox


@pytest.fixture
def near(shared: Sandbox) -> Sandbox:
    """It, as a process sees it that has not spoken to it."""
    return Sandbox.from_id(shared.id, engine=Kubernetes())


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the API server is asked to open a WebSocket for."""
    asked: list[str] = []
    upgrade = api.Api.upgrade

    def noted(self: api.Api, path: str, query: api.Query) -> Any:
        asked.append(path)
        return upgrade(self, path, query)

    monkeypatch.setattr(api.Api, "upgrade", noted)
    return asked


@pytest.fixture
def sandbox(near: Sandbox, face: Face, execs: list[str]) -> Iterator[Sandbox]:
    """It, without what another test has left in it. Nothing goes through the API server."""
    assert swept(near)
    yield face(near)
    assert execs == []


def address(sandbox: Sandbox) -> tuple[str, int]:
    return str(pod_of(sandbox)["status"]["podIP"]), pods.PORT


# ------------------------------------------------------------------------------ past the API server


def test_only_the_setup_goes_through_the_api_server(make: Make, execs: list[str], near: Sandbox) -> None:
    sandbox = make("sh", "-c", "read end; exit 3", memory=100, env={"KEY": "value"})
    assert len(execs) == 1
    data = random.Random(1).randbytes(2_000_000)
    with ThreadPoolExecutor() as threads:  # so they need more links than one
        calls = [threads.submit(sandbox.exec, "sh", "-c", "sleep 0.3; echo $KEY") for _ in range(4)]
        sandbox.filesystem.write_bytes("/srv/file", data)
        assert {call.result().stdout.read() for call in calls} == {"value\n"}
    assert sandbox.filesystem.read_bytes("/srv/file") == data
    process = sandbox.spawn("cat")
    process.stdin.write("live")
    process.stdin.close()
    assert process.stdout.read() == "live"
    assert Sandbox.from_id(sandbox.id, engine=Kubernetes()).exec("true").returncode == 0
    sandbox.terminate()
    assert near.exec("true").returncode == 0
    assert len(execs) == 1


def test_the_end_of_the_main_command_is_seen_at_once(make: Make, execs: list[str]) -> None:
    sandbox = make("sh", "-c", "sleep 2; echo last; exit 3", memory=100)
    assert sandbox.wait(timeout=600) == 3
    assert sandbox.stdout.read() == "last\n"
    assert len(execs) == 1, "it waited on a link of its own"


def test_a_wait_has_its_timeout(near: Sandbox, execs: list[str]) -> None:
    with pytest.raises(TimeoutError):
        near.wait(timeout=0.5)
    assert near.poll() is None
    assert execs == []


def test_a_pod_that_is_deleted_in_the_middle_of_a_command_is_told_of(make: Make) -> None:
    sandbox = make(memory=100)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(sandbox.exec, "sh", "-c", "touch /tmp/up; sleep 100")
        eventually(lambda: sandbox.filesystem.exists("/tmp/up"))
        cluster.api().delete(cluster.api().pods(pod_of(sandbox)["metadata"]["name"]))
        with pytest.raises(SandboxNotRunningError):
            call.result(60)


@pytest.mark.timeout(400)
def test_pods_of_a_pool_that_was_made_with_the_setting_are_reached_too(
    engine: Kubernetes, image: Image, make: Make, execs: list[str]
) -> None:
    pool = Pool.create("near", image=image, size=1, memory=127, engine=engine)
    try:
        eventually(lambda: pool.status().ready == 1, seconds=200)
        sandbox = make(memory=127)
        assert pod_of(sandbox)["metadata"]["name"].startswith("om-pool-near-")
        assert sandbox.exec("echo", "near").stdout.read() == "near\n"
        assert len(execs) == 1
    finally:
        pool.delete()


# ----------------------------------------------------------------------------- through it after all


def test_a_pod_that_was_made_without_the_setting_is_reached_through_the_api_server(
    make: Make, execs: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with settings(monkeypatch, direct="false"):
        sandbox = make()
    assert "ports" not in pod_of(sandbox)["spec"]["containers"][0]
    again = Sandbox.from_id(sandbox.id, engine=Kubernetes())
    assert again.exec("echo", "far").stdout.read() == "far\n"
    assert (len(execs), caplog.text) == (2, "")


def test_without_the_setting_a_pod_that_has_a_port_is_reached_through_the_api_server(
    near: Sandbox, execs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings(monkeypatch, direct="false"):
        assert near.exec("true").returncode == 0
    assert len(execs) == 1


def test_where_nothing_gets_through_the_api_server_is_used_and_that_is_said_once(
    make: Make, execs: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the agents of these pods, none listens for the network, though the pods say so."""
    made_of = pods.pod_spec

    def without_listening(*args: Any) -> dict[str, Any]:
        spec = made_of(*args)
        command = [word for word in spec["containers"][0]["command"] if word not in ("--port", str(pods.PORT))]
        return {**spec, "containers": [{**spec["containers"][0], "command": command}]}

    monkeypatch.setattr(pods, "pod_spec", without_listening)
    monkeypatch.setattr(cluster.api(), "out_of_reach", set())
    for number in (1, 2):
        sandbox = make(memory=100, engine=Kubernetes())
        assert sandbox.exec("echo", "works").stdout.read() == "works\n"
        assert len(execs) == 2 * number, "one for the setup, one for commands"
    said = [record for record in caplog.records if "cannot be reached directly" in record.getMessage()]
    assert len(said) == 1
    assert "refused" in said[0].getMessage()
    assert 'openmodal.dev/client: "true"' in said[0].getMessage()


def test_a_wrong_token_is_an_error_and_not_tried_elsewhere(make: Make, execs: list[str]) -> None:
    sandbox = make(memory=100)
    name = pod_of(sandbox)["metadata"]["name"]
    wrong = {"metadata": {"annotations": {f"{pods.DOMAIN}/token": "0" * 32}}}
    cluster.api().patch(cluster.api().pods(name), wrong)
    with pytest.raises(EngineError, match="does not accept us: wrong token"):
        Sandbox.from_id(sandbox.id, engine=Kubernetes()).exec("true")
    assert len(execs) == 1


# -------------------------------------------------------------------------------- who else is there


def test_what_runs_in_a_sandbox_reaches_its_own_port_and_is_let_in_by_nobody(near: Sandbox) -> None:
    """Who has the token is: that is the control."""
    where = address(near)
    token = pod_of(near)["metadata"]["annotations"][f"{pods.DOMAIN}/token"]
    for host in ("127.0.0.1", where[0]):
        answers = {
            given: near.exec("nc", "-w", "3", host, str(pods.PORT), stdin=_wire.auth(given), text=False, timeout=20)
            for given in ("", "wrong", token)
        }
        said = {given: process.stdout.read() for given, process in answers.items()}
        assert b"wrong token" in said[""]
        assert b"wrong token" in said["wrong"]
        assert said[token].endswith(_wire.frame(_wire.Kind.OK))


class Impostor:
    """A program at an address that was a pod's. It lets everybody in, and notes what it hears; before that it does what it is told to."""

    def __init__(self, before: Any) -> None:
        self.address = f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.heard = bytearray()
        self._before = before
        self._listener = socket.create_server((self.address, pods.PORT))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError), self._listener:
            client, _ = self._listener.accept()
            with client:
                client.settimeout(20)
                hello = _wire.frame(_wire.Kind.HELLO, (1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"1")
                client.sendall(hello)
                self.heard += client.recv(4096)
                self._before()
                client.sendall(_wire.frame(_wire.Kind.OK))
                self.heard += client.recv(65536)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@pytest.mark.parametrize("pod_is", ["there", "gone", "another"])
def test_an_address_that_is_somebody_elses_now_is_not_spoken_to(
    engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch, pod_is: str
) -> None:
    """While the pod is there it is taken for its agent, and hears what a command is: that is the control."""
    monkeypatch.setattr("openmodal._agent._RECONNECT_SECONDS", 1.0)
    client = cluster.api()
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    start = Start(client, read(), f"kube-{secrets.token_hex(4)}", SandboxSpec(app="kube", timeout=300), root)
    manifest = pods.manifest(start.name, {**start._shape, "nodeName": "om-none"}, 300)
    manifest["metadata"] |= start._metadata()
    manifest["metadata"]["annotations"] |= pods.described(start.status(time.time()))

    def delete() -> None:
        if pod_is != "there":
            client.delete(client.pods(start.name), grace=0)
        if pod_is == "another":
            place()

    def place() -> None:
        client.create(client.pods(), manifest)
        status = {"phase": "Running", "podIP": impostor.address, "podIPs": [{"ip": impostor.address}]}
        client.patch(client.pods(f"{start.name}/status"), {"status": status})

    impostor = Impostor(delete)
    try:
        place()
        with pytest.raises((EngineError, SandboxNotRunningError)):
            Sandbox.from_id(start.id, engine=Kubernetes()).exec("echo", "the-secret")
    finally:
        impostor.close()
        client.delete(client.pods(start.name), grace=0)
    assert impostor.heard.startswith(_wire.auth(start.token))
    assert (b"the-secret" in impostor.heard) == (pod_is == "there")
    assert len(impostor.heard) == len(_wire.auth(start.token)) or pod_is == "there"
