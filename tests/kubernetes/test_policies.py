"""What our NetworkPolicies mean to packets, where somebody enforces them: the cluster, or the
tests' own judge (enforcer.py).

The contract's promises that need them run here, then attacks. Each attack is shown to succeed where
the policies are not there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.kubernetes import Kubernetes, policies
from openmodal.engines.kubernetes.admin import doctor, probe, setup
from openmodal.engines.kubernetes.pods import DOMAIN, PORT
from openmodal.engines.kubernetes.settings import read
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing import limits
from openmodal.testing.egress import TestAllowLists
from openmodal.testing.fixtures import Create, creating, eventually
from openmodal.testing.limits import TestNetwork, own_addresses
from tests.embedded.internet import ECHO, METADATA, OTHER, PRIVATE, PUBLIC, Internet, internet
from tests.kubernetes.cluster import Make, api, pod_of, pods_are_here, settings, waiting
from tests.kubernetes.enforcer import Judge, enforcing

__all__ = ["TestAllowLists", "TestNetwork"]

pytestmark = pytest.mark.timeout(300)

OPEN, NAMES = 7777, 53
"""Ports of servers in pods."""

Settle = Callable[[], None]


# -------------------------------------------------------------------------------- who enforces them


@pytest.fixture(scope="module")
def other_namespace(namespace: str) -> Iterator[str]:
    """One in which nothing is forbidden."""
    name = f"{namespace}-other"
    api().create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    api().delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module", autouse=True)
def enforced(judge: Judge | None) -> Iterator[Settle]:
    """Somebody enforces policies, and those of `openmodal setup kubernetes` are there. Calling it waits until what was changed holds."""
    settle = judge.settle if judge else lambda: time.sleep(5)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENMODAL_KUBERNETES_NETWORK_POLICY", "true")
        # This machine is the node, and not every machine's address is private.
        environment.setenv("OPENMODAL_KUBERNETES_INSIDE", ",".join(f"{address}/32" for address in own_addresses()))
        put(settle)
        yield settle
        take_away(settle)


@pytest.fixture(scope="module")
def judge(namespace: str, other_namespace: str, engine: Kubernetes, image: Image) -> Iterator[Judge | None]:
    """Who enforces policies where the pods are on this machine; None: the cluster itself."""
    if pods_are_here():
        if not shutil.which("nft"):
            pytest.skip("nobody here enforces NetworkPolicies: needs nft (Debian's package nftables)")
        with enforcing(api(), [namespace, other_namespace]) as judge:
            yield judge
        return
    with pytest.MonkeyPatch.context() as environment, settings(environment, probe_image=pushed(engine, image)):
        if not probe.enforced(api(), read(), seconds=10).enforced:
            pytest.skip("the cluster does not enforce NetworkPolicies, and its nodes are not this machine")
    yield None


def ours() -> list[dict[str, Any]]:
    """The policies of `openmodal setup kubernetes`."""
    return [item for item in setup.manifests(read()) if item["kind"] == "NetworkPolicy"]


def put(settle: Settle) -> None:
    setup.apply(api(), ours())
    settle()


def take_away(settle: Settle) -> None:
    for item in ours():
        delete_policy(item["metadata"]["name"])
    settle()


def delete_policy(name: str) -> None:
    assert api().delete(api().path("networkpolicies", name, group=policies.GROUP))


def pushed(engine: Kubernetes, image: Image) -> str:
    return run_sync(engine.prepare(image.recipe, lambda news: None)).reference


@pytest.fixture
def create(create: Create, enforced: Settle) -> Create:
    """A plug-in may know a pod before it starts, the judge only when the API server does."""

    def settled(*arguments: str, **options: object) -> Sandbox:
        sandbox = create(*arguments, **options)
        enforced()
        return sandbox

    return settled


# -------------------------------------------------------------------------------------- the attacks


def test_a_cluster_that_enforces_policies_is_known_by_trying(
    enforced: Settle, engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control is in test_engine.py: the same cluster without anybody who enforces policies."""
    with settings(monkeypatch, probe_image=pushed(engine, image)):
        found = doctor.policies_enforced(api(), read())
    assert (found.ok, found.text) == (True, "NetworkPolicies are enforced")


def test_a_plug_in_that_spares_the_own_node_is_known_by_trying(
    judge: Judge | None, engine: Kubernetes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes lets it; `block_network` then leaves more than was promised."""
    if not judge:
        pytest.skip("needs the tests' judge")
    with judge.sparing_nodes(), settings(monkeypatch, probe_image=pushed(engine, image)):
        found = doctor.policies_enforced(api(), read(), seconds=4)
    assert not found.ok
    assert "NetworkPolicies are enforced, but a pod goes on reaching its own node" in found.text


class TestInfo:
    test_info_tells_that_the_network_is_blocked = limits.TestLimits.test_info_tells_that_the_network_is_blocked


@pytest.fixture(scope="module")
def shared(engine: Kubernetes, image: Image, enforced: Settle) -> Iterator[Make]:
    with creating(app=App("policies"), image=image, engine=engine, timeout=300) as create:
        yield create


@pytest.fixture(scope="module")
def usual(shared: Make) -> Sandbox:
    """A sandbox as it is without any argument, with servers."""
    return serving(shared())


@pytest.fixture(scope="module")
def blocked(shared: Make) -> Sandbox:
    return shared(block_network=True)


@contextmanager
def elsewhere(namespace: str) -> Iterator[None]:
    """Calls of sandboxes are of those in that namespace."""
    with pytest.MonkeyPatch.context() as environment, settings(environment, namespace=namespace):
        yield


class Neighbour:
    """A pod that no policy is about, in another namespace, with servers."""

    def __init__(self, sandbox: Sandbox, namespace: str) -> None:
        self._sandbox = sandbox
        self._namespace = namespace
        with elsewhere(namespace):
            self.address: str = pod_of(sandbox)["status"]["podIP"]

    def reached(self, *targets: str) -> set[str]:
        with elsewhere(self._namespace):
            return reached(self._sandbox, *targets)

    def label(self, key: str, value: str | None) -> None:
        with elsewhere(self._namespace):
            name = pod_of(self._sandbox)["metadata"]["name"]
            api().patch(api().pods(name), {"metadata": {"labels": {key: value}}})

    def sends(self, *targets: str) -> None:
        with elsewhere(self._namespace):
            sends(self._sandbox, *targets)

    def received(self) -> int:
        with elsewhere(self._namespace):
            return received(self._sandbox)


@pytest.fixture(scope="module")
def neighbour(other_namespace: str, engine: Kubernetes, image: Image, enforced: Settle) -> Iterator[Neighbour]:
    with elsewhere(other_namespace):
        sandbox = serving(Sandbox.create(app=App("other"), image=image, engine=engine, timeout=300))
    yield Neighbour(sandbox, other_namespace)
    with elsewhere(other_namespace):
        sandbox.terminate()


def serving(sandbox: Sandbox) -> Sandbox:
    for port in (OPEN, NAMES):
        sandbox.spawn("httpd", "-f", "-p", str(port), "-h", "/etc")
    eventually(lambda: len(reached(sandbox, f"127.0.0.1:{OPEN}", f"127.0.0.1:{NAMES}")) == 2)
    return sandbox


def reached(sandbox: Sandbox, *targets: str) -> set[str]:
    """Which of these ("address:port") take a connection of TCP."""
    script = "for t; do (timeout 5 nc ${t%:*} ${t##*:} </dev/null >/dev/null 2>&1 && echo $t) & done; wait"
    return set(sandbox.exec("sh", "-c", script, "sh", *targets).stdout.read().split())


def sends(sandbox: Sandbox, *targets: str) -> None:
    """A datagram of UDP to each of these."""
    script = "for t; do timeout 1 nslookup -type=a sent.example $t & done >/dev/null 2>&1; wait"
    sandbox.exec("sh", "-c", script, "sh", *targets)


def received(sandbox: Sandbox) -> int:
    """How many datagrams of UDP have come in, whether or not somebody listened."""
    lines = sandbox.filesystem.read_text("/proc/net/snmp").splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    counted = dict(zip(names, values, strict=True))
    return int(counted["InDatagrams"]) + int(counted["NoPorts"])


def attacks(usual: Sandbox, blocked: Sandbox, neighbour: Neighbour) -> set[str]:
    """What gets through of what must not."""
    home, other = pod_of(usual)["status"]["podIP"], neighbour.address
    server = api().get("/api/v1/namespaces/default/services/kubernetes")["spec"]["clusterIP"]
    found = {"out to the API server"} if limits.connects(usual, server, 443) else set()
    found |= {f"out to {target}" for target in reached(usual, f"{other}:{OPEN}")}
    inside = (f"{other}:{OPEN}", f"{other}:{NAMES}", f"{home}:{OPEN}")
    found |= {f"blocked to {target}" for target in reached(blocked, *inside)}
    found |= {f"in to {target}" for target in neighbour.reached(f"{home}:{OPEN}", f"{home}:{NAMES}")}
    for name, into, attempt in (
        ("UDP out", neighbour.received, lambda: sends(usual, f"{other}:{OPEN}")),
        ("UDP out of blocked", neighbour.received, lambda: sends(blocked, f"{other}:{NAMES}")),
        ("UDP to another sandbox", lambda: received(usual), lambda: sends(blocked, f"{home}:{OPEN}")),
        ("UDP in", lambda: received(usual), lambda: neighbour.sends(f"{home}:{OPEN}", f"{home}:{NAMES}")),
    ):
        before = into()
        attempt()
        found |= {name} if into() > before else set()
    return found


def test_nothing_inside_is_reached_and_nothing_comes_in(
    enforced: Settle, usual: Sandbox, blocked: Sandbox, neighbour: Neighbour
) -> None:
    enforced()
    assert attacks(usual, blocked, neighbour) == set()


def test_of_what_is_inside_only_name_servers_are_reached(usual: Sandbox, neighbour: Neighbour) -> None:
    targets = [f"{neighbour.address}:{port}" for port in (NAMES, OPEN)]
    assert reached(usual, *targets) == {targets[0]}
    before = neighbour.received()
    sends(usual, targets[1])
    assert neighbour.received() == before
    while neighbour.received() == before:
        sends(usual, targets[0])


def test_without_the_policies_all_of_that_gets_through(
    enforced: Settle, usual: Sandbox, blocked: Sandbox, neighbour: Neighbour
) -> None:
    """The negative control of the tests above."""
    take_away(enforced)
    try:
        eventually(lambda: len(attacks(usual, blocked, neighbour)) == 2 + 3 + 2 + 4, seconds=60)
    finally:
        put(enforced)


def test_a_blocked_sandbox_was_never_a_pod_that_waited_in_a_pool(
    engine: Kubernetes, blocked: Sandbox, make: Make
) -> None:
    """Those have the internet already; one that is blocked, or has a list, is selected as that from its pod's first moment on."""
    eventually(lambda: any(pod["status"]["phase"] == "Running" for pod in waiting("tests")), seconds=60)
    assert {pod["metadata"]["labels"][f"{DOMAIN}/network"] for pod in waiting("tests")} == {"internet"}
    assert "om-pool" not in pod_of(blocked)["metadata"]["name"]
    assert "om-pool" in pod_of(make())["metadata"]["name"], "the control: one of the same shape is taken from there"


def test_the_port_of_direct_links_is_reached_by_clients_and_nobody_else(
    enforced: Settle, make: Make, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings(monkeypatch, direct=True):
        sandbox = serving(make(block_network=True))
        put(enforced)
    home = pod_of(sandbox)["status"]["podIP"]
    targets = f"{home}:{PORT}", f"{home}:{OPEN}"
    assert neighbour.reached(*targets) == set()
    neighbour.label(policies.CLIENT, "true")
    enforced()
    assert neighbour.reached(*targets) == {targets[0]}
    assert reached(sandbox, f"{neighbour.address}:{OPEN}") == set()
    put(enforced)
    assert neighbour.reached(*targets) == set(), "without the setting, `setup` closes what it has opened"
    neighbour.label(policies.CLIENT, None)


# -------------------------------------------------------------------------------- lists of networks


@pytest.fixture(scope="class")
def world(tmp_path_factory: pytest.TempPathFactory, enforced: Settle) -> Iterator[Internet]:
    if not pods_are_here():
        pytest.skip("needs pods on this machine, which the tests' own internet is beside")
    with internet(tmp_path_factory.mktemp("internet")) as found:
        yield found


@pytest.fixture(scope="class")
def listed(shared: Make) -> Sandbox:
    return shared(outbound_cidr_allowlist=[f"{PUBLIC}/32", f"{PRIVATE}/32", f"{METADATA}/32", "169.254.0.0/16"])


@pytest.fixture(scope="class")
def wide(shared: Make) -> Sandbox:
    return shared(outbound_cidr_allowlist=["0.0.0.0/0"])


class TestLists:
    """Against an internet of the tests' own, beside this machine."""

    def test_the_listed_networks_are_reached_and_no_other(
        self, world: Internet, listed: Sandbox, enforced: Settle
    ) -> None:
        enforced()
        targets = [f"{address}:{ECHO}" for address in (PUBLIC, OTHER, PRIVATE, METADATA)]
        assert reached(listed, *targets) == {f"{PUBLIC}:{ECHO}", f"{PRIVATE}:{ECHO}"}

    def test_only_tcp_gets_there_and_nobody_is_asked_for_names(
        self, world: Internet, usual: Sandbox, listed: Sandbox
    ) -> None:
        targets = (f"{PUBLIC}:443", f"{PUBLIC}:53", f"{OTHER}:53")
        world.hits()
        sends(listed, *targets)
        assert world.hits() == []
        arrived: set[str] = set()  # the control
        while arrived != {f"udp {PUBLIC}:443", "name sent.example"}:
            sends(usual, *targets)
            arrived.update(world.hits())

    def test_a_list_of_everything_opens_nothing_inside(
        self, world: Internet, wide: Sandbox, neighbour: Neighbour, enforced: Settle
    ) -> None:
        enforced()
        inside = (f"{PRIVATE}:{ECHO}", f"{METADATA}:{ECHO}", f"{neighbour.address}:{NAMES}")
        assert reached(wide, *inside, f"{PUBLIC}:{ECHO}", f"{OTHER}:{ECHO}") == {f"{PUBLIC}:{ECHO}", f"{OTHER}:{ECHO}"}

    def test_what_was_not_reached_is_there(self, world: Internet, neighbour: Neighbour) -> None:
        """The negative control of the tests above."""
        targets = {f"{address}:{ECHO}" for address in (PUBLIC, OTHER, PRIVATE, METADATA)}
        assert neighbour.reached(*targets) == targets

    def test_until_its_list_holds_a_sandbox_reaches_nothing(
        self, world: Internet, listed: Sandbox, enforced: Settle
    ) -> None:
        delete_policy(pod_of(listed)["metadata"]["name"])
        enforced()
        assert reached(listed, f"{PUBLIC}:{ECHO}", f"{OTHER}:{ECHO}", f"{OTHER}:53") == set()
