"""`sandbox.filesystem`: files read, written, copied, listed; and how each mistake is told."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmodal.errors import (
    InvalidError,
    SandboxDirectoryNotEmptyError,
    SandboxFileNotFoundError,
    SandboxFilesystemError,
    SandboxFileTooLargeError,
    SandboxIsADirectoryError,
    SandboxNotADirectoryError,
    SandboxPathAlreadyExistsError,
    SandboxPermissionError,
)
from openmodal.filesystem import READ_MOST, Filesystem
from openmodal.sandbox import Sandbox

ODD_NAMES = ["new\nline", "\udcff\udcfe", " ", "-rf", "*", "ü😀", "a" * 255, "\\", "'\"", "\t", "\x1b[31m"]


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 524_288, 1_048_575, 1_048_577, 20_000_000])
    def test_bytes_come_back_as_written(self, sandbox: Sandbox, size: int) -> None:
        data = random.Random(size).randbytes(size)
        sandbox.filesystem.write_bytes("/tmp/file", data)
        assert sandbox.filesystem.read_bytes("/tmp/file") == data
        assert sandbox.filesystem.stat("/tmp/file").size == size

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_all_kinds_of_bytes_can_be_written(self, sandbox: Sandbox, kind: Callable[[bytes], bytes]) -> None:
        sandbox.filesystem.write_bytes("/tmp/file", kind(b"data"))
        assert sandbox.filesystem.read_bytes("/tmp/file") == b"data"

    def test_text_comes_back_as_written(self, sandbox: Sandbox) -> None:
        text = "line\r\nümläut 😀\n\n no end"
        sandbox.filesystem.write_text("/tmp/file", text)
        assert sandbox.filesystem.read_text("/tmp/file") == text
        assert sandbox.exec("cat", "/tmp/file").stdout.read() == text

    def test_text_has_an_encoding(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.write_text("/tmp/file", "ä", encoding="latin-1")
        assert sandbox.filesystem.read_bytes("/tmp/file") == b"\xe4"
        assert sandbox.filesystem.read_text("/tmp/file", encoding="latin-1") == "ä"
        assert sandbox.filesystem.read_text("/tmp/file", errors="replace") == "\ufffd"
        with pytest.raises(UnicodeDecodeError):
            sandbox.filesystem.read_text("/tmp/file")

    def test_writing_makes_parents(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.write_text("/tmp/a/b/c/file", "x")
        assert sandbox.exec("cat", "/tmp/a/b/c/file").stdout.read() == "x"

    def test_writing_keeps_the_mode_of_what_it_replaces(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.write_text("/tmp/new", "x")
        assert sandbox.filesystem.stat("/tmp/new").mode == 0o644
        sandbox.exec("chmod", "750", "/tmp/new")
        sandbox.filesystem.write_text("/tmp/new", "y")
        assert sandbox.filesystem.stat("/tmp/new").mode == 0o750

    def test_readers_see_the_old_file_or_the_new_one(self, sandbox: Sandbox) -> None:
        old, new = b"o" * 3_000_000, b"n" * 5_000_000
        sandbox.filesystem.write_bytes("/tmp/file", old)
        reader = sandbox.spawn("sh", "-c", "echo go; while ! [ -e /tmp/stop ]; do wc -c < /tmp/file; done")
        assert reader.stdout.readline() == "go\n"
        for n in range(12):
            sandbox.filesystem.write_bytes("/tmp/file", (new, old)[n % 2])
        sandbox.filesystem.write_text("/tmp/stop", "")
        sizes = {line.strip() for line in reader.stdout}
        assert sizes <= {"3000000", "5000000"}
        assert reader.wait() == 0
        assert {info.name for info in sandbox.filesystem.list_files("/tmp")} == {"file", "stop"}

    def test_writing_through_a_link_replaces_what_it_points_to_or_the_link(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "echo old > /tmp/target; ln -s target /tmp/link")
        sandbox.filesystem.write_text("/tmp/link", "new")
        assert sandbox.filesystem.read_text("/tmp/link") == "new"

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_work(self, sandbox: Sandbox, tmp_path: Path, name: str) -> None:
        path = f"/tmp/{name}"
        sandbox.filesystem.write_text(path, "x")
        assert sandbox.filesystem.read_text(path) == "x"
        assert [info.name for info in sandbox.filesystem.list_files("/tmp")] == [name]
        assert sandbox.filesystem.list_files("/tmp")[0].path == path
        assert sandbox.exec("sh", "-c", 'cat "/tmp/$1"', "sh", name).stdout.read() == "x"
        sandbox.filesystem.copy_to_local("/tmp", tmp_path / "copy")
        assert os.listdir(tmp_path / "copy") == [name]
        sandbox.filesystem.copy_from_local(tmp_path / "copy", "/tmp/again")
        assert [info.name for info in sandbox.filesystem.list_files("/tmp/again")] == [name]
        sandbox.filesystem.remove(path)
        assert not sandbox.filesystem.exists(path)

    def test_a_listing_tells_everything_sorted_by_name(self, sandbox: Sandbox) -> None:
        script = (
            "cd /tmp; mkdir folder; echo 12345 > file; ln -s /no/where link; mkfifo pipe; chmod 640 file; "
            "chown 12:34 file; touch -h -d @1000000000 file"
        )
        sandbox.exec("sh", "-c", script)
        listing = sandbox.filesystem.list_files("/tmp")
        assert [info.name for info in listing] == ["file", "folder", "link", "pipe"]
        assert [info.kind for info in listing] == ["file", "directory", "symlink", "other"]
        assert [info.is_dir for info in listing] == [False, True, False, False]
        file, _, link, _ = listing
        assert (file.path, file.size, file.mode, file.uid, file.gid) == ("/tmp/file", 6, 0o640, 12, 34)
        assert file.mtime == 1_000_000_000
        assert link.target == "/no/where"

    def test_an_empty_folder_lists_nothing(self, sandbox: Sandbox) -> None:
        assert sandbox.filesystem.list_files("/tmp") == []

    def test_a_folder_of_thousands_is_listed_whole(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "cd /tmp; seq 1 5000 | xargs touch")
        assert len(sandbox.filesystem.list_files("/tmp")) == 5000

    def test_stat_follows_links_or_not(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "echo 123 > /tmp/file; ln -s file /tmp/link")
        assert sandbox.filesystem.stat("/tmp/link").kind == "file"
        unfollowed = sandbox.filesystem.stat("/tmp/link", follow_symlinks=False)
        assert (unfollowed.kind, unfollowed.target, unfollowed.path) == ("symlink", "file", "/tmp/link")
        assert sandbox.filesystem.stat("/").is_dir
        assert abs(sandbox.filesystem.stat("/tmp/file").mtime - time.time()) < 3600

    def test_exists_tells(self, sandbox: Sandbox) -> None:
        sandbox.exec("ln", "-s", "/no/where", "/tmp/dangling")
        expected = {"/": True, "/etc/passwd": True, "/tmp/dangling": False, "/nope": False, "/etc/passwd/x": False}
        assert {path: sandbox.filesystem.exists(path) for path in expected} == expected

    def test_folders_are_made_with_their_parents(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.make_directory("/tmp/a/b/c")
        assert sandbox.filesystem.stat("/tmp/a/b/c").is_dir
        sandbox.filesystem.make_directory("/tmp/a/b/c")
        sandbox.filesystem.make_directory("/tmp/a/d", create_parents=False)
        assert [info.name for info in sandbox.filesystem.list_files("/tmp/a")] == ["b", "d"]

    def test_files_links_and_folders_are_removed(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "cd /tmp; mkdir -p a/b/c empty keep; touch a/b/file file keep/it; ln -s keep link")
        for path in ("/tmp/file", "/tmp/empty", "/tmp/link"):
            sandbox.filesystem.remove(path)
        sandbox.filesystem.remove("/tmp/a", recursive=True)
        assert [info.name for info in sandbox.filesystem.list_files("/tmp")] == ["keep"]
        assert sandbox.filesystem.exists("/tmp/keep/it"), "links are not followed"

    def test_removal_follows_no_link_inside(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "cd /tmp; mkdir a keep; touch keep/it; ln -s /tmp/keep a/link; ln -s keep top")
        sandbox.filesystem.remove("/tmp/a", recursive=True)
        sandbox.filesystem.remove("/tmp/top", recursive=True)
        assert sandbox.filesystem.exists("/tmp/keep/it")

    def test_rename_replaces(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "echo one > /tmp/one; echo two > /tmp/two")
        sandbox.filesystem.rename("/tmp/one", "/tmp/two")
        assert sandbox.filesystem.read_text("/tmp/two") == "one\n"
        assert not sandbox.filesystem.exists("/tmp/one")

    def test_dots_and_links_are_resolved_inside(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "outside").write_text("of this machine")
        sandbox.exec("ln", "-s", str(tmp_path), "/tmp/link")
        sandbox.exec("ln", "-s", "/", "/tmp/root")
        sandbox.exec("ln", "-s", "../../../../../../..", "/tmp/up")
        assert sandbox.filesystem.read_text("/../../../etc/group").startswith("root:")
        assert sandbox.filesystem.read_text("/tmp/root/etc/group").startswith("root:")
        assert sandbox.filesystem.read_text("/tmp/up/etc/group").startswith("root:")
        with pytest.raises(FileNotFoundError):
            sandbox.filesystem.read_text("/tmp/link/outside")
        with pytest.raises(FileNotFoundError):
            sandbox.filesystem.read_text(f"/tmp/up{tmp_path}/outside")
        with pytest.raises(OSError, match="in the sandbox"):
            sandbox.filesystem.write_text("/tmp/link/new", "x")
        assert os.listdir(tmp_path) == ["outside"]

    def test_a_part_of_a_file_is_read(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        files.write_bytes("/tmp/file", b"0123456789")
        parts = [(0, 4), (3, 4), (8, 4), (10, 4), (99, 1), (5, 0), (0, None), (7, None)]
        assert [files.read_bytes("/tmp/file", offset, limit) for offset, limit in parts] == [
            *(b"0123456789"[offset:][:limit] for offset, limit in parts)
        ]
        wrong: list[tuple[Any, Any]] = [(-1, None), (1.5, None), (0, -1), (0, 1 << 40), (0, "1")]
        for offset, limit in wrong:
            with pytest.raises(InvalidError, match="bytes"):
                files.read_bytes("/tmp/file", offset, limit)

    def test_a_huge_file_does_not_fill_the_memory_of_who_reads_it(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        assert sandbox.exec("dd", "of=/tmp/huge", "bs=1", "count=0", "seek=100G").returncode == 0
        for read in (files.read_bytes, files.read_text):
            with pytest.raises(SandboxFileTooLargeError, match="limit=") as caught:
                read("/tmp/huge")
            assert caught.value.limit == READ_MOST
        assert files.read_bytes("/tmp/huge", offset=99 << 30, limit=5) == bytes(5)

    def test_a_pipe_does_not_block_reading(self, sandbox: Sandbox) -> None:
        sandbox.exec("mkfifo", "/tmp/pipe")
        with pytest.raises(SandboxFilesystemError):
            sandbox.filesystem.read_bytes("/tmp/pipe")

    def test_generated_files_can_be_read(self, sandbox: Sandbox) -> None:
        assert "MemTotal" in sandbox.filesystem.read_text("/proc/meminfo")


ERRORS: dict[str, tuple[Callable[[Filesystem], object], type[SandboxFilesystemError], type[OSError]]] = {
    "read what is not there": (
        lambda files: files.read_bytes("/tmp/nope"),
        SandboxFileNotFoundError,
        FileNotFoundError,
    ),
    "read below what is not there": (
        lambda files: files.read_text("/nope/nope"),
        SandboxFileNotFoundError,
        FileNotFoundError,
    ),
    "stat what is not there": (lambda files: files.stat("/nope"), SandboxFileNotFoundError, FileNotFoundError),
    "list what is not there": (lambda files: files.list_files("/nope"), SandboxFileNotFoundError, FileNotFoundError),
    "remove what is not there": (lambda files: files.remove("/nope"), SandboxFileNotFoundError, FileNotFoundError),
    "copy what is not there": (
        lambda files: files.copy_to_local("/nope", "/no-such-folder/nope"),
        SandboxFileNotFoundError,
        FileNotFoundError,
    ),
    "rename what is not there": (
        lambda files: files.rename("/nope", "/tmp/x"),
        SandboxFileNotFoundError,
        FileNotFoundError,
    ),
    "make a folder below what is not there": (
        lambda files: files.make_directory("/nope/a", create_parents=False),
        SandboxFileNotFoundError,
        FileNotFoundError,
    ),
    "read a folder": (lambda files: files.read_bytes("/etc"), SandboxIsADirectoryError, IsADirectoryError),
    "write a folder": (lambda files: files.write_text("/etc", "x"), SandboxIsADirectoryError, IsADirectoryError),
    "list a file": (lambda files: files.list_files("/etc/passwd"), SandboxNotADirectoryError, NotADirectoryError),
    "read below a file": (
        lambda files: files.read_bytes("/etc/passwd/x"),
        SandboxNotADirectoryError,
        NotADirectoryError,
    ),
    "write below a file": (
        lambda files: files.write_text("/etc/passwd/x", "x"),
        SandboxNotADirectoryError,
        NotADirectoryError,
    ),
    "remove a full folder": (lambda files: files.remove("/etc"), SandboxDirectoryNotEmptyError, OSError),
    "make a folder where a file is": (
        lambda files: files.make_directory("/etc/passwd", create_parents=False),
        SandboxPathAlreadyExistsError,
        FileExistsError,
    ),
    "make a folder that is there": (
        lambda files: files.make_directory("/etc", create_parents=False),
        SandboxPathAlreadyExistsError,
        FileExistsError,
    ),
    "remove what may not be removed": (
        lambda files: files.remove("/proc/version"),
        SandboxPermissionError,
        PermissionError,
    ),
}


class TestFileErrors:
    @pytest.mark.parametrize("mistake", ERRORS)
    def test_to(self, sandbox: Sandbox, mistake: str) -> None:
        act, ours, builtin = ERRORS[mistake]
        with pytest.raises(ours) as caught:
            act(sandbox.filesystem)
        assert isinstance(caught.value, builtin)
        assert caught.value.errno
        assert caught.value.filename
        assert str(caught.value.filename) in str(caught.value)
        assert sandbox.filesystem.exists("/etc/passwd"), "the sandbox is as usable as before"

    @pytest.mark.parametrize("path", ["", "a\0b", "/a\0b"])
    def test_a_path_that_cannot_be_is_the_callers_mistake(self, sandbox: Sandbox, path: str) -> None:
        files = sandbox.filesystem
        for act in (files.read_bytes, files.list_files, files.stat, files.remove, files.exists, files.make_directory):
            with pytest.raises(InvalidError, match="path"):
                act(path)

    def test_text_and_bytes_are_not_mixed_up(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidError, match="write_text"):
            sandbox.filesystem.write_bytes("/tmp/x", "text")  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="write_bytes"):
            sandbox.filesystem.write_text("/tmp/x", b"bytes")  # type: ignore[arg-type]
        with pytest.raises(InvalidError):
            sandbox.filesystem.read_text(7)  # type: ignore[arg-type]

    def test_a_local_path_that_is_not_there_is_the_callers_mistake(self, sandbox: Sandbox, tmp_path: Path) -> None:
        with pytest.raises(InvalidError, match="nothing-here"):
            sandbox.filesystem.copy_from_local(tmp_path / "nothing-here", "/tmp/x")
        assert not sandbox.filesystem.exists("/tmp/x")

    def test_writing_to_a_full_disk_leaves_the_old_file(self, sandbox: Sandbox) -> None:
        if sandbox.exec("test", "-d", "/dev/shm").returncode:
            pytest.skip("promise of boxes that have /dev/shm")
        sandbox.filesystem.write_text("/dev/shm/file", "old")
        filled = sandbox.exec("dd", "if=/dev/zero", "of=/dev/shm/fill", "bs=1M", "count=4000")
        assert filled.returncode, "the control"
        with pytest.raises(SandboxFilesystemError):
            sandbox.filesystem.write_bytes("/dev/shm/file", bytes(1_000_000))
        assert sandbox.filesystem.read_text("/dev/shm/file") == "old"
        assert {info.name for info in sandbox.filesystem.list_files("/dev/shm")} == {"file", "fill"}


__all__ = ["TestFileErrors", "TestFiles"]
