"""What the agent promises in docs/protocol.md about files, held against the real program."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.conftest import Agent
from tests.native.frames import Closed, Entry, Link, Refused, entry_frame, file_frame, frame

STAT, LIST, MKDIR, REMOVE, READ, WRITE, PULL, PUSH, RENAME = range(1, 10)
HOLES = 12
CHUNK, END, HOLE = 0x41, 0x42, 0x43
HOSTILE = [b"new\nline", b"\xff\xfe", b"-rf", b"sp ace", "ü\u202e".encode(), b"..x", b"$(x)", b"'"]


def refused(number: int, ask: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        ask()
    assert caught.value.code == 0x100 + number, caught.value


def nothing_temporary(folder: Path) -> bool:
    return not [name for name in os.listdir(folder) if name.startswith(".openmodal-")]


# ---- facts ----


def test_stat_tells_the_facts(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    file.chmod(0o4750)
    os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    entry = link.stat(str(file))
    assert entry == Entry("f", 0o4750, os.getuid(), os.getgid(), 5, 1_234_567_890_123_456_789, str(file).encode(), b"")
    (tmp_path / "link").symlink_to("file")
    assert (link.stat(f"{tmp_path}/link").kind, link.stat(f"{tmp_path}/link").target) == ("l", b"file")
    assert link.stat(f"{tmp_path}/link", follow=True).size == 5
    assert link.stat(str(tmp_path)).kind == "d" and link.stat("/dev/null").kind == "o"
    refused(errno.ENOENT, lambda: link.stat(f"{tmp_path}/none"))
    refused(errno.ENOTDIR, lambda: link.stat(f"{file}/below"))


def test_list_tells_every_child(link: Link, tmp_path: Path) -> None:
    for name in HOSTILE:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("/none")
    link.file(LIST, str(tmp_path))
    entries = [entry for entry in link.until_end() if isinstance(entry, Entry)]
    assert {entry.path: entry.kind for entry in entries} == dict.fromkeys(HOSTILE, "f") | {
        b"folder": "d",
        b"dangling": "l",
    }
    link.file(LIST, f"{tmp_path}/none")
    refused(errno.ENOENT, link.until_end)
    link.file(LIST, "/etc/passwd")
    refused(errno.ENOTDIR, link.until_end)


def test_a_relative_path_counts_from_the_working_folder(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    agent = Agent(program, tmp_path / "sock", "--workdir", str(tmp_path))
    try:
        link = agent.link()
        link.file(LIST, ".")
        assert {entry.path for entry in link.until_end() if isinstance(entry, Entry)} == {b"file", b"sock"}
        link.file(RENAME, "file", "./other")
        link.ok()
        assert (tmp_path / "other").read_text() == "text"
    finally:
        agent.stop()


def test_an_empty_path_is_refused(link: Link) -> None:
    for operation in range(1, 10):
        link.file(operation, "")
        if operation in (WRITE, PUSH):
            link.send(frame(0x42))
        with pytest.raises(Refused) as caught:
            link.ok()
        assert caught.value.code == 3
    link.file(42, "/")
    with pytest.raises(Refused) as caught:
        link.ok()
    assert caught.value.code == 5
    link.ping()


# ---- changes ----


def test_mkdir(link: Link, tmp_path: Path) -> None:
    link.file(MKDIR, f"{tmp_path}/a")
    link.ok()
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755
    link.file(MKDIR, f"{tmp_path}/b", mode=0o1777)
    link.ok()
    assert (tmp_path / "b").stat().st_mode & 0o7777 == 0o1777
    link.file(MKDIR, f"{tmp_path}/a")
    refused(errno.EEXIST, link.ok)
    link.file(MKDIR, f"{tmp_path}/x/y")
    refused(errno.ENOENT, link.ok)
    for _ in range(2):
        link.file(MKDIR, f"{tmp_path}/x/y/z", flags=1)
        link.ok()
    (tmp_path / "file").touch()
    link.file(MKDIR, f"{tmp_path}/file", flags=1)
    refused(errno.EEXIST, link.ok)


def test_remove(link: Link, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    (tree / "link").symlink_to(outside)
    link.file(REMOVE, str(tree))
    refused(errno.ENOTEMPTY, link.ok)
    link.file(REMOVE, str(tree), flags=1)
    link.ok()
    assert not tree.exists() and (outside / "keep").exists()
    link.file(REMOVE, str(tree), flags=1)
    refused(errno.ENOENT, link.ok)
    link.file(REMOVE, "/", flags=1)
    refused(errno.EBUSY, link.ok)
    link.file(REMOVE, "//tmp/..", flags=1)
    refused(errno.EBUSY, link.ok)


def test_rename(link: Link, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    link.file(RENAME, f"{tmp_path}/a", f"{tmp_path}/b\nc")
    link.ok()
    assert (tmp_path / "b\nc").read_text() == "a"
    link.file(RENAME, f"{tmp_path}/a", f"{tmp_path}/b")
    refused(errno.ENOENT, link.ok)


# ---- whole files ----


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_what_is_written_is_read(link: Link, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    link.write(f"{tmp_path}/file", data)
    assert (tmp_path / "file").read_bytes() == data == link.read(f"{tmp_path}/file")
    assert link.read(f"{tmp_path}/file", offset=size // 2) == data[size // 2 :]
    assert nothing_temporary(tmp_path)


def test_files_of_proc_are_read(link: Link) -> None:
    assert b"MemTotal" in link.read("/proc/meminfo")


def test_only_regular_files_are_read(link: Link, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(errno.EINVAL, lambda: link.read(f"{tmp_path}/fifo"))
    refused(errno.EINVAL, lambda: link.read("/dev/zero"))
    refused(errno.EISDIR, lambda: link.read(str(tmp_path)))
    refused(errno.ENOENT, lambda: link.read(f"{tmp_path}/none"))


def test_modes_and_links_survive_a_write(link: Link, tmp_path: Path) -> None:
    path = f"{tmp_path}/file"
    link.write(path, b"1")
    assert os.stat(path).st_mode & 0o7777 == 0o644
    os.chmod(path, 0o751)
    link.write(path, b"2")
    assert os.stat(path).st_mode & 0o7777 == 0o751
    link.write(path, b"3", mode=0o600)
    assert os.stat(path).st_mode & 0o7777 == 0o600
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub/../link2")
    (tmp_path / "link2").symlink_to(f"{tmp_path}/sub/new")
    link.write(f"{tmp_path}/link", b"through")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "sub" / "new").read_bytes() == b"through"
    (tmp_path / "loop").symlink_to("loop")
    refused(errno.ELOOP, lambda: link.write(f"{tmp_path}/loop", b"x"))
    if os.geteuid() == 0:
        os.chown(path, 7, 8)
        link.write(path, b"4")
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (7, 8)


def test_parents_are_made_when_asked(link: Link, tmp_path: Path) -> None:
    refused(errno.ENOENT, lambda: link.write(f"{tmp_path}/a/b/c", b"x"))
    link.ping()
    link.write(f"{tmp_path}/a/b/c", b"x", parents=True)
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


def test_what_is_no_file_is_not_written(link: Link, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(errno.EINVAL, lambda: link.write(f"{tmp_path}/fifo", b"x"))
    refused(errno.EISDIR, lambda: link.write(str(tmp_path), b"x"))
    refused(errno.EISDIR, lambda: link.write(f"{tmp_path}/", b"x"))
    refused(errno.EINVAL, lambda: link.write("/dev/null", b"x"))


def test_a_big_write_that_is_refused_leaves_the_link_usable(link: Link) -> None:
    refused(errno.ENOENT, lambda: link.write("/no/such/folder/file", bytes(8_000_000)))
    link.ping()


def test_requests_behind_a_write_are_answered(link: Link, tmp_path: Path) -> None:
    """They were read by the agent together with the file: the worker must get its part and no more."""
    one = file_frame(WRITE, f"{tmp_path}/a") + frame(0x41, b"hello") + frame(0x42)
    two = file_frame(WRITE, f"{tmp_path}/b") + frame(0x41, b"x" * 200_000) + frame(0x42)
    link.send(frame(0x15), one, frame(0x15), two, file_frame(STAT, f"{tmp_path}/b"), one, frame(0x15))
    for _ in range(4):
        link.ok()
    assert link.entry().size == 200_000
    link.ok()
    link.ok()


def test_a_client_that_gives_up_leaves_nothing(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    link = agent.link()
    link.send(file_frame(WRITE, f"{tmp_path}/file"), frame(0x41, b"new"), struct.pack("<IB", 1000, 0x41), b"half")
    link.close()
    other = agent.link()
    deadline = time.monotonic() + 60
    while not nothing_temporary(tmp_path) and time.monotonic() < deadline:
        other.ping()
        time.sleep(0.01)
    assert nothing_temporary(tmp_path) and (tmp_path / "file").read_text() == "old"


@pytest.mark.root
def test_a_full_disk_is_told_and_keeps_the_old_file(link: Link, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        link.write(f"{disk}/file", b"old")
        refused(errno.ENOSPC, lambda: link.write(f"{disk}/file", bytes(3_000_000)))
        assert (disk / "file").read_bytes() == b"old" and nothing_temporary(disk)
        link.ping()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_worker_that_dies_costs_one_link(agent: Agent, tmp_path: Path) -> None:
    link, other = agent.link(), agent.link()
    link.send(file_frame(WRITE, f"{tmp_path}/file"), frame(0x41, b"x"))
    pid = 0
    for _ in range(1000):
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
        if children:
            pid = int(children[0])
            break
        other.ping()
    os.kill(pid, 9)
    with pytest.raises((Closed, ConnectionError)):
        link.receive()
    other.ping()


# ---- trees ----


def pull(link: Link, path: str) -> dict[bytes, tuple[str, bytes]]:
    """path → (kind, content or target); checks the order that the protocol promises."""
    link.file(PULL, path)
    tree: dict[bytes, tuple[str, bytes]] = {}
    current: Entry | None = None
    for item in link.until_end():
        if isinstance(item, Entry):
            if current and current.kind == "f":
                assert len(tree[current.path][1]) == current.size
            if item.path:
                assert tree[item.path.rpartition(b"/")[0]][0] == "d"
            current = item
            tree[item.path] = (item.kind, item.target)
        else:
            assert current and current.kind == "f"
            tree[current.path] = ("f", tree[current.path][1] + item)
    return tree


def test_a_tree_is_pulled_without_following_links(link: Link, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"x" * 3_000_000)
    (tree / "empty").touch()
    (tree / "up").symlink_to("../../..")
    (tree / "etc").symlink_to("/etc")
    os.mkfifo(tree / "fifo")
    os.mkdir(os.fsencode(tree) + b"/..\n")
    got = pull(link, str(tree))
    assert got == {
        b"": ("d", b""),
        b"a": ("d", b""),
        b"a/b": ("d", b""),
        b"a/file": ("f", b"x" * 3_000_000),
        b"empty": ("f", b""),
        b"up": ("l", b"../../.."),
        b"etc": ("l", b"/etc"),
        b"fifo": ("o", b""),
        b"..\n": ("d", b""),
    }
    assert pull(link, f"{tree}/etc") == {b"": ("l", b"/etc")}
    assert pull(link, f"{tree}/a/file")[b""] == ("f", b"x" * 3_000_000)
    link.file(PULL, f"{tree}/none")
    refused(errno.ENOENT, link.until_end)


def push(link: Link, path: str, *frames: bytes, flags: int = 0) -> None:
    link.send(file_frame(PUSH, path, flags=flags), *frames, frame(0x42))
    link.ok()


def file_of(path: str | bytes, data: bytes, mode: int = 0o644) -> bytes:
    return entry_frame("f", path, len(data), mode) + (frame(0x41, data) if data else b"")


def test_a_tree_is_pushed(link: Link, tmp_path: Path) -> None:
    names = [file_of(b"sub/" + name, name) for name in HOSTILE]
    push(
        link,
        f"{tmp_path}/new/tree",
        entry_frame("d", "", mode=0o750),
        entry_frame("d", "sub", mode=0o700),
        *names,
        file_of("run", b"#!/bin/sh\n", 0o755),
        entry_frame("l", "link", target="/outside"),
        file_of("empty", b""),
        entry_frame("f", "dated", 0, 0o644, mtime=1_000_000_000_000_000_007),
        flags=1,
    )
    root = tmp_path / "new" / "tree"
    assert root.stat().st_mode & 0o7777 == 0o750 and (root / "sub").stat().st_mode & 0o7777 == 0o700
    assert sorted(os.listdir(os.fsencode(root) + b"/sub")) == sorted(HOSTILE)
    assert (root / "run").stat().st_mode & 0o7777 == 0o755 and os.readlink(root / "link") == "/outside"
    assert (root / "dated").stat().st_mtime_ns == 1_000_000_000_000_000_007
    assert nothing_temporary(root)
    pulled = pull(link, str(root))
    assert pulled[b"sub/new\nline"] == ("f", b"new\nline") and len(pulled) == 6 + len(HOSTILE)


def test_pushing_merges_and_replaces(link: Link, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "old").write_text("old")
    (root / "sub" / "both").write_text("old")
    (root / "here").symlink_to("/none")
    push(
        link,
        str(root),
        entry_frame("d", ""),
        entry_frame("d", "sub"),
        file_of("sub/both", b"new"),
        entry_frame("l", "here", target="there"),
    )
    assert (root / "sub" / "old").read_text() == "old" and (root / "sub" / "both").read_text() == "new"
    assert os.readlink(root / "here") == "there"


def test_a_pushed_file_is_placed_like_a_write(link: Link, tmp_path: Path) -> None:
    push(link, f"{tmp_path}/a/file", file_of("", b"hello", 0o640), flags=1)
    assert (tmp_path / "a" / "file").read_text() == "hello" and (
        tmp_path / "a" / "file"
    ).stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize(
    "path", ["../x", "/abs", "a/../x", "a//x", ".", "..", "a/.", "a/", "link/x", "file/x", "none/x"]
)
def test_a_push_stays_below_its_root(link: Link, tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").touch()
    with pytest.raises(Refused):
        push(link, str(root), entry_frame("d", ""), file_of(path, b"evil"))
    assert os.listdir(outside) == [] and not (tmp_path / "x").exists() and nothing_temporary(root)
    link.ping()


def test_a_link_in_the_push_is_not_a_way_out(link: Link, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        push(
            link,
            f"{tmp_path}/root",
            entry_frame("d", ""),
            entry_frame("l", "a", target=str(tmp_path)),
            file_of("a/x", b"evil"),
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [frame(0x41, b"x")],
        [entry_frame("d", "not root")],
        [entry_frame("f", "", 5), frame(0x41, b"too long")],
        [entry_frame("f", "", 5), frame(0x41, b"2")],
        [entry_frame("f", "", 0), entry_frame("f", "child", 0)],
        [entry_frame("d", ""), frame(0x41, b"x")],
        [entry_frame("d", ""), entry_frame("o", "device")],
        [entry_frame("d", ""), frame(0x40, b"garbage")],
        [entry_frame("d", ""), entry_frame("f", "short", 5), entry_frame("f", "next", 0)],
    ],
)
def test_a_push_that_makes_no_sense_is_refused(link: Link, tmp_path: Path, frames: list[bytes]) -> None:
    with pytest.raises(Refused):
        push(link, f"{tmp_path}/root", *frames)
    link.ping()
    assert nothing_temporary(tmp_path)


def test_a_stranger_frame_in_a_push_closes_the_link(link: Link, tmp_path: Path) -> None:
    link.send(file_frame(PUSH, f"{tmp_path}/root"), entry_frame("d", ""), frame(0x15))
    with pytest.raises((Closed, Refused, ConnectionError)):
        link.ok()


# ---- dial ----


def test_dial_is_a_link(agent: Agent, program: Path) -> None:
    process = subprocess.Popen([program, "dial", agent.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    length = struct.unpack("<I", process.stdout.read(4))[0]
    assert process.stdout.read(length)[0] == 0x01
    process.stdin.write(frame(0x15))
    process.stdin.flush()
    assert process.stdout.read(5) == frame(0x23)
    process.stdin.close()
    assert process.stdout.read() == b"" and process.wait(300) == 0
    process.stdout.close()


def test_dial_without_an_agent_fails_with_a_sentence(program: Path, tmp_path: Path) -> None:
    done = subprocess.run([program, "dial", tmp_path / "none"], capture_output=True, check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_dial_waits_for_no_socket_that_accepts_nobody(program: Path, tmp_path: Path) -> None:
    """It hung for ever."""
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as queued:
        listening.bind(path)
        listening.listen(0)
        queued.connect(path)
        done = subprocess.run([program, "dial", path], capture_output=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


# ---- holes and parts ----


def test_a_link_is_followed_if_it_is_what_is_pulled_and_that_was_asked_for(link: Link, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    (tmp_path / "folder/inner").symlink_to("file")
    for name, target in (("link", "folder"), ("again", "link"), ("file", "folder/file"), ("nowhere", "none")):
        (tmp_path / name).symlink_to(target)
    for name in ("link", "again"):
        link.file(PULL, f"{tmp_path}/{name}", flags=1)
        entries = [item for item in link.until_end() if isinstance(item, Entry)]
        assert {entry.path: entry.kind for entry in entries} == {b"": "d", b"file": "f", b"inner": "l"}
    link.file(PULL, f"{tmp_path}/file", flags=1)
    assert link.until_end()[1:] == [b"x"]
    link.file(PULL, f"{tmp_path}/nowhere", flags=1)
    refused(errno.ENOENT, link.until_end)


@pytest.mark.parametrize("most", [1, 5, 3_000_000, 0])
def test_no_more_is_read_than_was_asked_for(link: Link, tmp_path: Path, most: int) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "file").write_bytes(data)
    link.file(READ, f"{tmp_path}/file", mode=most, offset=7)
    _, *chunks = link.until_end()
    assert b"".join(chunk for chunk in chunks if isinstance(chunk, bytes)) == data[7:][: most or None]
    link.ping()


def content(link: Link) -> list[bytes | int]:
    """What comes of the one file that is pulled; a hole as its size."""
    assert link.entry().kind == "f"
    found: list[bytes | int] = []
    while (answer := link.receive())[0] != END:
        assert answer[0] in (CHUNK, HOLE)
        found.append(struct.unpack("<Q", answer[1])[0] if answer[0] == HOLE else answer[1])
    return found


def test_holes_are_told_to_those_who_asked(link: Link, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.seek(4 << 20)
        file.write(b"x" * 4096)
        file.truncate(8 << 20)
    link.file(PULL, f"{tmp_path}/file", flags=2)
    assert content(link) == [4 << 20, b"x" * 4096, (4 << 20) - 4096]
    link.file(PULL, f"{tmp_path}/file")
    whole = content(link)
    assert b"".join(piece for piece in whole if isinstance(piece, bytes)) == (tmp_path / "file").read_bytes()


def test_holes_are_made_where_they_come(link: Link, tmp_path: Path) -> None:
    link.file(HOLES, "/")
    link.ok()
    hole = frame(HOLE, struct.pack("<Q", 1 << 40))
    push(link, f"{tmp_path}/file", entry_frame("f", b"", (1 << 40) + 1), hole, frame(CHUNK, b"x"))
    push(link, f"{tmp_path}/end", entry_frame("f", b"", 1 << 40), hole)
    assert [(tmp_path / name).stat().st_size - (1 << 40) for name in ("file", "end")] == [1, 0]
    assert all((tmp_path / name).stat().st_blocks < 100 for name in ("file", "end"))


BAD_HOLES = {
    "before a file": [frame(HOLE, struct.pack("<Q", 1))],
    "in a folder": [entry_frame("d", b""), frame(HOLE, struct.pack("<Q", 1))],
    "larger than the file": [entry_frame("f", b"", 5), frame(HOLE, struct.pack("<Q", 6))],
    "negative": [entry_frame("f", b"", (1 << 64) - 1), frame(HOLE, struct.pack("<Q", 1 << 63))],
    "cut off": [entry_frame("f", b"", 5), frame(HOLE, b"\1\0")],
    "too long": [entry_frame("f", b"", 5), frame(HOLE, bytes(9))],
}


@pytest.mark.parametrize("what", BAD_HOLES)
def test_a_hole_that_does_not_fit_is_refused_and_leaves_nothing(link: Link, tmp_path: Path, what: str) -> None:
    refused(errno.EINVAL, lambda: push(link, f"{tmp_path}/out", *BAD_HOLES[what]))
    assert not (tmp_path / "out").is_file()
    assert nothing_temporary(tmp_path)
    link.ping()
