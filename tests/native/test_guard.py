"""The guard of what sandboxes share, the disk and memory of sockets: who fills it ends, and the
others go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import TEMPORARY
from tests.native.test_box import BUSYBOX, MIB, Box, Host, host, public_program, root_host
from tests.native.test_box import _gone as gone

__all__ = ["host", "public_program", "root_host"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.feature("box"),
    pytest.mark.may_leave("/tmp/om-box-*"),
]

MOST = 64 * MIB


def write(box: Box, mebibytes: int, file: str = "/file") -> None:
    box.run(f"/bin/busybox dd if=/dev/zero of={file} bs=1048576 count={mebibytes} 2>/dev/null && /bin/busybox sync")


def ended(box: Box) -> str:
    """Why a box has ended; it takes a look, a count, and another look."""
    assert gone(box.pid, within=30), "it goes on"
    record = box.wait_for_record()
    assert int(record["size"]) > 0
    return record["reason"]


WAYS = {
    "one file": "/bin/busybox dd if=/dev/zero of=/file bs=1048576 count=96",
    "many": "for i in $(/bin/busybox seq 96); do /bin/busybox dd if=/dev/zero of=/file$i bs=1048576 count=1; done",
    "deep": "for i in $(/bin/busybox seq 1000); do mkdir d; cd -P d; done; /bin/busybox dd if=/dev/zero of=f bs=1048576 count=96",
    "unreadable": "mkdir d; /bin/busybox dd if=/dev/zero of=d/f bs=1048576 count=96; chmod 0 d",
}


@pytest.mark.parametrize("way", WAYS)
def test_who_writes_more_than_the_guard_allows_ends_with_the_reason_disk(host: Host, way: str) -> None:
    box, other, free = host.start(guard=str(MOST)), host.start(guard=str(MOST)), host.start()
    with contextlib.suppress(Exception):  # the box may end in the middle of it
        box.run(f"({WAYS[way]}) 2>/dev/null; /bin/busybox sync; sleep 60")
    assert ended(box) == "disk"
    write(free, 96)  # the control: nothing guards it
    assert [one.run("echo alive") for one in (other, free)] == ["alive\n"] * 2


def test_files_without_a_name_count(root_host: Host) -> None:
    group = (
        Path("/sys/fs/cgroup/pids" if Path("/sys/fs/cgroup/pids").exists() else "/sys/fs/cgroup")
        / f"om-guard-{os.getpid()}"
    )
    box = root_host.start(guard=str(MOST), cgroup=[str(group)])
    script = "exec 9>/f; /bin/busybox rm /f; /bin/busybox dd if=/dev/zero bs=1048576 count=96 >&9; sleep 60"
    with contextlib.suppress(Exception):
        box.run(script)
    assert ended(box) == "disk"


def test_links_of_one_file_count_once(root_host: Host) -> None:
    box = root_host.start(guard=str(MOST))
    write(box, 32)
    box.run("for i in $(/bin/busybox seq 50); do /bin/busybox ln /file /link$i; done")
    write(box, 8, "/more")
    assert not gone(box.pid, within=5)


def test_folders_that_are_counted_too_count(root_host: Host, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("counted", "free")]
    for folder in folders:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    binds = [f"{folder}\t/{folder.name}\trw" for folder in folders]
    box = root_host.start(guard=str(MOST), bind=binds, counted=[str(folders[0])])
    write(box, 96, "/free/file")
    assert not gone(box.pid, within=5), "the control: this one does not count"
    with contextlib.suppress(Exception):
        write(box, 96, "/counted/file")
    assert ended(box) == "disk"


@pytest.mark.parametrize("most", [100_000, MOST])
def test_whose_sockets_hold_more_than_the_guard_allows_ends_with_the_reason_sockets(host: Host, most: int) -> None:
    box = host.start(sockets=str(most))
    reader = "/bin/busybox nc -l -p 7000 -e /bin/busybox sleep 60"
    writer = "/bin/busybox head -c 200000 /dev/zero | /bin/busybox nc 127.0.0.1 7000"
    box.run(f"({reader} & /bin/busybox sleep 1; {writer}) >/dev/null 2>&1 & echo started")
    if most == MOST:
        assert not gone(box.pid, within=5), "the control: it may have so much"
    else:
        assert ended(box) == "sockets"


@contextlib.contextmanager
def on_a_disk(program: Path, options: str) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    host = Host(program, folder, "range")
    yield host
    host.close()
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture
def small(root_host: Host) -> Iterator[Host]:
    """On a file system that is nearly full from the beginning: it has less than what is kept free."""
    with on_a_disk(root_host.program, "size=400m") as host:
        yield host


def test_when_the_disk_is_nearly_full_the_one_with_most_on_it_ends(small: Host) -> None:
    more, less = (small.start(guard=str(512 * MIB)) for _ in range(2))
    other = small.folder / "other" / "disk.bytes"  # what another's guard has counted
    other.parent.mkdir()
    other.write_text(f"{1 << 40} {small.folder.stat().st_dev}")
    write(less, 16)
    write(more, 80)
    assert not gone(more.pid, within=4), "another has more"
    other.write_text(f"{1 << 40} {os.stat('/proc').st_dev}")  # on another disk
    with contextlib.suppress(Exception):
        write(more, 80, "/file2")
    assert ended(more) == "disk"
    assert less.run("echo alive") == "alive\n", "what has little is not to blame"


def test_what_is_written_to_a_volume_counts_only_when_the_disk_is_nearly_full(small: Host, root_host: Host) -> None:
    folders = {host: host.folder / "volume" for host in (small, root_host)}
    for folder in folders.values():
        folder.mkdir()
    lines = {host: f"{folder}\t.\t/data\trw\t-" for host, folder in folders.items()}
    roomy, filler = (host.start(guard=str(MOST), volume=[lines[host]]) for host in (root_host, small))
    reader = small.start(guard=str(MOST), volume=[lines[small].replace("\trw\t", "\tro\t")])
    write(roomy, 96, "/data/file")
    with contextlib.suppress(Exception):
        write(filler, 96, "/data/file")
    assert ended(filler) == "disk"
    assert [box.run("echo alive") for box in (roomy, reader)] == ["alive\n"] * 2


def test_who_leaves_no_files_to_others_ends(root_host: Host) -> None:
    """Empty ones, of which a disk has a number; on one with room for more, as many are fine."""
    with on_a_disk(root_host.program, "size=16g,nr_inodes=4000") as few:
        filler, other, roomy = few.start(guard=str(MOST)), few.start(guard=str(MOST)), root_host.start(guard=str(MOST))
        for box in (roomy, filler):
            with contextlib.suppress(Exception):
                box.run("mkdir /d; cd /d; for i in $(/bin/busybox seq 3850); do : >$i; done")
        assert ended(filler) == "disk"
        assert [box.run("echo alive") for box in (other, roomy)] == ["alive\n"] * 2
