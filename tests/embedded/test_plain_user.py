"""The embedded engine for a user without rights: what works, and that what does not is told and not half done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import openmodal
from tests.embedded.apart import apart
from tests.embedded.internet import ECHO, OTHER, PUBLIC
from tests.leaks import TEMPORARY

USER = 1000

# Run by root in a mount namespace of its own, and then the rest as the user: a /dev/net/tun for
# all, as systemd makes it.
TUN = "[ ! -c /dev/net/tun ] || { mount -t tmpfs tun /dev/net && mknod -m 666 /dev/net/tun c 10 200; }"
# Ranges of ids for that user, as `useradd` gives them. In a mount namespace of its own they are
# nobody else's.
SUBIDS = f'for f in subuid subgid; do echo {USER}:2000000:65536 > "$HOME/$f" && mount --bind "$HOME/$f" /etc/$f || exit 9; done'
RANGES = f"{SUBIDS}; {TUN}"
ALONE = f"for f in subuid subgid; do [ ! -e /etc/$f ] || mount --bind /dev/null /etc/$f || exit 9; done; {TUN}"
BUSYBOX = Path("/bin/busybox")

PROGRAM = """
import os
import openmodal
from openmodal import errors

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
try:  # no control group is delegated to this user
    openmodal.Sandbox.create(image=image, timeout=60)
except errors.EngineError as error:
    assert "systemd-run --user --scope" in str(error) and 'allow_degraded=["limits"]' in str(error), error
else:
    raise AssertionError("limits need control groups")
assert openmodal.Sandbox.list() == []
with openmodal.Sandbox.create(image=image, timeout=60, allow_degraded=["limits"]) as sandbox:
    info = sandbox.info()
    assert (info.degraded, info.memory, info.seccomp, info.no_new_privileges) == (("limits",), None, True, True), info
os.environ["OPENMODAL_ALLOW_DEGRADED"] = "limits"
with openmodal.Sandbox.create(image=image, app=openmodal.App("user"), timeout=60) as sandbox:
    assert sandbox.exec("id", "-u").stdout.read() == "0\\n"
    assert sandbox.exec("sh", "-c", "echo kept > /file; cat /file").stdout.read() == "kept\\n"
    assert sandbox.exec("cat", "/file").stdout.read() == "kept\\n"
    sandbox.filesystem.write_bytes("/deep/er/file", bytes(range(256)))
    assert sandbox.filesystem.read_bytes("/deep/er/file") == bytes(range(256))
    status = sandbox.exec("cat", "/proc/self/status").stdout.read()
    assert "CapBnd:\\t00000000800404fb" in status and "NoNewPrivs:\\t1" in status and "Seccomp:\\t2" in status, status
    assert sandbox.exec("cat", "/etc/shadow").returncode == 1, "the machine's files"
    id = sandbox.id
    assert [other.id for other in openmodal.Sandbox.list()] == [id]
assert openmodal.Sandbox.from_id(id).poll() == 137
assert openmodal.Sandbox.list() == []
with openmodal.Sandbox.create(image=image, timeout=60, block_network=True) as sandbox:
    assert len(sandbox.exec("cat", "/proc/net/route").stdout.read().splitlines()) == 1, "a head, and no route"
try:
    openmodal.Sandbox.create(image=image, disk=64)
except errors.EngineError as error:
    assert "root" in str(error)
else:
    raise AssertionError("disk= needs root")
assert openmodal.Sandbox.list() == []
print("done")
"""

# What is done with files and ports; without control groups nothing can be paused.
FEATURES = """
import urllib.request
import openmodal
from openmodal import errors

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')

def sh(sandbox, script):
    return sandbox.exec("sh", "-c", script).stdout.read()

data = openmodal.Volume.from_name("data", create_if_missing=True)
with openmodal.Sandbox.create(image=image, timeout=60, volumes={"/data": data}, snapshot_on_end="kept") as sandbox:
    sh(sandbox, "echo one > /file; echo shared > /data/file; mkdir -p /www; echo page > /www/index.html; chown 0 /file")
    for call in (sandbox.checkpoint, sandbox.fork, sandbox.snapshot_filesystem, sandbox.pause):
        try:
            call()
        except errors.EngineError as error:
            assert "delegated groups" in str(error), error
        else:
            raise AssertionError("nothing can stop it")
    try:
        openmodal.Sandbox.create(image=image, idle_timeout=5, on_idle="pause")
    except errors.EngineError as error:
        assert "delegated groups" in str(error), error
    else:
        raise AssertionError("nothing can stop it when it is idle")
    sandbox.spawn("httpd", "-f", "-p", "127.0.0.1:8000", "-h", "/www")
    sandbox.connect(8000, timeout=30).close()
    with sandbox.forward(8000) as tunnel, urllib.request.urlopen(tunnel.url, timeout=30) as answer:
        assert answer.read() == b"page\\n"
kept = openmodal.Image.from_name("kept")
with openmodal.Sandbox.create(image=kept, timeout=60, volumes={"/data": data}) as sandbox:
    show = "cat /file /www/index.html /data/file 2>/dev/null"
    assert sh(sandbox, show) == "one\\npage\\nshared\\n"
    sh(sandbox, "echo two > /file; rm -r /www")
    sandbox.reset()
    assert sh(sandbox, show) == "one\\npage\\nshared\\n"
openmodal.Image.delete("kept")
print("done")
"""

# Debian from its packages, as on a machine without a registry.
DEBIAN = """
import openmodal

image = openmodal.Image.debian_slim()
with openmodal.Sandbox.create(image=image, timeout=60, allow_degraded=["limits"], block_network=True) as sandbox:
    files = "/ /etc/shadow /usr/bin/passwd /usr/bin/chage"
    said = sandbox.exec("sh", "-c", f"python3 --version; stat -c %u:%g:%a {files}").stdout.read().splitlines()
    assert said[0].startswith("Python 3.13") and said[1:] == ["0:0:755", "0:42:640", "0:0:4755", "0:42:2755"], said
    assert sandbox.exec("id", "-un", user="nobody").stdout.read() == "nobody\\n"
print("done")
"""

# What a step makes may belong to any id, and some keep it to themselves.
OWNERS = """
import io, os, tarfile
from pathlib import Path
import openmodal
from openmodal._dual import run_sync
from openmodal.build.context import folder
from openmodal.engines.embedded import Embedded

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
engine = Embedded()

def layer(command):
    root = run_sync(engine.prepare(image.run_commands(command).recipe, lambda progress: None))
    return engine.layers.folder(root.layers[0])

made = layer("touch /mine /theirs && chown 33:44 /theirs")
assert (made / "theirs").stat().st_uid == 2000032, "the range's first id is the sandbox's 1"
with tarfile.open(fileobj=io.BytesIO(b"".join(folder(str(made))))) as tar:
    owners = {member.name: (member.uid, member.gid) for member in tar}
assert (owners["mine"], owners["theirs"]) == ((0, 0), (33, 44)), owners
layer("mkdir -p /private/deep && touch /private/deep/file && chown -R 33 /private && chmod 700 /private")
engine.prune()
assert os.listdir(engine.layers.path / "layers") == os.listdir(engine.layers.path / "tmp") == []

os.environ["OPENMODAL_ALLOW_DEGRADED"] = "limits"
home = openmodal.HostDirectory(Path.home(), read_only=False)
with openmodal.Volume.ephemeral() as volume:
    seen = {"/data": volume, "/home": home}
    with openmodal.Sandbox.create(image=image, timeout=60, block_network=True, volumes=seen) as sandbox:
        script = "touch /data/mine /home/mine; mkdir -m 700 /data/theirs; touch /data/theirs/file; chown -R 33 /data/theirs"
        assert sandbox.exec("sh", "-c", script).returncode == 0
    assert [(entry.path, entry.uid) for entry in volume.listdir()] == [("mine", 0), ("theirs", 33)]
assert (Path.home() / "mine").stat().st_uid == os.getuid()
assert os.listdir(engine.layers.path / "volumes") == []
print("done")
"""

ALLOW_LISTS = f"""
import openmodal

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
with openmodal.Sandbox.create(image=image, timeout=60, outbound_cidr_allowlist=["{PUBLIC}", "127.0.0.1"]) as sandbox:
    for address, expected in (("{PUBLIC}", "ping"), ("{OTHER}", ""), ("127.0.0.1", "")):
        said = sandbox.exec("timeout", "10", "nc", address, "{ECHO}", stdin="ping").stdout.read()
        assert said == expected, (address, said)
    assert [record.allowed for record in sandbox.egress_log()] == [True, False]
print("done")
"""

CLEARING = """
import os, signal, sys, time
from pathlib import Path
import openmodal
from openmodal._dual import run_sync
from openmodal.engines import load
from openmodal.engines.embedded import launch

engine = load("embedded")
image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
image = image.run_commands("mkdir -p /home/x/y; touch /home/x/y/file; chown -R 1000:1000 /home/x; chmod 700 /home/x")

def bury():
    sandbox = openmodal.Sandbox.create(image=image, timeout=60, block_network=True)
    sandbox.exec("sh", "-c", "mkdir -p /a/b; touch /a/b/file; chown -R 1000:1000 /a; chmod 0 /a/b /a")
    folder = engine._uppers.folder(sandbox.id)
    os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
    while engine.store.alive(sandbox.id):
        time.sleep(0.01)
    try:
        list((folder / "upper" / "a").iterdir())
    except PermissionError:
        return sandbox, folder
    raise AssertionError("the control: this user can look into it")

for way in ("poll", "terminate", "gc"):
    sandbox, folder = bury()
    owner = (folder / "upper" / "a").stat().st_uid
    {"poll": sandbox.poll, "terminate": sandbox.terminate, "gc": engine.gc}[way]()
    assert not folder.exists(), way
    assert sandbox.poll() == 137, way
assert engine.prune(unused_for=0.0).layers == 4
assert list((engine.layers.path / "layers").iterdir()) == []
print(owner)
"""

CANCELLING = """
import asyncio
import openmodal
from openmodal.engines import load

image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image.build()

async def main():
    for number in range(23):
        creating = asyncio.ensure_future(openmodal.Sandbox.create.aio(image=image, timeout=60, block_network=True))
        await asyncio.sleep(0.003 * number)
        creating.cancel()
        try:
            await (await creating).terminate.aio()
        except asyncio.CancelledError:
            pass

asyncio.run(main())
load("embedded").gc()
print("done")
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of the user's own on a disk, with the package in it: the checkout may be where only root may look."""
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir="/var/tmp"))
    for name in ("openmodal", "msgspec", "e2b_dockerfile_utils"):
        source = Path(str(__import__(name).__file__)).parent
        shutil.copytree(source, folder / "python" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    yield folder
    shutil.rmtree(folder)


def _interpreter() -> str:
    """A Python of this version that the user may start: a root's own may be below /root."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        # By way of `env`: setpriv itself executes with root's rights, for the last time.
        probe = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env", path, "-c", ""]
        if os.path.exists(path) and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip("there is no Python that a plain user may start")


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_sandboxes_work_for_a_plain_user(home: Path) -> None:
    run_as_user(home, PROGRAM)


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_files_of_a_plain_users_other_ids_are_given_away_by_their_owners_and_removed(home: Path) -> None:
    """A daemon and a registry got the user's number for root's; a layer with a folder that he may not look into stayed."""
    run_as_user(home, OWNERS, machine=RANGES, OPENMODAL_ALLOW_DEGRADED="limits")


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("machine", [ALONE, RANGES], ids=["single", "sub"])
def test_a_plain_user_keeps_resets_and_reaches_sandboxes(home: Path, machine: str) -> None:
    run_as_user(home, FEATURES, machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_plain_user_without_a_registry_has_debian(home: Path) -> None:
    """mmdebstrap's root was another id, which could not reach the user's folder."""
    run_as_user(home, DEBIAN, machine=SUBIDS, seconds=500, OPENMODAL_BASE="packages")


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_allow_lists_work_for_a_plain_user(home: Path, tmp_path: Path) -> None:
    """The gate is then on this machine's network, and itself all that keeps the sandbox from what is listed but never reached."""
    with apart(tmp_path) as there:
        run_as_user(home, ALLOW_LISTS, OPENMODAL_ALLOW_DEGRADED="limits")
        assert [hit for hit in there.net.hits() if not hit.startswith("name")] == [f"{PUBLIC}:{ECHO}"]


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("machine", "owner"), [(ALONE, USER), (RANGES, 2000999)], ids=["single", "sub"])
def test_a_plain_user_can_clear_away_whatever_a_sandbox_has_made(home: Path, machine: str, owner: int) -> None:
    """J20: poll, terminate and gc raised PermissionError for good: folders without rights, and files of ids that are not the user's."""
    run_as_user(home, CLEARING, expected=f"{owner}\n", machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")


@pytest.mark.root
@pytest.mark.embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("machine", [ALONE, RANGES], ids=["single", "sub"])
def test_cancelled_creations_leave_a_plain_user_nothing(home: Path, machine: str) -> None:
    """J20: of 23, 7 left a folder that nobody could remove."""
    run_as_user(home, CANCELLING, machine=machine, OPENMODAL_ALLOW_DEGRADED="limits")


def run_as_user(
    home: Path, program: str, *, expected: str = "done\n", machine: str = TUN, seconds: float = 300, **variables: str
) -> None:
    """Run a program of the SDK as a plain user, with the state in that home; nothing of its sandboxes may be left."""
    assert run_as(home, program, machine=machine, seconds=seconds, **variables) == expected
    assert list((home / "state").glob("sandboxes/*")) == []
    assert openmodal.Sandbox.list() == [], "another user's sandboxes are not root's"


def run_as(home: Path, program: str, *, machine: str = TUN, seconds: float = 300, **variables: str) -> str:
    """What a program of the user's prints, which has to end well. `machine`: what root's shell does to its view of it before."""
    become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    command = ["unshare", "--mount", "sh", "-c", f'{machine}; exec "$@"', "sh", *become, _interpreter(), "-c", program]
    environment = {
        "HOME": str(home),
        "OPENMODAL_HOME": str(home / "state"),
        "PYTHONPATH": str(home / "python"),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    done = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
