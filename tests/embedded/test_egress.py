"""Allow lists, against an internet of the tests' own. What is refused is shown to be within reach of a sandbox without a list."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal._gate.server import CONNECTIONS
from openmodal._spec import Egress
from openmodal.engines.embedded import Embedded, egress, network, uplink
from openmodal.errors import EngineError, InvalidError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.egress import client_hello
from openmodal.testing.fixtures import Create, SandboxClass, eventually, python_starts
from openmodal.testing.limits import interfaces, own_addresses, server
from tests.embedded.apart import apart
from tests.embedded.internet import (
    BULK,
    BULK_BYTES,
    ECHO,
    METADATA,
    OTHER,
    PRIVATE,
    PUBLIC,
    SANDBOXES,
    ZONE,
    Internet,
)

pytestmark = pytest.mark.root

NAME = "public.example"


@pytest.fixture(scope="module")
def world(image: Image, engine: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """On a machine of its own. The image comes from the usual one."""
    image.build(engine=engine)
    with apart(tmp_path_factory.mktemp("internet")) as machine:
        yield machine.net


@pytest.fixture(autouse=True)
def net(world: Internet, monkeypatch: pytest.MonkeyPatch) -> Internet:
    """The internet, with nothing asked for yet; gates ask its name server."""
    original = egress.policy_text
    monkeypatch.setattr(
        egress, "policy_text", lambda wanted, own, _, mirrors: original(wanted, own, (PUBLIC,), mirrors)
    )
    world.hits()
    return world


@pytest.fixture
def sandboxes() -> SandboxClass:
    """One face is enough here: the other differs in nothing that this is about."""
    return Sandbox


def says(sandbox: Sandbox, host: str, port: int, text: str | bytes = "ping\n", *, seconds: int = 30) -> bytes:
    """What comes back from there; b"" if nothing does."""
    process = sandbox.exec("timeout", str(seconds), "nc", host, str(port), stdin=text, text=False)
    return process.stdout.read()


def get(sandbox: Sandbox, host: str, *, at: str | None = None) -> bytes:
    return says(sandbox, at or host, 80, f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")


def shakes_hands(sandbox: Sandbox, name: str | None, *, at: str) -> bool:
    """Whether a TLS server answers (a record of type 22), and not the gate (an alert) or nobody."""
    return says(sandbox, at, 443, client_hello(name))[:1] == b"\x16"


def denied(records: list[Egress]) -> list[tuple[str, str, str]]:
    return [(record.kind, record.asked, record.address) for record in records if not record.allowed]


# ------------------------------------------------------------------------------------------ by name


class TestDomains:
    def test_a_listed_name_is_reached_over_http_and_https(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        assert get(sandbox, NAME).endswith(b"served GET /x HTTP/1.1")
        assert shakes_hands(sandbox, NAME, at=NAME)
        assert {f"{PUBLIC}:80", f"{PUBLIC}:443"} <= set(net.hits())
        log = sandbox.egress_log()
        assert {(r.kind, r.asked) for r in log} == {("dns", NAME), ("http", NAME), ("tls", NAME)}
        assert all(record.allowed and record.reason == "on the domain list" for record in log)

    def test_another_name_is_not_reached_at_the_same_address(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        answer = get(sandbox, "other.example", at=PUBLIC)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"other.example: not on the domain list" in answer
        for name in ("other.example", "sub.public.example", "example", None):
            assert not shakes_hands(sandbox, name, at=NAME)
        assert not [hit for hit in net.hits() if not hit.startswith("name")]
        assert ("http", "other.example", f"{PUBLIC}:80") in denied(sandbox.egress_log())

    def test_a_star_is_what_is_below(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=["*.wild.example"])
        assert get(sandbox, "a.wild.example")
        assert get(sandbox, "wild.example", at=PUBLIC).startswith(b"HTTP/1.1 403 ")

    def test_the_name_decides_where_a_connection_goes_and_not_the_address(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        for address in (OTHER, PRIVATE, METADATA, "8.8.8.8"):
            assert get(sandbox, NAME, at=address).endswith(b"served GET /x HTTP/1.1")
        hits = [hit for hit in net.hits() if not hit.startswith("name")]
        assert hits == [f"{PUBLIC}:80"] * 4

    @pytest.mark.parametrize("name", ["private", "metadata", "sandboxes", "loopback", "missing"])
    def test_a_name_that_leads_inside_is_not_reached(self, create: Create, net: Internet, name: str) -> None:
        sandbox = create(outbound_domain_allowlist=["*.example"])
        answer = sandbox.exec("nslookup", f"{name}.example").stdout.read()
        assert not any(address in answer for address in ZONE.get(f"{name}.example", [PUBLIC]) if address != "127.0.0.1")
        assert get(sandbox, f"{name}.example", at=PUBLIC).startswith(b"HTTP/1.1 403 ")
        assert {hit for hit in net.hits() if not hit.startswith("name")} == set()
        assert get(sandbox, "mixed.example"), "the control: with a public address, too"

    def test_a_name_that_changes_its_mind_is_not_followed_inside(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=["rebind.example"])
        assert sandbox.exec("nslookup", "rebind.example").returncode == 0
        assert get(sandbox, "rebind.example", at=PUBLIC).startswith(b"HTTP/1.1 403 ")
        assert not [hit for hit in net.hits() if not hit.startswith("name")]

    def test_an_answer_too_large_for_udp_is_asked_for_over_tcp(self, create: Create, net: Internet) -> None:
        assert get(create(outbound_domain_allowlist=["tcp.example"]), "tcp.example")
        assert f"{PUBLIC}:53" in net.hits()

    def test_no_question_for_another_name_leaves(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        query = b"\0\x07\1\0\0\1\0\0\0\0\0\0\6canary\4test\0\0\1\0\1"
        for at in ("", PUBLIC, OTHER, "8.8.8.8"):
            assert sandbox.exec("nslookup", "canary.test", *filter(None, [at])).returncode != 0
            assert sandbox.exec("nslookup", NAME, *filter(None, [at])).returncode == 0, "any server is the gate"
        for at in (PUBLIC, "127.0.0.53"):
            answer = says(sandbox, at, 53, len(query).to_bytes(2, "big") + query)
            assert answer[2:4] == query[:2]
            assert answer[5] & 15 == 3, "no such name"
        assert "name canary.test" not in net.hits()
        assert ("dns", "canary.test", "") in denied(sandbox.egress_log())
        create().exec("nslookup", "canary.test", PUBLIC)
        assert "name canary.test" in net.hits(), "the control"

    def test_nothing_else_leaves(self, create: Create, net: Internet) -> None:
        def try_all(sandbox: Sandbox) -> set[str]:
            for port in (ECHO, 25, 443):
                says(sandbox, PUBLIC, port)
            sandbox.exec("timeout", "3", "tftp", "-g", "-r", "x", "-l", "/tmp/x", PUBLIC, "443")
            return {hit for hit in net.hits() if not hit.startswith("name")}

        sandbox = create(outbound_domain_allowlist=["*.example"])
        assert try_all(sandbox) == set()
        assert sandbox.exec("timeout", "3", "ping", "-c", "1", PUBLIC).returncode != 0
        assert ("tcp", "", f"{PUBLIC}:{ECHO}") in denied(sandbox.egress_log())
        free = create()
        assert try_all(free) == {f"{PUBLIC}:{ECHO}", f"{PUBLIC}:443", f"udp {PUBLIC}:443"}, "the control"

    def test_there_is_no_interface_but_loopback_which_is_its_own(self, create: Create) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        assert interfaces(sandbox) == {"lo"}
        sandbox.spawn("nc", "-ll", "-p", "7777", "-e", "cat")
        eventually(lambda: says(sandbox, "127.0.0.1", 7777) == b"ping\n")
        for command in (
            "ip route flush table all",
            "ip route del local default dev lo table local",
            "ip link set lo down",
        ):
            assert sandbox.exec("sh", "-c", command).returncode != 0


# --------------------------------------------------------------------------------------- by address


class TestNetworks:
    def test_a_listed_network_is_reached_at_any_port_and_nothing_else(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_cidr_allowlist=["192.0.2.8/29"])
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n"
        assert shakes_hands(sandbox, None, at=PUBLIC)
        assert says(sandbox, OTHER, ECHO) == b""
        assert get(sandbox, NAME, at=OTHER).startswith(b"HTTP/1.1 403 ")
        assert sandbox.exec("nslookup", NAME).returncode != 0, "a list of networks allows no name"
        assert net.hits() == [f"{PUBLIC}:{ECHO}", f"{PUBLIC}:443"]
        allowed = [record for record in sandbox.egress_log() if record.allowed]
        assert [(r.kind, r.address, r.reason) for r in allowed] == [
            ("tcp", f"{PUBLIC}:{ECHO}", "on the CIDR list"),
            ("tls", f"{PUBLIC}:443", "on the CIDR list"),
        ]
        assert ("tcp", "", f"{OTHER}:{ECHO}") in denied(sandbox.egress_log())
        assert says(create(), OTHER, ECHO) == b"ping\n", "the control"

    def test_a_private_network_is_reached_when_it_is_listed_itself(self, create: Create, net: Internet) -> None:
        assert says(create(outbound_cidr_allowlist=["10.99.97.0/24"]), PRIVATE, ECHO) == b"ping\n"
        everything = create(outbound_cidr_allowlist=["0.0.0.0/0"])
        assert says(everything, PRIVATE, ECHO) == b""
        assert says(everything, PUBLIC, ECHO) == b"ping\n", "the control"

    def test_what_reaches_all_addresses_resolves_all_names(self, create: Create) -> None:
        assert get(create(outbound_cidr_allowlist=["0.0.0.0/0"]), NAME)
        assert not get(create(outbound_cidr_allowlist=[OTHER]), NAME), "the control"

    @pytest.mark.parametrize("address", [METADATA, SANDBOXES])
    def test_metadata_and_other_sandboxes_are_not_reached_even_when_listed(
        self, create: Create, net: Internet, address: str
    ) -> None:
        sandbox = create(outbound_cidr_allowlist=[f"{address}/32", PUBLIC, "10.0.0.0/8"])
        assert says(sandbox, address, ECHO) == b""
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n", "the control"
        assert net.hits() == [f"{PUBLIC}:{ECHO}"]

    def test_this_machine_is_not_reached_even_when_listed(self, create: Create) -> None:
        hosts = {"127.0.0.1", uplink.HOST, network.GATEWAY, *own_addresses()}
        sandbox = create(outbound_cidr_allowlist=[*sorted(hosts), "0.0.0.0/0"])
        with server() as port:
            assert [says(sandbox, host, port) for host in hosts] == [b""] * len(hosts)

    def test_mail_is_not_sent_even_when_listed(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        assert says(sandbox, PUBLIC, 25) == b""
        assert net.hits() == []

    def test_both_lists_together_allow_what_either_allows(self, create: Create) -> None:
        sandbox = create(outbound_cidr_allowlist=[OTHER], outbound_domain_allowlist=[NAME, "private.example"])
        assert get(sandbox, NAME)
        assert says(sandbox, OTHER, ECHO) == b"ping\n"
        assert says(sandbox, PUBLIC, ECHO) == b""
        assert get(sandbox, "other.example", at=PUBLIC).startswith(b"HTTP/1.1 403 ")

    def test_a_listed_name_may_lead_to_a_listed_private_network(self, create: Create) -> None:
        names = {"outbound_domain_allowlist": ["private.example"]}
        assert get(create(outbound_cidr_allowlist=["10.99.97.0/24"], **names), "private.example")
        assert not get(create(**names), "private.example"), "the control"

    def test_empty_lists_allow_nothing(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_cidr_allowlist=[], outbound_domain_allowlist=[])
        assert get(sandbox, NAME, at=PUBLIC).startswith(b"HTTP/1.1 403 ")
        assert says(sandbox, PUBLIC, ECHO) == b""
        assert sandbox.exec("nslookup", NAME).returncode != 0
        assert net.hits() == []


# ------------------------------------------------------------------------------------------ the log


def test_the_log_is_there_after_the_end_and_for_any_process_of_the_user(create: Create, engine: Embedded) -> None:
    sandbox = create(outbound_cidr_allowlist=[PUBLIC])
    before = time.time()
    says(sandbox, PUBLIC, ECHO)
    sandbox.terminate()
    (record,) = Sandbox.from_id(sandbox.id, engine=engine).egress_log()
    assert record.address == f"{PUBLIC}:{ECHO}"
    assert before - 1 < record.time < time.time() + 1


def test_a_sandbox_without_a_list_has_no_log(create: Create) -> None:
    with pytest.raises(InvalidError, match="no allow list"):
        create().egress_log()


# ---------------------------------------------------------------------------------- faults and load


def gates() -> list[int]:
    """The processes that are gates, of whomever."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"openmodal/_gate/" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def gate_of(sandbox: Sandbox) -> int:
    """Its gate's process id."""
    (pid,) = [pid for pid in gates() if sandbox.id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def kill_gate(sandbox: Sandbox) -> None:
    pid = gate_of(sandbox)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


class TestFaults:
    def test_the_gate_has_no_rights_and_is_the_sandboxs(self, create: Create) -> None:
        """It reads nothing from inside before `create` returns."""
        sandbox = create(outbound_domain_allowlist=[])
        pid = gate_of(sandbox)
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        nobody = str(sandbox.info().root + 65534)
        assert fields["Uid"].split() == [nobody] * 4
        assert fields["Gid"].split() == [nobody] * 4
        assert fields["Groups"].strip() == ""
        assert fields["CapEff"] == fields["CapPrm"] == "0" * 16
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert environment == b"PATH=/usr/bin:/bin\0"
        own = Path(f"/proc/{pid}/cgroup").read_text()
        assert own.count(f"/{sandbox.id}\n") >= 1
        assert own == Path(f"/proc/{init_of(pid)}/cgroup").read_text()

    def test_what_the_gate_takes_is_not_taken_from_the_sandbox(self, create: Create) -> None:
        info = create(outbound_domain_allowlist=[], memory=64).info()
        assert (info.memory, info.pids) == (64, 512)

    def test_the_gate_is_not_what_is_killed_when_the_sandbox_lacks_memory(self, create: Create) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC], memory=64)
        pid = gate_of(sandbox)
        assert sandbox.exec("tail", "/dev/zero").returncode == 137
        assert gates_of(sandbox) == [pid]
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n"

    def test_the_gate_can_do_nothing_but_serve(
        self, create: Create, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What whoever takes it over finds; before it is locked in, it can."""
        (tmp_path / "gate.py").write_text(HIJACKED)
        monkeypatch.setattr(egress, "_GATE", tmp_path / "gate.py")
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        before, after = (record.reason for record in sandbox.egress_log())
        assert before == "open, list, fork, signal, local socket, netlink, make"
        assert after == ""

    def test_create_returns_when_the_gate_serves(
        self, create: Create, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """On a slow machine it takes seconds to load, and the first names timed out."""
        slow = f"""
            import runpy, sys, time
            class Slow:
                def find_spec(self, name, path, target=None):
                    time.sleep(3 * (name == "openmodal._gate.server"))
            sys.meta_path.insert(0, Slow())
            runpy.run_path({str(egress._GATE)!r}, run_name="__main__")
        """
        (tmp_path / "gate.py").write_text(textwrap.dedent(slow))
        monkeypatch.setattr(egress, "_GATE", tmp_path / "gate.py")
        sandbox = create(outbound_domain_allowlist=[NAME])
        assert PUBLIC in sandbox.exec("timeout", "2", "nslookup", NAME).stdout.read()

    def test_a_gate_that_dies_is_told_and_started_again(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n"
        open_one = sandbox.spawn("nc", PUBLIC, str(ECHO), text=False)
        eventually(lambda: len(net.hits()) > 1 or len(sandbox.egress_log()) == 2)
        kill_gate(sandbox)
        assert open_one.wait() in (0, 1), "it was cut"
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n"
        assert [(record.kind, record.allowed) for record in sandbox.egress_log()] == [
            ("tcp", True),
            ("tcp", True),
            ("gate", False),
            ("tcp", True),
        ]
        assert "signal 9" in sandbox.egress_log()[2].reason

    def test_a_gate_that_dies_again_and_again_lets_nothing_out_and_the_sandbox_goes_on(
        self, create: Create, net: Internet
    ) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        for _ in range(5):
            eventually(lambda: gates_of(sandbox) != [])
            kill_gate(sandbox)
        eventually(lambda: any("for the last time" in record.reason for record in sandbox.egress_log()))
        assert gates_of(sandbox) == []
        net.hits()
        assert says(sandbox, PUBLIC, ECHO) == b""
        assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"
        assert net.hits() == []

    def test_the_gate_ends_with_the_sandbox(self, create: Create) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        pid = gate_of(sandbox)
        sandbox.terminate()
        assert is_gone(pid)

    def test_the_gate_ends_with_a_killed_supervisor(self, create: Create, engine: Embedded) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        pid = gate_of(sandbox)
        status = Path(f"/proc/{pid}/status").read_text()
        os.kill(int(status.partition("PPid:\t")[2].split()[0]), signal.SIGKILL)
        eventually(lambda: is_gone(pid))
        sandbox.terminate()

    def test_a_killed_sdk_leaves_a_sandbox_with_its_gate(
        self, engine: Embedded, engine_name: str, image: Image
    ) -> None:
        source = """
            sandbox = openmodal.Sandbox.create(
                app=openmodal.App("orphan"), image=image, engine=argv[0], timeout=60, outbound_cidr_allowlist=[argv[1]])
            print(sandbox.id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        with python_starts(source, engine_name, PUBLIC, image=image) as child:
            output, _ = child.communicate(timeout=600)
        with Sandbox.from_id(output.strip(), engine=engine) as sandbox:
            assert says(sandbox, PUBLIC, ECHO) == b"ping\n"

    def test_a_sandbox_whose_gate_does_not_start_is_not_made(
        self, create: Create, engine: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        before = set(os.listdir(engine.store.ended))
        for begin in ("import sys; sys.exit(3)", "import socket; socket.socket(fileno=5).send(b'network by test')"):
            (tmp_path / "gate.py").write_text(begin)
            monkeypatch.setattr(egress, "_GATE", tmp_path / "gate.py")
            with pytest.raises(EngineError, match=r"gate died before it served|by test"):
                create(outbound_cidr_allowlist=[PUBLIC])
        monkeypatch.undo()
        monkeypatch.setattr(engine, "_egress_log", lambda id: tmp_path / "missing" / id)
        with pytest.raises(EngineError, match="cannot start"):
            create(outbound_cidr_allowlist=[PUBLIC])
        monkeypatch.undo()
        monkeypatch.setattr(egress, "policy_text", lambda *_: "{}")
        with pytest.raises(EngineError, match="cannot start"):
            create(outbound_cidr_allowlist=[PUBLIC])
        assert {name for name in set(os.listdir(engine.store.ended)) - before if name.endswith("egress")} == set()

    def test_a_sandbox_whose_rules_cannot_be_loaded_is_not_made(
        self, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network, "gate_rules", lambda *_, **__: "*nat\n-A OUTPUT -j NOSUCHTARGET\nCOMMIT\n")
        with pytest.raises(EngineError, match=r"cannot load the rules.*NOSUCHTARGET"):
            create(outbound_cidr_allowlist=[PUBLIC])
        monkeypatch.setattr(network, "tool", lambda *_: None)
        with pytest.raises(EngineError, match="apt-get install iptables"):
            create(outbound_cidr_allowlist=[PUBLIC])


HIJACKED = """
import os, socket, sys
_, root, policy, log, id, died = sys.argv
sys.modules["ssl"] = None
sys.path.append(root)
from openmodal._gate import rights
from openmodal._gate.log import Log

def can(what):
    try:
        what()
    except PermissionError:
        return False
    return True

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

attempts = {
    "open": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "list": lambda: os.listdir("/"),
    "fork": fork,
    "signal": lambda: os.kill(os.getppid(), 0),
    "local socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "make": lambda: os.close(os.memfd_create("x")),
}
try:
    notes = Log(os.open(log, os.O_RDWR | os.O_CREAT, 0o600))
    for locked in (False, True):
        if locked:
            calls = rights.read_filter(6)
            rights.become(id)
            rights.keep_to(calls)
        notes.add("gate", "", "", ", ".join(name for name, what in attempts.items() if can(what)), allowed=False)
    os.write(5, b"ready")
    os.read(5, 1)
except BaseException as error:
    os.write(5, b"network " + repr(error).encode())
"""


def init_of(gate: int) -> int:
    """Process 1 of the sandbox that a gate belongs to."""
    supervisor = Path(f"/proc/{gate}/status").read_text().partition("PPid:\t")[2].split()[0]
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next(int(pid) for pid in children if int(pid) != gate)


def gates_of(sandbox: Sandbox) -> list[int]:
    return [pid for pid in gates() if sandbox.id.encode() in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class TestLoad:
    def test_a_hundred_connections_at_once_are_carried(self, create: Create) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        script = f"for n in $(seq 100); do (echo $n; exec sleep 1) | nc {PUBLIC} {ECHO} & done; wait"
        lines = sandbox.exec("sh", "-c", script).stdout.read().split()
        assert sorted(map(int, lines)) == list(range(1, 101))

    def test_more_connections_than_it_takes_at_once_wait(self, create: Create, net: Internet) -> None:
        """All are carried in the end, and no descriptor of it is left afterwards."""
        sandbox = create(outbound_cidr_allowlist=[PUBLIC])
        assert says(sandbox, PUBLIC, ECHO) == b"ping\n"
        descriptors = Path(f"/proc/{gate_of(sandbox)}/fd")
        before = len(list(descriptors.iterdir()))
        script = f"mkfifo /tmp/f; for n in $(seq 300); do nc {PUBLIC} {ECHO} < /tmp/f & done; cat > /tmp/f; wait"
        crowd = sandbox.spawn("sh", "-c", script)
        hits = net.hits()
        eventually(lambda: len(list(descriptors.iterdir())) >= before + 2 * CONNECTIONS, seconds=60)
        assert len(list(descriptors.iterdir())) <= before + 2 * CONNECTIONS + 2
        crowd.stdin.close()
        assert crowd.wait() == 0
        assert (hits + net.hits()).count(f"{PUBLIC}:{ECHO}") == 301
        eventually(lambda: len(list(descriptors.iterdir())) <= before)

    def test_clients_that_say_nothing_or_nonsense_harm_no_other(self, create: Create, net: Internet) -> None:
        sandbox = create(outbound_domain_allowlist=[NAME])
        silent = f"for n in $(seq 50); do sleep 60 | nc {PUBLIC} 443 & sleep 60 | nc {PUBLIC} 53 & done; wait"
        crowd = sandbox.spawn("sh", "-c", silent)
        nonsense = "for p in 53 80 443 7; do for n in 1 2 3 4 5; do head -c 3000 /dev/urandom | timeout 5 nc 192.0.2.99 $p; done; done"
        sandbox.exec("sh", "-c", nonsense)
        assert get(sandbox, NAME).endswith(b"served GET /x HTTP/1.1")
        assert shakes_hands(sandbox, NAME, at=NAME)
        crowd.kill()
        assert {hit for hit in net.hits() if not hit.startswith("name")} == {f"{PUBLIC}:80", f"{PUBLIC}:443"}

    def test_a_hundred_megabytes_pass_in_either_direction(self, create: Create) -> None:
        sandbox = create(outbound_cidr_allowlist=[PUBLIC], timeout=300)
        begin = time.monotonic()
        received = sandbox.exec("sh", "-c", f"echo {BULK_BYTES} | nc {PUBLIC} {BULK} | wc -c").stdout.read()
        middle = time.monotonic()
        sent = sandbox.exec("sh", "-c", f"(echo in; head -c {BULK_BYTES} /dev/zero) | nc {PUBLIC} {BULK}").stdout.read()
        assert (int(received), int(sent)) == (BULK_BYTES, BULK_BYTES)
        rates = (BULK_BYTES / 1e6 / (middle - begin), BULK_BYTES / 1e6 / (time.monotonic() - middle))
        print(f"MB/s in and out: {rates[0]:.0f} {rates[1]:.0f}")
        assert min(rates) > 0.5, "the bound is wide: it is there for a gate that crawls"
