"""What others do to this machine's firewall and network: sandboxes have their network again as soon as anything of ours runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal import _binary, _config
from openmodal.app import App
from openmodal.engines.embedded import Embedded, network, uplink
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating
from openmodal.testing.limits import connects, server
from tests.embedded.apart import Machine
from tests.embedded.internet import ECHO, OTHER, PUBLIC, answer_to

pytestmark = pytest.mark.root

RESTORE = r"printf '*%s\n:FORWARD ACCEPT\n-A FORWARD -j REJECT\nCOMMIT\n' filter | iptables-restore"
DROPPING = "nft 'table inet filter { chain f { type filter hook forward priority 0; policy drop; ct state established accept; }; }'"
GOING = "nft 'table inet t { chain x { log; drop; }; chain f { type filter hook forward priority 0; goto x; }; }'"
CHANGES = {
    "rules and policy, as scripts do": "iptables -F; iptables -t nat -F; iptables -P FORWARD DROP",
    "all of nftables": "nft flush ruleset",
    "another ruleset, as nftables.service loads": f"nft flush ruleset; {DROPPING}",
    "saved tables, as iptables-services loads": RESTORE,
    "a chain that it jumps to": "iptables -N X; iptables -A X -j DROP; iptables -I FORWARD -j X",
    "a chain that nftables goes to": GOING,
    "tables of iptables-legacy": "iptables-legacy -w -P FORWARD DROP",
    "our own table": "nft flush table ip openmodal",
    "our link taken down": "ip link set openmodal0 down",
    "our link removed": "ip link del openmodal0",
    "forwarding, as sysctl.d sets": "sysctl -w net.ipv4.ip_forward=1; sysctl -w net.ipv4.ip_forward=0",
}


@pytest.fixture
def create(here: Machine, image: Image, engine: Embedded) -> Iterator[Create]:
    """Makes sandboxes there: blocking, in this thread."""
    with creating(app=App("apart"), image=image, engine=engine, timeout=1000) as create:
        yield create


def sh(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True, timeout=60)


def has_network(sandbox: Sandbox, name: str = "public.example", *, seconds: int = 30) -> bool:
    """Whether it finds a name, and a server answers there: at once, but on a busy machine."""
    process = sandbox.exec("timeout", str(seconds), "nc", name, str(ECHO), stdin="ping\n")
    return process.stdout.read() == "ping\n"


def lost_network(sandbox: Sandbox, name: str = "public.example") -> bool:
    """The opposite, without long patience: for what is dropped never answers."""
    return not has_network(sandbox, name, seconds=3)


@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in CHANGES.items()])
def test_after_a_change_of_the_firewall_the_next_creation_gives_all_sandboxes_their_network_back(
    here: Machine, create: Create, script: str
) -> None:
    running = create()
    assert has_network(running)
    sh(script)
    assert lost_network(running), "the control: it was lost"
    assert has_network(create())
    assert has_network(running)


def attach(sandbox: Sandbox, engine: Embedded) -> None:
    Sandbox.from_id(sandbox.id, engine=engine).exec("true")


def collect(sandbox: Sandbox, engine: Embedded) -> None:
    engine.gc()


@pytest.mark.parametrize("what", [attach, collect])
def test_whatever_of_ours_runs_next_gives_running_sandboxes_their_network_back(
    here: Machine, create: Create, engine: Embedded, what: Callable[[Sandbox, Embedded], None]
) -> None:
    """The first command of another process (`openmodal sandbox exec`), and `openmodal gc`."""
    running = create()
    assert has_network(running)
    sh(CHANGES["rules and policy, as scripts do"])
    assert lost_network(running), "the control"
    what(running, engine)
    assert has_network(running)


@pytest.mark.parametrize("script", ["iptables -P FORWARD DROP", DROPPING])
def test_a_firewall_that_forwards_nothing_is_told_before_the_first_sandbox(
    here: Machine, create: Create, script: str
) -> None:
    """As Docker's does that was started before."""
    sh(script)
    assert has_network(create())
    subprocess.run(["iptables", "-S"], check=True, capture_output=True)  # it still understands its table


@contextmanager
def name_server_here() -> Iterator[str]:
    """On this machine itself, at an address that it has besides; a thread of this test's is on the same machine."""
    address = "198.51.100.53"
    sh(f"ip addr add {address}/32 dev lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((address, 53))
        listener.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    question, client = listener.recvfrom(512)
                    listener.sendto(answer_to(question), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address
        finally:
            done.set()
            thread.join()


def test_a_name_server_of_this_machine_answers_behind_a_firewall_that_lets_nothing_in(
    here: Machine, create: Create
) -> None:
    sh(
        "iptables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    )
    with name_server_here() as address:
        here.resolv_conf.write_text(f"nameserver {address}\n")
        sandbox = create()
        assert has_network(sandbox)
        with server(address) as port:
            assert not connects(sandbox, address, port), "nothing else of this machine does"


WORDS = f"-i {uplink.NAME} -d {OTHER} -j DROP"


@pytest.mark.parametrize(
    "script",
    [
        f"iptables -P FORWARD DROP; iptables -A FORWARD {WORDS}",
        f"iptables -N X; iptables -A X {WORDS}; iptables -A X -j DROP; iptables -A FORWARD -j X",
        f"iptables -N X; iptables -A X -j LOG; iptables -A FORWARD -j X; iptables -A FORWARD {WORDS}; iptables -P FORWARD DROP",
    ],
    ids=["in the chain", "in one that it jumps to", "behind one that only logs"],
)
def test_what_an_administrator_says_about_our_packets_holds(here: Machine, create: Create, script: str) -> None:
    """Our exception stands after all other rules: it changes what is dropped by default, nothing else."""
    sh(script)
    sandbox = create()
    assert has_network(sandbox)
    assert lost_network(sandbox, OTHER)


def test_a_change_that_does_not_concern_us_is_seen_once(here: Machine, create: Create, engine: Embedded) -> None:
    """After one look all is sealed again."""
    create()
    sh("nft add table ip somebody")
    create()
    before = uplink.seal([PUBLIC])
    create()
    assert uplink.seal([PUBLIC]) == before


def test_without_nft_the_rules_in_iptables_tables_are_mended(
    here: Machine, create: Create, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("iptables", "iptables-restore", "nsenter"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setattr(_binary, "PATH", str(tmp_path))
    running = create()
    assert has_network(running)
    sh("iptables -F; iptables -t nat -F; iptables -P FORWARD DROP")
    assert lost_network(running), "the control"
    assert has_network(create())
    assert has_network(running)


def test_running_sandboxes_move_along_to_another_network(here: Machine, create: Create, engine: Embedded) -> None:
    """Laptops do: the address, the default route and the name server change. An allow list's gate asks the new one, too."""
    running, listed = create(), create(outbound_domain_allowlist=["other.example"])
    assert has_network(running)
    here.moves()
    assert lost_network(running, "other.example"), "the control"
    attach(running, engine)
    assert has_network(running, "other.example")
    request = "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"
    assert "served" in listed.exec("timeout", "5", "nc", "other.example", "80", stdin=request).stdout.read()


def doctor() -> tuple[bool, bool, str]:
    """Whether it says that sandboxes can run; whether names resolve there, and its words about it."""
    done = subprocess.run(
        [sys.executable, "-m", "openmodal.cli", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    (names,) = [check for check in found["checks"] if check["name"] == "names"]
    return found["works"], names["ok"], names["text"]


def test_doctor_says_ok_only_if_a_packet_of_a_sandbox_comes_through(here: Machine) -> None:
    works, names, _ = doctor()
    assert (works, names) == (True, True)
    sh(CHANGES["rules and policy, as scripts do"])
    assert doctor()[1], "the sandbox that it makes mends it"
    chain = f"chain c {{ type filter hook prerouting priority -300; iifname {uplink.NAME} jump x; }}"
    sh(f"nft 'table inet theirs {{ chain x {{ drop; }}; {chain}; }}'")
    works, names, text = doctor()
    assert (works, names) == (False, False)
    assert "`inet theirs x`" in text
    assert "trace" not in rules()


def test_doctor_tries_a_packet_also_where_names_need_none(here: Machine) -> None:
    """This machine answers them itself, so that they tell nothing of what it forwards."""
    with name_server_here() as address:
        here.resolv_conf.write_text(f"nameserver {address}\n")
        works, names, _ = doctor()
        assert (works, names) == (True, True)
        sh(f"iptables -N X; iptables -A X -j DROP; iptables -A FORWARD -i {uplink.NAME} -j X")
        works, names, text = doctor()
        assert (works, names) == (False, False)
        assert "`ip filter X`" in text


def test_doctor_tells_a_machine_without_a_network_from_a_firewall_that_drops(here: Machine) -> None:
    here.resolv_conf.write_text("nameserver 192.0.2.99\n")  # nobody
    works, names, _ = doctor()
    assert (works, names) == (True, False)


def test_a_router_that_is_removed_leaves_nothing(here: Machine, create: Create, engine: Embedded) -> None:
    sh("iptables -P FORWARD DROP")
    create().terminate()
    assert uplink.NAME in rules()
    network.Router(_config.machine(), _binary.find(engine.store.state)).remove()
    assert uplink.NAME not in rules()
    assert not os.path.exists(f"/proc/sys/net/ipv4/conf/{uplink.NAME}")
    assert has_network(create())


def rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def test_two_state_folders_share_the_router(here: Machine, create: Create, image: Image, tmp_path: Path) -> None:
    other = Embedded(tmp_path / "home")
    recipe = Image.from_scratch().add_local_file(shutil.which("busybox") or "/bin/busybox", "/bin/nc")
    first = create()
    with Sandbox.create(app=App("other"), image=recipe, engine=other, timeout=100) as second:
        assert second.exec("/bin/nc", PUBLIC, str(ECHO), stdin="ping\n").stdout.read() == "ping\n"
        assert has_network(first)
        other.gc()
    assert has_network(first)
    assert has_network(create())
