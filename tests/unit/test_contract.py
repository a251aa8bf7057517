"""The table of promises, and engines of others: one that only says `lacks`, and one that says nothing of what it does not know."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from openmodal import App, Image, InvalidError, Pool, Sandbox
from openmodal._dual import run_sync
from openmodal._spec import Egress, Recipe, Report, Resources, Root, SandboxSpec
from openmodal.engines import PROMISES, Engine, lacking, load
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker
from openmodal.engines.docker.host import Host
from openmodal.engines.embedded import Embedded, cgroup, host, network
from openmodal.engines.kubernetes import Kubernetes
from openmodal.errors import EngineError, UnsupportedError
from openmodal.testing.mistakes import ASKING

IMAGE = Image.from_scratch().run_commands("sleep 3600")


class Outside:
    """An engine outside of the repository, made when there were no GPUs, runtimes and pools: it inherits from nothing."""

    name = "outside"
    lacks = frozenset({"idle_timeout", "info", "network_block"})

    def __init__(self) -> None:
        self.called: list[str] = []
        self.spec = SandboxSpec("")

    async def prepare(self, image: Recipe, report: Report) -> Root:
        self.called.append("prepare")
        return Root("key")

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        self.called.append("create")
        self.spec = spec
        return f"{spec.app}-12345678"

    async def connect(self, id: str) -> Any:
        raise ConnectionRefusedError

    async def stop(self, id: str) -> None:
        self.called.append("stop")


class Checking(Outside):
    """One that knows better than the table why it refuses, and keeps logs."""

    async def check(self, spec: SandboxSpec) -> None:
        if spec.resources.disk:
            raise EngineError("disk= needs a larger machine")

    async def egress(self, id: str) -> list[Egress]:
        return [Egress(1.0, "dns", "example.com", "", allowed=True, reason="")]


def create(engine: Any, **arguments: Any) -> Sandbox:
    return Sandbox.create(app=App("tests"), image=IMAGE, engine=engine, **arguments)


def test_an_engine_that_only_says_what_it_lacks_goes_on_working() -> None:
    engine: Any = load("tests.unit.test_contract:Outside")
    with create(engine, cpu=1, memory=64, outbound_cidr_allowlist=["203.0.113.0/24"]) as sandbox:
        assert sandbox.id == "tests-12345678"
    assert engine.called == ["prepare", "create", "stop"]
    assert engine.spec.network.cidrs == ("203.0.113.0/24",)


@pytest.mark.parametrize(
    "name", ["gpus", "gvisor", "idle_pause", "idle_timeout", "network_allowlists", "network_block", "snapshot_on_end"]
)
def test_what_it_lacks_or_has_never_heard_of_is_refused_before_it_builds(name: str) -> None:
    engine = Outside()
    arguments, word = ASKING[name]
    with pytest.raises(UnsupportedError, match=f"the outside engine .*{word}"):
        create(engine, **arguments)
    assert engine.called == []


def test_other_things_that_it_lacks_are_refused_too() -> None:
    engine: Any = Outside()
    sandbox = create(engine)
    for ask in (
        sandbox.info,
        sandbox.egress_log,
        lambda: Pool.list(engine=engine),
        lambda: Pool.create("pool", image=IMAGE, size=1, engine=engine),
    ):
        with pytest.raises(UnsupportedError, match="the outside engine"):
            ask()


def test_an_engine_that_checks_says_why_itself_and_is_asked_for_what_it_has() -> None:
    engine = Checking()
    with pytest.raises(EngineError, match="a larger machine"):
        create(engine, disk=64)
    with pytest.raises(UnsupportedError, match="block_network"):
        create(engine, block_network=True)
    for argument in ({"id": "mine"}, {"lease": 5}):
        with pytest.raises(UnsupportedError, match=f"leave {next(iter(argument))}= out"):
            create(engine, **argument)
    assert engine.called == []
    sandbox = create(engine, gpu=1, runtime="gvisor", outbound_domain_allowlist=["example.com"])
    assert [line.asked for line in sandbox.egress_log()] == ["example.com"]
    assert (engine.spec.resources.gpus, engine.spec.runtime) == (1, "gvisor")


def test_each_argument_of_the_table_is_one_that_asks_for_its_promise() -> None:
    asking = {name: promise.argument for name, promise in PROMISES.items() if promise.argument}
    assert asking == {name: next(iter(arguments)) for name, (arguments, _) in ASKING.items()}
    assert not [
        name for name, promise in PROMISES.items() if (promise.argument or promise.verb) and not promise.refusal
    ]


def test_our_engines_name_all_that_they_lack() -> None:
    engines: tuple[Engine, ...] = (
        Embedded(),
        Docker(daemon=Daemon("unix:///docker.sock")),
        Docker(daemon=Daemon("tcp://elsewhere")),
        Kubernetes(),
    )
    for engine in engines:
        assert lacking(engine) == engine.lacks <= PROMISES.keys()


def test_a_verb_that_is_lacking_is_refused_by_an_engine_itself() -> None:
    with pytest.raises(UnsupportedError, match="the embedded engine keeps no pools"):
        run_sync(Embedded().pools())
    with pytest.raises(UnsupportedError, match="the kubernetes engine keeps no images"):
        Kubernetes().images()


def test_an_engine_whose_package_is_missing_is_told() -> None:
    with pytest.raises(InvalidError, match="cannot be imported"):
        load("no.such.package:Engine")


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without runsc, mkfs.ext4, and control groups that have limits."""
    monkeypatch.setattr(network, "tool", lambda name: "")
    monkeypatch.setattr(cgroup, "missing", lambda found: ["memory"])


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"allow_degraded": None}, "limits of a sandbox .*memory"),
        ({"runtime": "gvisor"}, "runtime='gvisor' needs"),
        ({"runtime": "gvisor", "outbound_cidr_allowlist": ["203.0.113.0/24"]}, "allow lists .* runtime='gvisor'"),
        ({"disk": 64}, "disk= needs"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_before_the_image_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(host, "require_network", lambda wanted: None)
    with pytest.raises((EngineError, UnsupportedError), match=words):
        create(Embedded(tmp_path / "state"), **{"allow_degraded": ["limits"], **arguments})
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("driver", "backing", "works"),
    [("overlay2", "extfs", False), ("overlay2", "xfs", True), ("btrfs", "", True), ("overlay2", "btrfs", False)],
)
def test_a_daemon_whose_driver_cannot_limit_disks_is_told_before_the_image_is_built(
    driver: str, backing: str, works: bool
) -> None:
    status = [["Backing Filesystem", backing]] if backing else [["Library Version", "102"]]
    asked = Host(Daemon("unix:///docker.sock"), {"Driver": driver, "DriverStatus": status})
    spec = SandboxSpec("tests", resources=Resources(disk=64))
    with nullcontext() if works else pytest.raises(UnsupportedError, match=f"disk= .* {driver} is on {backing}"):
        asked.check(spec)
