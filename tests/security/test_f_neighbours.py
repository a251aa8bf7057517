"""F. The machine's files and IPC, and the neighbours: another sandbox of the same user."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal import _config
from openmodal.engines.embedded import Embedded
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.security import attack
from tests.security.attack import DENIED, call, sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]

IPC_CREAT, IPC_RMID = 0o1000, 0


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A word in files of the machine and in the environment of the process that makes sandboxes."""
    word = secrets.token_hex(16)
    files = [Path(folder) / f"om-canary-{word}" for folder in ("/root", "/var/tmp")]
    for file in files:
        file.write_text(word)
        file.chmod(0o600)
    monkeypatch.setenv("OM_CANARY", word)
    yield word
    for file in files:
        file.unlink()


def test_nothing_of_the_machine_is_found(create: Create, canary: str) -> None:
    """F1: no file, no variable of the maker."""
    sandbox = create()
    pattern = f"{canary[:16]}[{canary[16]}]"  # does not match itself
    script = (
        f"find / -xdev -name 'om-canary*' 2>/dev/null; grep -rl {pattern} /proc/*/environ /etc /root /tmp 2>/dev/null"
    )
    assert sh(sandbox, script) == ""
    sh(sandbox, f"echo {canary} > /root/om-canary-own")
    assert len(sh(sandbox, script).split()) == 2, "the control"


def test_overlays_own_attributes_mean_nothing(create: Create, bare: Sandbox) -> None:
    """F2: `trusted.` may not be set, and `user.` is data."""
    sandbox = create()
    assert call(sandbox, "setxattr", "s:/etc", "s:trusted.overlay.opaque", "s:y", 1, 0) in (*DENIED, 95)
    assert call(sandbox, "setxattr", "s:/dev/shm", "s:trusted.om", "s:y", 1, 0) in (*DENIED, 95)
    assert call(bare, "setxattr", "s:/dev/shm", "s:trusted.om", "s:y", 1, 0) == 0, "the control"
    for name, value in (("opaque", "y"), ("redirect", "/../../root"), ("whiteout", "y")):
        call(sandbox, "setxattr", "s:/etc", f"s:user.overlay.{name}", f"s:{value}", len(value), 0)
    assert "passwd" in sh(sandbox, "ls /etc")
    assert "passwd" in sh(create(), "ls /etc")


def test_changes_stay_in_the_sandboxs_own_layer(engine: Embedded, create: Create) -> None:
    """F4: a hard link to the image's file, its mode, its place."""

    def image_files() -> str:
        found = sorted((engine.layers.path / "layers").rglob("etc/passwd"))
        assert found
        return str([(str(path), path.stat().st_mode, path.read_bytes()) for path in found])

    before = image_files()
    sandbox, neighbour = create(), create()
    assert works(
        sandbox, "ln /etc/passwd /tmp/p; chmod 777 /tmp/p; echo x >> /tmp/p; mv /etc/group /tmp; mv /bin/busybox /bin/b"
    )
    assert image_files() == before
    assert not works(neighbour, "grep -q ^x /etc/passwd")
    assert works(neighbour, "test -x /bin/busybox && test -e /etc/group")


def test_a_set_user_id_file_is_out_of_reach_of_other_users(engine: Embedded, create: Create) -> None:
    """F5: the folder is the user's alone."""
    sandbox = create()
    sh(sandbox, "mkdir /evil; cp /bin/busybox /evil; chmod 4755 /evil/busybox")
    file = engine._uppers.folder(sandbox.id) / "upper" / "evil" / "busybox"
    assert file.stat().st_mode & stat.S_ISUID, "the control: it is there"
    # The shell between them: setpriv itself keeps its capabilities until it has become another
    # program.
    drop = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", 'exec "$@"', "sh"]
    for program in (["stat", str(file)], [str(file), "true"]):
        assert subprocess.run([*drop, *program], capture_output=True, check=False).returncode != 0
        assert subprocess.run(program, capture_output=True, check=False).returncode == 0, "the control"


def test_an_extra_mount_can_be_read_only(weaken: Weaken, tmp_path: Path) -> None:
    """F7: volumes are for later; builds' caches are mounts of this kind."""
    tmp_path.chmod(0o777)
    sandbox = weaken(extra=[("bind", f"{tmp_path}\t/fixed\tro"), ("bind", f"{tmp_path}\t/free\trw")])
    for script in ("touch /fixed/x", "mount -o remount,rw /fixed", "mount -o remount,bind,rw /fixed"):
        assert not works(sandbox, script), script
    assert works(sandbox, "touch /free/x"), "the control"


def test_mounts_of_the_machine_do_not_come_in(weaken: Weaken, tmp_path: Path) -> None:
    """F8: also below a folder that is shown; and nothing goes out."""
    sandbox = weaken(binds=[(str(tmp_path), "/shown")])
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "below")], check=True)
    try:
        (tmp_path / "below" / "file").touch()
        (tmp_path / "beside").touch()
        assert sh(sandbox, "ls /shown").split() == ["below", "beside"], "the control: files do"
        assert sh(sandbox, "ls /shown/below") == ""
    finally:
        subprocess.run(["umount", str(tmp_path / "below")], check=True)
    assert call(sandbox, "mount", 0, "s:/", 0, 1 << 20, 0) in DENIED


def test_abstract_sockets_of_the_machine_are_out_of_reach(inside: Sandbox, weaken: Weaken) -> None:
    """F10: they belong to the network namespace (CVE-2020-15257)."""
    name = f"om-canary-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        assert not works(inside, f"probe abstract {name}")
        assert works(weaken(net=[("net", "host")]), f"probe abstract {name}"), "the control"


def test_shared_memory_and_queues_are_its_own(inside: Sandbox) -> None:
    """F11: System V and POSIX."""
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0x0C0FFEE0, 4096, IPC_CREAT | 0o600)
    assert segment >= 0
    shared = Path("/dev/shm") / f"om-canary-{secrets.token_hex(8)}"
    shared.touch()
    try:
        assert len(Path("/proc/sysvipc/shm").read_text().splitlines()) > 1, "the control"
        assert len(sh(inside, "cat /proc/sysvipc/shm").splitlines()) == 1
        assert sh(inside, "ls -A /dev/shm /dev/mqueue").split() == ["/dev/mqueue:", "/dev/shm:"]
    finally:
        shared.unlink()
        libc.shmctl(segment, IPC_RMID, None)


@pytest.mark.parametrize("user", ["root", "agent"])
def test_kill_all_ends_its_own_processes_only(engine: Embedded, create: Create, user: str) -> None:
    """F13: the neighbour, the agent and the supervisor live."""
    sandbox, neighbour = create(), create()
    victim = sandbox.spawn("sleep", "54321", user=user)
    spared = neighbour.spawn("sleep", "54321", user=user)
    boss = attack.supervisor(engine, sandbox)
    sandbox.exec("sh", "-c", "kill -9 -1", user=user)
    assert victim.wait() == 137
    assert spared.poll() is None
    assert attack.supervisor(engine, sandbox) == boss
    assert sh(sandbox, "echo alive") == "alive\n"


def test_neighbours_see_nothing_of_each_other(create: Create) -> None:
    """F14: no command line, file or port."""
    word = secrets.token_hex(8)
    one, other = create(), create()
    one.spawn("sh", "-c", f"sleep 54321; : {word}")
    sh(one, f"echo {word} > /tmp/{word}")
    one.spawn("nc", "-l", "-p", "7777")
    pattern = f"{word[:8]}[{word[8]}]"  # does not match itself
    script = f"grep -l {pattern} /proc/[0-9]*/cmdline; find / -xdev -name '{pattern}*'; cat /proc/net/tcp* | grep :1E61"
    eventually(lambda: len(sh(one, script).splitlines()) >= 3)  # the control
    assert sh(other, script) == ""


@pytest.mark.parametrize("kind", ["inotify", "signals", "pipes"])
def test_what_is_counted_per_user_is_counted_per_sandbox(create: Create, kind: str) -> None:
    """F16: else one could use up what others, and root of this machine, may have.

    The namespaces were once made by root, for whom the kernel counts, too: 1,024 inotify instances
    in one sandbox left none for anybody.
    """
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()) if kind == "inotify" else 4096
    greedy, other = create(), create()
    taken = greedy.spawn("probe", kind, "4000" if kind == "pipes" else "20000")
    got = int(taken.stdout.readline())
    assert 0 < got <= most, "the control: there is a bound, and it was reached"
    modest = other.spawn("probe", kind, "20")
    assert modest.stdout.readline() == "20\n"
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init()
    assert fd >= 0, "the machine's root has some left"
    os.close(fd)


def test_locks_on_the_images_files_do_not_meet(create: Create) -> None:
    """F17: neighbours lock copies."""
    one, other = create(), create()
    lock = f"exec 9</etc/passwd; probe call {attack.numbers()['flock']} 9 6"
    holder = one.spawn("sh", "-c", f"{lock}; sleep 54321")
    assert holder.stdout.readline() == "OK 0\n"
    assert not works(one, lock), "the control"
    assert works(other, lock)


def test_the_store_is_for_its_owner_only() -> None:
    """F5: the folder that all of the above rests on."""
    assert _config.state().stat().st_mode & 0o077 == 0
