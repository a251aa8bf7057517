"""A plain user's network: by whichever helper can make it, with names that resolve, also when the
machine moves; and where there is none, it is told and not silent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.embedded.apart import Machine, apart
from tests.embedded.internet import ECHO, PUBLIC
from tests.embedded.test_plain_user import TUN, USER, home, run_as_user

__all__ = ["home"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.embedded,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
]

NO_TUN = "mount -t tmpfs tun /dev/net"
CLOSED_TUN = f"{NO_TUN} && mknod -m 600 /dev/net/tun c 10 200"
# What AppArmor does to Debian 12's pasta that is given a process.
REFUSING = "printf '#!/bin/sh\\necho may not look >&2\\nexit 1\\n' > /mnt/refuses && chmod 755 /mnt/refuses"
RESOLVED = f"""mount -t tmpfs run /run && mkdir -p /run/systemd/resolve
echo nameserver 127.0.0.53 > /run/systemd/resolve/stub-resolv.conf
echo nameserver {PUBLIC} > /run/systemd/resolve/resolv.conf
mount --bind /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"""


def refusing(*helpers: str) -> str:
    """A machine where these programs are others, which only refuse."""
    return " && ".join(
        [
            TUN,
            "mount -t tmpfs none /mnt",
            REFUSING,
            *(f"mount --bind /mnt/refuses $(command -v {it})" for it in helpers),
        ]
    )


BEGIN = """
import openmodal
from openmodal import errors

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")

def refused(create):
    try:
        create()
    except errors.EngineError as error:
        return str(error)
    raise AssertionError("it is refused")
"""

REACHES = f"""
{BEGIN}
import os, signal, time
from pathlib import Path
from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded, launch

def children(pid):
    return [int(child) for child in Path(f"/proc/{{pid}}/task/{{pid}}/children").read_text().split()]

with openmodal.Sandbox.create(image=image, timeout=60) as sandbox:
    talk = "(echo ping; /bin/busybox sleep 2) | /bin/busybox nc {PUBLIC} {ECHO} | /bin/busybox head -n 1"
    assert sandbox.exec("/bin/busybox", "sh", "-c", talk).stdout.read() == "ping\\n"
    assert sandbox.info().degraded == ("limits",)
    supervisor = run_sync(launch.supervisor(Embedded().store.folder(sandbox.id)))
    outside = [pid for child in children(supervisor) for pid in children(child)]
    programs = {{pid: Path(f"/proc/{{pid}}/cmdline").read_text().split("\\0")[0] for pid in outside}}
    (helper,) = [pid for pid, program in programs.items() if "openmodal" not in program]
    os.kill(helper, signal.SIGKILL)
    while (degraded := sandbox.info().degraded) == ("limits",):
        time.sleep(0.01)
    assert degraded == ("limits", "network"), "a dead helper is told"
    print(os.path.basename(programs[helper]))
"""

RESOLVES = f"""
{BEGIN}
with openmodal.Sandbox.create(image=image, timeout=60) as sandbox:
    found = sandbox.exec("/bin/busybox", "nslookup", "public.example").stdout.read()
    assert "{PUBLIC}" in found.partition("Name:")[2], found
print("done")
"""

FOLLOWS = f"""
{BEGIN}
import os, time
from pathlib import Path

found = "busybox nslookup public.example | busybox grep -q 'Address.*{PUBLIC}$'"
ask = f"PATH=/bin; until {{found}}; do busybox sleep 0.2; done"
asked, moved = (Path(os.environ["HOME"], name) for name in ("asked", "moved"))
with openmodal.Sandbox.create(image=image, timeout=60) as sandbox:
    sandbox.exec("/bin/busybox", "sh", "-c", ask, timeout=30)
    asked.touch()
    while not moved.exists():
        time.sleep(0.05)
    sandbox.exec("/bin/busybox", "sh", "-c", ask, timeout=30)
print("done")
"""

LACKS = f"""
{BEGIN}
import os
from openmodal.engines import load

said = refused(lambda: openmodal.Sandbox.create(image=image, timeout=60))
assert "/dev/net/tun" in said and "block_network=True" in said and 'allow_degraded=["network"]' in said, said
assert load("embedded").images() == [], "it was told before anything was built"
with openmodal.Sandbox.create(image=image, timeout=60, block_network=True) as sandbox:
    assert sandbox.info().degraded == ("limits",), "none was asked for, so none is lacking"

def lacks_it(**arguments):
    with openmodal.Sandbox.create(image=image, timeout=60, **arguments) as sandbox:
        info = sandbox.info()
        assert (info.network, info.degraded) == ("none", ("limits", "network")), info
        assert len(sandbox.exec("/bin/busybox", "cat", "/proc/net/route").stdout.read().splitlines()) == 1, "a head, and no route"

lacks_it(allow_degraded=["limits", "network"])
step = image.dockerfile_commands('RUN ["/bin/busybox", "true"]')
said = refused(lambda: openmodal.Sandbox.create(image=step, timeout=60, block_network=True))
assert "OPENMODAL_ALLOW_DEGRADED=network" in said, said
os.environ["OPENMODAL_ALLOW_DEGRADED"] = "limits,network"
lacks_it()
with openmodal.Sandbox.create(image=step, timeout=60, block_network=True) as sandbox:
    assert sandbox.info().degraded == ("limits",)
print("done")
"""


def test_a_user_reaches_the_internet_by_pasta(home: Path, tmp_path: Path) -> None:
    """As where no AppArmor is, which may keep resolv.conf from it."""
    hidden = "[ ! -e /sys/kernel/security/apparmor ] || mount -t tmpfs none /sys/kernel/security"
    reaches(home, tmp_path, f"{{ {hidden}; }} && {TUN}", "pasta")


def test_a_helper_that_cannot_make_the_network_is_not_the_last_that_is_tried(home: Path, tmp_path: Path) -> None:
    """AppArmor keeps some versions of pasta from what they need; slirp4netns is there, too."""
    reaches(home, tmp_path, refusing("pasta"), "slirp4netns")


def reaches(home: Path, folder: Path, machine: str, helper: str) -> None:
    with apart(folder) as there:
        run_as_user(home, REACHES, expected=f"{helper}\n", machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")
        assert there.net.hits() == [f"{PUBLIC}:{ECHO}"]


def test_where_no_helper_can_make_a_network_each_ones_words_are_told(home: Path) -> None:
    program = f"""
{BEGIN}
import re
said = refused(lambda: openmodal.Sandbox.create(image=image, timeout=60))
# AppArmor lets no other program than pasta be at its place: the words are the kernel's then.
assert len(re.findall("[(;] ?pasta: ", said)) == 2 and "slirp4netns: may not look" in said, said
assert "block_network=True" in said and "\\n" not in said, said
with openmodal.Sandbox.create(image=image, timeout=60, allow_degraded=["limits", "network"]) as sandbox:
    assert sandbox.info().degraded == ("limits", "network")
print("done")
"""
    run_as_user(home, program, machine=refusing("pasta", "slirp4netns"), OPENMODAL_ALLOW_DEGRADED="limits")


def test_names_resolve_where_the_machine_asks_systemd_resolved(home: Path, tmp_path: Path) -> None:
    """pasta may not read what /etc/resolv.conf links to there, and asked nobody."""
    with apart(tmp_path) as there, resolved(there):
        run_as_user(home, RESOLVES, machine=f"{TUN} && {RESOLVED}", OPENMODAL_ALLOW_DEGRADED="limits")
        assert "name public.example" in there.net.hits()


FOLLOWED = [
    pytest.param(f"{TUN} && {RESOLVED}", id="systemd-resolved by pasta"),
    pytest.param(f"{refusing('pasta')} && {RESOLVED}", id="systemd-resolved by slirp4netns"),
    pytest.param(refusing("pasta"), id="resolv.conf by slirp4netns"),
]


@pytest.mark.parametrize("machine", FOLLOWED)
def test_a_running_sandbox_asks_the_name_servers_that_the_machine_has_now(
    home: Path,
    tmp_path: Path,
    machine: str,
) -> None:
    """The former one answers nobody any more."""
    with apart(tmp_path) as there, resolved(there), ThreadPoolExecutor() as pool:
        done = pool.submit(run_as_user, home, FOLLOWS, machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")
        while not (home / "asked").exists() and not done.done():
            time.sleep(0.05)
        there.moves()
        (home / "moved").touch()
        done.result()


@contextmanager
def resolved(there: Machine) -> Iterator[None]:
    """What systemd-resolved does, as far as sandboxes see: it asks whom the machine has now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local, ThreadPoolExecutor() as pool:
        local.bind(("127.0.0.53", 53))

        def serve() -> None:
            while data := (asked := local.recvfrom(4096))[0]:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, suppress(OSError):
                    server.settimeout(1)
                    server.connect((there.resolv_conf.read_text().split()[1], 53))
                    server.send(data)
                    local.sendto(server.recv(4096), asked[1])

        serving = pool.submit(serve)
        try:
            yield
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.53", 53))
            serving.result()


@pytest.mark.parametrize("machine", [NO_TUN, CLOSED_TUN])
def test_a_user_without_a_tun_device_is_told_before_anything_is_built(home: Path, machine: str) -> None:
    run_as_user(home, LACKS, machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")


ONE_ID = f"{TUN} && mount --bind /dev/null /etc/subuid && mount --bind /dev/null /etc/subgid"
SUB_IDS = f"""{TUN} && mount -t tmpfs run /run && echo {USER}:300000:65536 > /run/ids
mount --bind /run/ids /etc/subuid && mount --bind /run/ids /etc/subgid"""

GATE = f"""
{BEGIN}
import sys
from pathlib import Path
from openmodal.engines.embedded import Embedded

def fields(pid):
    return dict(line.split(":\\t", 1) for line in Path(f"/proc/{{pid}}/status").read_text().splitlines())

with openmodal.Sandbox.create(image=image, timeout=60, outbound_cidr_allowlist=["{PUBLIC}"]) as sandbox:
    talk = "(echo ping; /bin/busybox sleep 2) | /bin/busybox nc {PUBLIC} {ECHO} | /bin/busybox head -n 1"
    assert sandbox.exec("/bin/busybox", "sh", "-c", talk).stdout.read() == "ping\\n"
    (gate,) = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"/_gate/main.py" in path.read_bytes() and sandbox.id.encode() in path.read_bytes()
    ]
    found = fields(gate)
    print(found["Uid"].split()[0], found["CapEff"], found["NoNewPrivs"], found["Seccomp"])
"""


@pytest.mark.parametrize(("machine", "id"), [(ONE_ID, USER), (SUB_IDS, 300000 + 65533)], ids=["one id", "sub-ids"])
def test_the_gate_of_a_users_sandbox_has_no_rights(home: Path, tmp_path: Path, machine: str, id: int) -> None:
    """With ids of its own it cannot even read what the user can."""
    with apart(tmp_path):
        expected = f"{id} {'0' * 16} 1 2\n"
        run_as_user(home, GATE, expected=expected, machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")
