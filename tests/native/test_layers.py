"""What a supervisor does with the files of a sandbox that runs: it copies and resets them."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.native.test_agent import eventually
from tests.native.test_box import BUSYBOX, Box, Host, _children, _reachable, _status, public_program, root_host

__all__ = ["public_program", "root_host"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.feature("box"),
    pytest.mark.may_leave("/tmp/om-box-*"),
]

UNIFIED = next(path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if path.is_dir())
FREEZER = Path("/sys/fs/cgroup/freezer")


NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def grouped(host: Host, version: int = 2, **keys: str | list[str]) -> Box:
    """A box whose processes can be stopped."""
    name = f"om-layers-{os.getpid()}-{len(host.running)}"
    if version == 1:
        return host.start(cgroup=[f"{FREEZER}/{name}"], thaw=f"{FREEZER}/{name}/freezer.state", **keys)
    return host.start(cgroup=[f"{UNIFIED}/{name}"], kill=[f"{UNIFIED}/{name}/cgroup.kill"], **keys)


@pytest.fixture(params=[1, 2])
def box(request: pytest.FixtureRequest, root_host: Host) -> Box:
    if not (UNIFIED / "cgroup.procs" if request.param == 2 else FREEZER).exists():
        pytest.skip("this machine has no control groups of that version")
    return grouped(root_host, request.param)


def ask(box: Box, line: str, *layers: Path, listed: bool = False, lock: int = -1) -> str:
    """Send a request and return the answer, "" if the connection ended without one."""
    file = os.memfd_create("layers")
    os.write(file, b"".join(bytes(layer) + b"\0" for layer in layers))
    fds = [file] if layers or listed else []
    with socket.socket(socket.AF_UNIX) as client, _reachable(box.dir) as folder:
        client.settimeout(60)
        client.connect(f"{folder}/control.sock")
        socket.send_fds(client, [line.encode() + b"\n"], [*fds, lock] if lock >= 0 else fds)
        os.close(file)
        answer = client.recv(4096).decode()
        assert client.recv(1) == b""
        return answer.strip()


def copied(box: Box, name: str = "copy") -> Path:
    target = box.dir.parent / f"{box.dir.name}-{name}"
    answer = ask(box, f"copy {target}")
    assert answer.startswith("ok "), answer
    return target


def listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that can be seen of a tree from outside."""
    inodes: dict[int, str] = {}
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        info, name = path.lstat(), str(path.relative_to(folder))
        kind = stat.S_IFMT(info.st_mode)
        found[name] = (
            oct(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_rdev,
            info.st_mtime_ns,
            "" if kind == stat.S_IFDIR else inodes.setdefault(info.st_ino, name),
            os.readlink(path) if kind == stat.S_IFLNK else "",
            (info.st_size, path.read_bytes()) if kind == stat.S_IFREG else (),
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


MAKE = """
mkdir -p /a/b /a/odd && echo one > /a/b/one && /bin/busybox ln /a/b/one /a/two && /bin/busybox ln -s /nowhere /a/link
/bin/busybox mkfifo /a/pipe; echo x > "/a/odd/ a
b"; echo suid > /a/suid && /bin/busybox chown 33:65534 /a/suid && chmod 4751 /a/suid; chmod 1777 /a/odd
/bin/busybox dd if=/dev/zero of=/a/sparse bs=1 count=1 seek=8388607 2>/dev/null; echo y >> /a/sparse
/bin/busybox dd if=/dev/urandom of=/a/large bs=1048576 count=3 2>/dev/null; echo end >> /a/large
/bin/busybox rm /etc/group; /bin/busybox rm -r /bin/cat /opt; mkdir /opt; echo new > /opt/new; touch /empty
/bin/busybox touch -d 2001-02-03 /a/b
"""


def test_a_copy_has_all_that_the_upper_folder_has(root_host: Host, box: Box) -> None:
    (root_host.image / "opt").mkdir()
    (root_host.image / "opt" / "old").touch()
    box.run(MAKE)
    os.setxattr(box.dir / "upper" / "a" / "b", "trusted.name", b"of a folder")
    os.setxattr(box.dir / "upper" / "a" / "large", "user.name", b"of a file")
    seen = listing(box.dir / "upper")
    copy = copied(box)
    assert listing(copy) == seen == listing(box.dir / "upper")
    assert stat.S_ISCHR((copy / "etc" / "group").lstat().st_mode)
    assert os.getxattr(copy / "opt", "trusted.overlay.opaque") == b"y"
    assert (copy / "a" / "sparse").stat().st_blocks < 100
    assert box.run("echo goes on") == "goes on\n"


def test_a_deep_tree_is_copied_although_descriptors_are_few(root_host: Host) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    box = grouped(root_host)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    deep = "d/" * 200
    box.run("".join(3 * [f"/bin/busybox mkdir -p {deep}; cd {deep}; "]) + "echo deep > file")
    at = copied(box)
    for _ in range(3):
        at = at.joinpath(*["d"] * 200)
    assert (at / "file").read_text() == "deep\n"
    subprocess.run(["rm", "-r", str(at.parents[598])], check=True)  # Python's own way is not for such depths


def test_ids_in_access_lists_are_those_of_the_layer(root_host: Host, tmp_path: Path) -> None:
    """On a disk of the sandbox's own, ids are as the machine sees them."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    box = grouped(root_host, disk=str(disk))
    box.run("echo x > /file; mkdir /folder")
    base = Path(f"/proc/{box.init}/root").stat().st_uid
    root = f"/proc/{box.init}/root"
    entries = [(1, 6, -1), (2, 4, base + 33), (4, 4, -1), (8, 4, base + 44), (16, 4, -1), (32, 4, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, mode, id & 0xFFFFFFFF) for tag, mode, id in entries)
    os.setxattr(f"{root}/file", "system.posix_acl_access", acl)
    os.setxattr(f"{root}/folder", "system.posix_acl_default", acl)
    # Version 3 of file capabilities names a root, too: here cap_net_bind_service of the sandbox's.
    os.setxattr(f"{root}/file", "security.capability", struct.pack("<6I", 0x03000001, 1 << 10, 0, 0, 0, base))
    copy = copied(box)
    assert len(os.getxattr(copy / "file", "security.capability")) == 20, "of the root 0, which is told as version 2"
    for name, kind in (("file", "access"), ("folder", "default")):
        found = os.getxattr(copy / name, f"system.posix_acl_{kind}")
        assert [id for tag, _, id in struct.iter_unpack("<HHI", found[4:]) if tag in (2, 8)] == [33, 44]


@pytest.mark.skipif(not (UNIFIED / "cgroup.procs").exists(), reason="needs control groups of version 2")
def test_groups_of_another_sandbox_are_not_touched(root_host: Host) -> None:
    """Two state folders may choose one id in the same instant."""
    box = grouped(root_host)
    taken = {key: box.plan[key] for key in ("cgroup", "kill")}
    other = root_host.box(**taken).start()
    assert other.said.startswith("error taken cannot make the cgroup ")
    assert box.run("echo goes on") == "goes on\n"


def test_what_writes_is_stopped_for_a_copy_and_goes_on(box: Box) -> None:
    link = box.link()
    link.start("/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >> /lines; echo $i > /now; done")
    copies = []
    for number in range(5):
        copies.append(copied(box, str(number)))
        at = int(box.run("cat /now") or 0)
        deadline = time.monotonic() + 20
        while int(box.run("cat /now") or 0) <= at:
            assert time.monotonic() < deadline, "it does not go on"
    link.close()
    before = 0
    for copy in copies:
        lines = (copy / "lines").read_text().splitlines() if (copy / "lines").exists() else []
        assert lines == [str(number) for number in range(1, len(lines) + 1)]
        assert len(lines) >= before
        before = len(lines)
    assert before > 0


def test_a_copy_that_finds_the_disk_full_leaves_nothing(box: Box, small: Path) -> None:
    box.run("/bin/busybox dd if=/dev/zero of=/large bs=1048576 count=8 2>/dev/null; mkdir /other; echo x > /other/x")
    assert ask(box, f"copy {small}/copy").startswith("error space cannot copy ")
    assert not list(small.iterdir())
    assert box.run("cat /other/x") == "x\n"
    assert (copied(box) / "large").stat().st_size == 8 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_copier_that_is_killed_leaves_nothing_stopped(box: Box) -> None:
    box.run("mkdir /many; i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo $i > /many/$i; done")
    before, answers = set(_children(box.pid)), []
    asking = threading.Thread(target=lambda: answers.append(ask(box, f"copy {box.dir.parent}/copy")))
    asking.start()
    while not (new := set(_children(box.pid)) - before):
        assert asking.is_alive()
    os.kill(new.pop(), signal.SIGKILL)
    asking.join()
    assert answers[0].startswith("error internal the process that was to do it was killed")
    assert box.run("echo goes on") == "goes on\n"
    assert len(list((copied(box, "again") / "many").iterdir())) == 600


def test_one_request_waits_for_no_other(root_host: Host) -> None:
    box = grouped(root_host)
    box.run("mkdir /many; i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i > /many/$i; done")
    answers: list[str] = []
    both = [threading.Thread(target=lambda n=n: answers.append(ask(box, f"copy {box.dir}-{n}"))) for n in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(answer.split()[0] for answer in answers) in (["error", "ok"], ["ok", "ok"])
    assert all(answer.startswith(("ok ", "error busy another ")) for answer in answers)


def test_what_cannot_be_stopped_is_named(root_host: Host, tmp_path: Path) -> None:
    """A process that waits for a disk is not stopped, and nobody waits for it for ever."""
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", "16M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    box = grouped(root_host, bind=[f"{mounted}\t/disk\trw"])
    link = box.link()
    try:
        subprocess.run(["fsfreeze", "-f", mounted], check=True)
        link.start("/bin/busybox", "touch", "/disk/file")
        time.sleep(0.2)
        answer = ask(box, f"copy {tmp_path}/copy")
        assert answer.startswith("error busy process ") and "(busybox) of the sandbox does not stop" in answer, answer
        assert box.run("echo goes on") == "goes on\n"
    finally:
        subprocess.run(["fsfreeze", "-u", mounted], check=True)
        link.close()
    assert (copied(box) / "disk").is_dir()
    box.end()
    subprocess.run(["umount", mounted], check=True)


def test_files_on_a_disk_of_its_own_are_copied_and_reset(root_host: Host, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["truncate", "-s", "16M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    box = grouped(root_host, disk=str(disk))
    box.run("mkdir /d; echo x > /d/file; /bin/busybox chown 33:65534 /d/file; /bin/busybox rm /etc/group")
    found = listing(copied(box))
    assert found["d/file"][1:3] == (33, 65534)
    assert (found["d"][1], found["etc/group"][3]) == (0, 0)
    assert ask(box, "reset", listed=True) == "ok"
    assert box.run("ls /d 2>&1 | /bin/busybox wc -l; cat /etc/group") == "1\nroot:x:0:\n"
    assert set(listing(copied(box, "again"))) == {".", "tmp"}


def test_without_groups_nothing_is_copied(root_host: Host) -> None:
    box = root_host.start()
    assert ask(box, f"copy {box.dir}-copy").startswith("error unsupported nothing can stop ")
    assert ask(box, "copy relative").startswith("error plan expected an absolute path ")
    assert not Path(f"{box.dir}-copy").exists()


def test_layers_are_copied_into_one_as_an_overlay_shows_them(root_host: Host) -> None:
    """The kernel makes the same of three uppers and of their copy."""
    scripts = [
        "mkdir -p /d/e /gone /file; echo old > /d/one; echo two > /d/two; echo x > /gone/x; mkdir /bin/new",
        "echo new > /d/one; /bin/busybox rm -r /gone /file /etc/group; mkdir /gone; echo y > /gone/y; echo f > /file",
        "/bin/busybox rm /d/two; echo z > /d/e/z; /bin/busybox rm /file; mkdir /file; echo g > /etc/group; chmod 700 /d",
    ]
    layers: list[Path] = []
    for script in scripts:
        box = grouped(root_host, lower=[*map(str, layers), str(root_host.image)])
        box.run(script)
        layers.insert(0, copied(box))
    show = "cd / && /bin/busybox find d gone file bin etc | /bin/busybox sort; cat d/one d/e/z gone/y etc/group; stat -c %a d"
    stacked = grouped(root_host, lower=[*map(str, layers), str(root_host.image)])
    merged = root_host.folder / "merged"
    assert ask(stacked, f"merge {merged}", *layers).startswith("ok ")
    flat = grouped(root_host, lower=[str(merged), str(root_host.image)])
    assert flat.run(show) == stacked.run(show)
    assert flat.run("cat /d/one; ls /gone /file; test -e /d/two || echo gone") == "new\n/file:\n\n/gone:\ny\ngone\n"


# ----------------------------------------------------------------------------------------- resets


def test_after_a_reset_everything_is_new(root_host: Host, box: Box) -> None:
    inside = "hostname; ls /new /dev/shm /tmp; cat /etc/group; touch /again"
    first = box.run(inside)
    link = box.link()
    link.start("/bin/sh", "-c", "trap '' TERM HUP; sleep 1000 & sleep 1000")
    box.run("mkdir /new; touch /dev/shm/x /tmp/x; echo changed > /etc/group; /bin/busybox rm /bin/cat")
    assert box.run("/bin/busybox cat /etc/group; ls /dev/shm") == "changed\nx\n"  # the control
    before = counted(box)
    # Held, for the kernel gives the number of one that is gone to the next.
    held = [os.open(f"/proc/{box.init}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    assert ask(box, "reset", listed=True) == "ok"
    init = next(pid for pid in _children(box.pid) if len(_status(pid).get("NSpid", "").split()) > 1)
    for name, fd in zip(NAMESPACES, held, strict=True):
        assert os.fstat(fd).st_ino != os.stat(f"/proc/{init}/ns/{name}").st_ino, name
        os.close(fd)
    second = box.run(inside)
    assert second == first
    with pytest.raises((OSError, AssertionError, EOFError)):
        link.run("/bin/true")
    link.close()
    for _ in range(3):
        assert ask(box, "reset", listed=True) == "ok"
    box.run("true")
    assert eventually(lambda: counted(box) == before, 10), (counted(box), before)
    assert box.end()["reason"] == "terminated"


def counted(box: Box) -> tuple[int, int, int]:
    """Descriptors, children and mounts, when what the last request has started is gone."""
    deadline = time.monotonic() + 10
    while len(_children(box.pid)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(os.listdir(f"/proc/{box.pid}/fd")), len(_children(box.pid)), len(_mounts())


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_a_reset_to_layers_shows_them(root_host: Host) -> None:
    box = grouped(root_host)
    box.run("echo kept > /kept; /bin/busybox rm /etc/group")
    layer = copied(box, "layer")
    lock = os.open(layer, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    box.run("echo lost > /lost")
    assert ask(box, "reset", layer, lock=lock) == "ok"
    os.close(lock)
    assert box.run("cat /kept; ls /lost /etc/group 2>&1 | /bin/busybox wc -l") == "kept\n2\n"
    assert locked(layer)
    assert ask(box, "reset", listed=True) == "ok"
    assert not locked(layer)
    assert box.run("ls /etc/group; ls /kept 2>&1 | /bin/busybox wc -l") == "/etc/group\n1\n"


def locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_the_main_command_starts_again_and_the_deadline_stays(root_host: Host) -> None:
    box = grouped(root_host, arg=["/bin/sh", "-c", "echo begun; sleep 1000"], timeout_ms="3000")
    begun = time.monotonic()
    for _ in range(2):
        time.sleep(0.5)
        assert ask(box, "reset", listed=True) == "ok"
    assert box.control(b"w")["reason"] == "timeout"
    assert time.monotonic() - begun < 10
    assert Path(f"{box.record}.stdout").read_text() == "begun\n"


def test_a_reset_that_fails_ends_the_sandbox_and_tells_why(root_host: Host) -> None:
    box = grouped(root_host)
    answer = ask(box, "reset", Path("/nowhere/layer"))
    assert answer == "error image cannot mount /nowhere/layer: No such file or directory"
    record = box.wait_for_record()
    assert (record["reason"], record["returncode"]) == ("error", "137")


def test_requests_without_layers_are_refused(root_host: Host) -> None:
    box = grouped(root_host)
    assert ask(box, "reset") == "error plan the request needs a file with a list of layers"
    assert ask(box, "reset", Path("relative")) == "error plan layers: expected at most 400 absolute paths"
    assert box.run("echo goes on") == "goes on\n"


def test_who_connects_during_a_reset_waits_and_is_not_refused(root_host: Host) -> None:
    box = grouped(root_host)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(box, "reset", listed=True) for _ in range(5)))
    asking.start()
    while asking.is_alive():
        with socket.socket(socket.AF_UNIX) as client, _reachable(box.dir) as folder:
            client.connect(f"{folder}/agent.sock")
        time.sleep(0.005)
    asking.join()
    assert answers == ["ok"] * 5
    assert box.run("echo goes on") == "goes on\n"
