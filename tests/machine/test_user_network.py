"""A plain user's network on a machine as users have it: AppArmor, systemd-resolved, and the helpers of Debian."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import openmodal
from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded, launch, network
from openmodal.testing.fixtures import eventually

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not Path("/run/systemd/resolve").exists(), reason="systemd-resolved is not here"),
]

NAME = "deb.debian.org"


@pytest.fixture
def image() -> openmodal.Image:
    return openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")


def supervisor_of(sandbox: openmodal.Sandbox) -> int:
    return run_sync(launch.supervisor(Embedded().store.folder(sandbox.id)))


def descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(found for child in children for found in descendants(child))]


def helpers(sandbox: openmodal.Sandbox) -> set[str]:
    """The programs that its supervisor has started."""
    names: set[str] = set()
    for pid in descendants(supervisor_of(sandbox)):
        with suppress(FileNotFoundError, ProcessLookupError):
            names.add(os.path.basename(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()))
    return names & {"pasta", "slirp4netns"}


@pytest.mark.skipif(not Path("/etc/apparmor.d/usr.bin.passt").exists(), reason="AppArmor does not confine pasta here")
@pytest.mark.user
def test_pasta_makes_the_network_where_apparmor_confines_it(
    image: openmodal.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is alone: it may not read resolv.conf there, so slirp4netns comes first."""
    given = network.tool

    def tool(name: str) -> str | None:
        return None if name == "slirp4netns" else given(name)

    monkeypatch.setattr(network, "tool", tool)
    with openmodal.Sandbox.create(image=image, timeout=300, allow_degraded=["limits"]) as sandbox:
        assert sandbox.info().network == "outbound"
        assert helpers(sandbox) == {"pasta"}


@pytest.mark.user
def test_names_resolve_beside_systemd_resolved(image: openmodal.Image) -> None:
    with openmodal.Sandbox.create(image=image, timeout=300, allow_degraded=["limits"]) as sandbox:
        found = sandbox.exec("/bin/busybox", "nslookup", NAME).stdout.read()
        assert "Address" in found.partition("Name:")[2], found


@pytest.mark.user
def test_a_step_of_an_image_has_a_network_and_names(image: openmodal.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ALLOW_DEGRADED", "limits")
    command = f"/bin/busybox nslookup {NAME} && : {os.urandom(4).hex()}"  # not from the cache
    image.dockerfile_commands(f'RUN ["/bin/busybox", "sh", "-c", "{command}"]').build(engine="embedded")


@pytest.mark.user
def test_the_helper_ends_with_a_killed_supervisor(image: openmodal.Image) -> None:
    """Under AppArmor the kernel forgets that it is to die with its parent."""
    sandbox = openmodal.Sandbox.create(image=image, timeout=300, allow_degraded=["limits"])
    supervisor = supervisor_of(sandbox)
    helper = descendants(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in helper))
    sandbox.terminate()


@pytest.mark.user
def test_doctor_asks_a_name_and_tells_the_helper() -> None:
    environment = {**os.environ, "OPENMODAL_ALLOW_DEGRADED": "limits"}
    command = [str(Path(sys.executable).with_name("openmodal")), "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "ok\tnetwork: by slirp4netns or pasta" in done.stdout, done.stdout
    assert "ok\tnames: " in done.stdout, done.stdout


def test_the_first_name_of_an_allow_list_is_answered_at_once(image: openmodal.Image) -> None:
    """The gate takes seconds to load on such a machine."""
    with openmodal.Sandbox.create(
        image=image, timeout=300, allow_degraded=["limits"], outbound_domain_allowlist=[NAME]
    ) as sandbox:
        found = sandbox.exec("/bin/busybox", "timeout", "5", "/bin/busybox", "nslookup", NAME).stdout.read()
        assert "Address" in found.partition("Name:")[2], found


def test_the_gate_is_in_the_sandboxs_groups_and_has_no_rights(image: openmodal.Image) -> None:
    with openmodal.Sandbox.create(
        image=image, timeout=300, allow_degraded=["limits"], outbound_domain_allowlist=[]
    ) as sandbox:
        init, gate = (read_status(pid) for pid in init_and_gate(supervisor_of(sandbox)))
        assert (gate["CapEff"], gate["NoNewPrivs"], gate["Seccomp"]) == ("0" * 16, "1", "2")
        assert int(gate["Uid"].split()[0]) == outside(init["Pid"], 65534), "its nobody"
        assert groups_of(gate["Pid"]) == groups_of(init["Pid"])


def init_and_gate(supervisor: int) -> tuple[int, int]:
    """Besides them, a supervisor has children that live for a moment only."""
    init = gate = 0
    for pid in descendants(supervisor):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"openmodal/_gate/" in Path(f"/proc/{pid}/cmdline").read_bytes():
                gate = pid
            elif read_status(pid)["NSpid"].split()[-1] == "1":
                init = pid
    return init, gate


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def outside(pid: str, id: int) -> int:
    """What an id of a process's user namespace is outside."""
    lines = [list(map(int, line.split())) for line in Path(f"/proc/{pid}/uid_map").read_text().splitlines()]
    return next(first + id - inside for inside, first, count in lines if inside <= id < inside + count)


def groups_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()
