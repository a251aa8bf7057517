"""`openmodal doctor` against the truth: on machines that lack something, what it says of it is what
then happens.

Each machine is a view of this one: a namespace of mounts in which something is missing, or in the
way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.embedded.test_plain_user import ALONE, SUBIDS, TUN, USER, home, run_as
from tests.security.test_r_faults import FILL

__all__ = ["home"]

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="changes its view of the machine")]

ANOTHER = "set OPENMODAL_HOME to a folder on ext4, xfs or btrfs"

# Prints what doctor says, and what becomes of a sandbox; neither leaves anything else in the state
# folder.
ASK = """
import json, os
import openmodal
from openmodal.engines.embedded import doctor

def files():
    state = os.environ["OPENMODAL_HOME"]
    return sorted(os.walk(state)) if os.path.isdir(state) else None

before = files()
found = doctor.examine()
assert files() == before, (before, files())
given = dict(allow_degraded=["limits"], block_network=True) | json.loads(os.environ.get("OPTIONS", "{}"))
try:
    openmodal.Sandbox.create(image=openmodal.Image.from_scratch(), engine="embedded", timeout=60, **given).terminate()
    said = ""
except openmodal.Error as error:
    said = str(error)
print(json.dumps({"said": said, "checks": {check.name: (check.ok, check.text, check.remedy) for check in found}}))
"""


class Answer(NamedTuple):
    """`said` is why no sandbox could be created, "" if it could."""

    said: str
    checks: dict[str, tuple[bool, str, str]]

    @classmethod
    def of(cls, printed: str) -> Answer:
        return cls(**json.loads(printed.splitlines()[-1]))

    def ok(self, name: str) -> bool:
        return self.checks[name][0]

    def text(self, name: str) -> str:
        return self.checks[name][1]


def ask_root(folder: Path, machine: str, *, first: str = "", **variables: str) -> Answer:
    """As root, on a machine that a shell has changed before; what it starts ends with it."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += ["sh", "-ec", f'{machine}; "$@"', "sh", sys.executable, "-c", first + ASK]
    environment = {**os.environ, "OPENMODAL_HOME": str(folder / "store" / "home"), "FOLDER": str(folder), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Answer.of(done.stdout)


def ask_user(home: Path, machine: str = "true", **variables: str) -> Answer:
    return Answer.of(run_as(home, ASK, machine=machine, seconds=60, OPENMODAL_BASE="packages", **variables))


# ---------------------------------------------------------------------------------------- the store

OVERLAY = "cd $FOLDER && mkdir lower upper work && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work store"
STORES = {
    "a disk": "true",
    "tmpfs": "mount -t tmpfs tmpfs $FOLDER/store",
    "overlay": OVERLAY,
    "fuse": "mkdir $FOLDER/real && bindfs $FOLDER/real $FOLDER/store",
    "read-only": "mount --bind $FOLDER/store $FOLDER/store && mount -o remount,bind,ro $FOLDER/store",
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_is_ok_exactly_where_sandboxes_can_be_created(tmp_path: Path, kind: str) -> None:
    """Its kind was looked up in a list, and a root's tmpfs before Linux 6.3 was not in it."""
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, STORES[kind])
    assert answer.ok("store") == answer.ok("sandbox") == (not answer.said), answer
    assert answer.text("store").startswith(f"{tmp_path}/store/home on ")
    assert answer.said in answer.text("store")
    if kind in ("overlay", "fuse"):  # the control: here none can be created
        assert ANOTHER in answer.said


def test_a_plain_users_store_is_ok_exactly_where_sandboxes_can_be_created(home: Path) -> None:
    answer = ask_user(home)
    assert (answer.said, answer.ok("store")) == ("", True)
    machine = f"FOLDER=$HOME; mkdir $HOME/store; {OVERLAY}; chown {USER} store"
    answer = ask_user(home, machine, OPENMODAL_HOME=str(home / "store" / "home"))
    assert ANOTHER in answer.said
    assert (answer.ok("store"), answer.said in answer.text("store")) == (False, True)


def test_a_store_that_is_somebody_elses_is_told(home: Path) -> None:
    """doctor ended with a traceback."""
    answer = ask_user(home, "mkdir -m 700 $HOME/store", OPENMODAL_HOME=str(home / "store"))
    assert answer.said
    assert (answer.ok("store"), answer.said in answer.text("store")) == (False, True), answer


@pytest.fixture
def nfs(tmp_path: Path) -> Iterator[str]:
    """What mounts a folder that this machine serves itself, to everybody as who they are."""
    threads = Path("/proc/fs/nfsd/threads")
    if not threads.exists() or threads.read_text().strip() == "0":
        pytest.skip("needs an NFS server on this machine")
    (tmp_path / "real").mkdir(mode=0o755)
    served = f"127.0.0.1:{tmp_path}/real"
    subprocess.run(["exportfs", "-i", "-o", "rw,no_root_squash,no_subtree_check,insecure,fsid=77", served], check=True)
    yield f"mount -t nfs4 {served} "
    subprocess.run(["exportfs", "-u", served], check=True)


@pytest.mark.feature("nfs")
def test_a_store_on_nfs_is_told_by_doctor_and_by_create(tmp_path: Path, home: Path, nfs: str) -> None:
    """It has neither owners that can be shifted nor what overlayfs writes into."""
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, f"{nfs} $FOLDER/store")
    assert ANOTHER in answer.said
    assert (answer.ok("store"), answer.said in answer.text("store")) == (False, True)
    shutil.rmtree(tmp_path / "real" / "home")
    os.chown(tmp_path / "real", USER, USER)
    machine = f"mkdir $HOME/store; {nfs} $HOME/store"
    answer = ask_user(home, machine, OPENMODAL_HOME=str(home / "store" / "home"))
    assert ANOTHER in answer.said
    assert (answer.ok("store"), answer.said in answer.text("store")) == (False, True)


def test_no_image_is_built_for_a_store_that_cannot_hold_sandboxes(tmp_path: Path) -> None:
    """It was told after all the minutes of a build."""
    (tmp_path / "store").mkdir()
    build = """
import os, openmodal
try:
    openmodal.Image.from_scratch().dockerfile_commands('RUN ["/never"]').build(engine="embedded")
except openmodal.EngineError as error:
    assert "set OPENMODAL_HOME" in str(error), error
else:
    raise AssertionError("there was a box")
assert not os.path.exists(os.environ["OPENMODAL_HOME"] + "/layers")
"""
    assert ask_root(tmp_path, OVERLAY, first=build).said


# ----------------------------------------------------------------------------------- kernel and ids


# The program's first four words make it the user's. Then, in a namespace that it has all rights in,
# none below it may be made.
NO_NAMESPACES = (
    'become="$1 $2 $3 $4"; shift 4; exec $become unshare --user --map-current-user --keep-caps '
    'sh -c \'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"\' sh "$@"'
)


def test_user_namespaces_are_ok_exactly_where_they_can_be_made(home: Path) -> None:
    answer = ask_user(home, NO_NAMESPACES)
    assert "namespaces" in answer.said
    assert (answer.ok("user namespaces"), answer.ok("sandbox")) == (False, False)
    assert "sysctl -w user.max_user_namespaces=" in answer.checks["user namespaces"][2]


def test_the_filter_of_system_calls_is_ok_exactly_where_it_can_be_installed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, "true", first=FILL)
    assert "seccomp" in answer.said
    assert (answer.ok("seccomp"), answer.ok("sandbox")) == (False, False)
    assert answer.ok("store"), "what comes before is proved"


REFUSING = f"{SUBIDS}; cp /usr/bin/newuidmap $HOME/; mount --bind $HOME/newuidmap /usr/bin/newuidmap"


def test_user_ids_are_ok_exactly_where_newuidmap_gives_them(home: Path) -> None:
    answer = ask_user(home, SUBIDS)
    assert (answer.said, answer.ok("user ids"), answer.ok("base image")) == ("", True, True)
    answer = ask_user(home, REFUSING)  # one without the right to: it has lost its setuid bit
    assert "newuidmap" in answer.said
    assert (answer.ok("user ids"), answer.ok("base image"), answer.ok("sandbox")) == (False, False, False)


# -------------------------------------------------------------------------------------- the network

# On a network of its own, so that the machine's router stays.
APART = 'mkdir -p /run/openmodal; mount -t tmpfs -o mode=700 tmpfs /run/openmodal; exec unshare --net "$@"'

# A kernel without nf_tables refuses its protocol of netlink: from here on, to whatever is started.
NO_NFTABLES = """
import ctypes, errno, platform, struct
libc = ctypes.CDLL(None)
def instruction(code, true, false, value):
    return struct.pack("HBBI", code, true, false, value)
load, equal, give = 0x20, 0x15, 0x06  # of a filter's program
socket = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = instruction(load, 0, 0, 0) + instruction(equal, 0, 5, socket)
steps += instruction(load, 0, 0, 16) + instruction(equal, 0, 3, 16)  # its first argument: AF_NETLINK
steps += instruction(load, 0, 0, 32) + instruction(equal, 0, 1, 12)  # its third: NETLINK_NETFILTER
steps += instruction(give, 0, 0, 0x50000 | errno.EPROTONOSUPPORT) + instruction(give, 0, 0, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(8, steps)), 0, 0) == 0
"""
WITH_NETWORK = json.dumps({"block_network": False})


def test_the_network_is_ok_exactly_where_its_rules_can_be_loaded(tmp_path: Path) -> None:
    """Without the kernel's nf_tables it was ok, and the sandbox's line was iptables' words."""
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, APART, OPTIONS=WITH_NETWORK)
    assert (answer.said, answer.ok("network"), answer.ok("sandbox")) == ("", True, True)
    answer = ask_root(tmp_path, APART, first=NO_NFTABLES, OPTIONS=WITH_NETWORK)
    assert answer.text("network") == answer.said
    assert re.fullmatch(
        r"[^\n]*this kernel has no nf_tables, which \S+ needs; as root, run `modprobe [^\n]*", answer.said
    )
    assert (answer.ok("network"), answer.ok("sandbox")) == (False, False)
    assert answer.text("sandbox") == "none with a network can be created; see network"


def test_a_network_that_sandboxes_may_lack_is_not_ok_either(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, APART, first=NO_NFTABLES, OPENMODAL_ALLOW_DEGRADED="limits,network")
    assert "this kernel has no nf_tables" in answer.text("network")
    assert (answer.ok("network"), answer.ok("sandbox"), answer.ok("isolation")) == (False, True, False)


# ---------------------------------------------------------------------- what not all sandboxes need


def test_a_disk_limit_is_ok_exactly_where_a_disk_can_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    options = json.dumps({"disk": 64})
    answer = ask_root(tmp_path, "true", OPTIONS=options)
    assert answer.ok("disk limit") == (not answer.said)
    answer = ask_root(tmp_path, "mount --bind /dev/null /dev/loop-control", OPTIONS=options)
    assert "loop device" in answer.said
    assert (answer.ok("disk limit"), answer.ok("sandbox")) == (False, True)


BROKEN_RUNSC = """
mount -t tmpfs -o mode=755 tmpfs /usr/local/sbin
printf '#!/bin/sh\\n[ "$1" != --version ] || exec echo runsc version release-20991231.0\\nexit 3\\n' > /usr/local/sbin/runsc
chmod 755 /usr/local/sbin/runsc
"""


def test_gvisor_is_ok_exactly_where_its_sandboxes_run(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    answer = ask_root(tmp_path, BROKEN_RUNSC.strip().replace("\n", "; "), OPTIONS=json.dumps({"runtime": "gvisor"}))
    assert answer.said
    assert (answer.ok("gVisor"), answer.ok("sandbox")) == (False, True)


def test_the_base_image_is_ok_exactly_where_packages_can_become_one(home: Path) -> None:
    """A plain user was told that it is, where mmdebstrap could not reach his folder; and with one id only it cannot own its files."""
    build = """
import openmodal
try:
    openmodal.Image.debian_slim().build(engine="embedded")
except openmodal.EngineError as error:
    print(error)
"""
    said = run_as(home, build, machine=ALONE, OPENMODAL_BASE="packages").strip()
    answer = ask_user(home, ALONE)
    assert "uidmap" in said
    assert (answer.ok("base image"), said in answer.text("base image")) == (False, True)


# ---------------------------------------------------------------------------------------- its words


def test_a_plain_user_without_limits_is_told_all_the_same_what_holds_a_sandbox(home: Path) -> None:
    """It ended before its last line, which is the proof of all others."""
    answer = ask_user(home, TUN, OPENMODAL_ALLOW_DEGRADED="")
    assert (answer.ok("limits"), answer.ok("sandbox"), answer.ok("isolation")) == (False, False, False)
    assert "systemd-run --user --scope" in answer.text("sandbox")
    assert "system calls filtered; limits: none; lacks limits" in answer.text("isolation")
    assert _all_words(answer)


def _all_words(answer: Answer) -> bool:
    return all(
        text.strip() == text and not text.endswith("install") for _, *texts in answer.checks.values() for text in texts
    )
