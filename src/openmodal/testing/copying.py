"""`copy_to_local` and `copy_from_local`: what arrives, where, and how much of it."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import cast

import pytest

from openmodal.engines import Engine
from openmodal.errors import (
    InvalidError,
    SandboxFileNotFoundError,
    SandboxFilesystemError,
    SandboxFileTooLargeError,
    SandboxNotRunningError,
)
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Flaky, promise


class TestCopying:
    @pytest.mark.parametrize("size", [0, 1, 1_048_577, 30_000_000])
    def test_a_file_goes_in_and_out_unchanged(self, sandbox: Sandbox, tmp_path: Path, size: int) -> None:
        data = random.Random(size).randbytes(size)
        (tmp_path / "here").write_bytes(data)
        sandbox.filesystem.copy_from_local(tmp_path / "here", "/tmp/new/folder/there")
        sandbox.filesystem.copy_to_local("/tmp/new/folder/there", tmp_path / "also/new/back")
        assert (tmp_path / "also/new/back").read_bytes() == data

    def test_the_executable_bit_survives(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "script").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "script").chmod(0o755)
        sandbox.filesystem.copy_from_local(str(tmp_path / "script"), "/tmp/script")
        assert sandbox.exec("/tmp/script").stdout.read() == "ran\n"
        sandbox.filesystem.copy_to_local("/tmp/script", str(tmp_path / "back"))
        assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o755

    def test_a_tree_goes_in_and_out_unchanged(self, sandbox: Sandbox, tmp_path: Path) -> None:
        source = tmp_path / "tree"
        (source / "a/b/c").mkdir(parents=True)
        (source / "empty").mkdir()
        (source / "a/file").write_bytes(os.urandom(700_000))
        (source / "a/b/empty-file").touch()
        (source / "a/b/c/link").symlink_to("../../file")
        (source / "dangling").symlink_to("/no/where")
        sandbox.filesystem.copy_from_local(source, "/tmp/tree")
        sandbox.filesystem.copy_to_local("/tmp/tree", tmp_path / "back")
        assert _tree(tmp_path / "back") == _tree(source)

    def test_a_folder_is_merged_into_one_that_is_there(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "new/sub").mkdir(parents=True)
        (tmp_path / "new/sub/file").write_text("new")
        sandbox.exec("sh", "-c", "mkdir -p /tmp/t/sub; echo old > /tmp/t/sub/file; echo keep > /tmp/t/keep")
        sandbox.filesystem.copy_from_local(tmp_path / "new", "/tmp/t")
        assert sandbox.filesystem.read_text("/tmp/t/sub/file") == "new"
        assert sandbox.filesystem.read_text("/tmp/t/keep") == "keep\n"
        (tmp_path / "local/sub").mkdir(parents=True)
        (tmp_path / "local/own").write_text("own")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "local")
        assert set(_tree(tmp_path / "local")) == {"own", "keep", "sub", "sub/file"}

    def test_a_local_file_is_replaced_only_on_success(
        self, face: Face, engine: Engine, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        local = tmp_path / "file"
        local.write_text("old")
        with pytest.raises(SandboxFileNotFoundError):
            sandbox.filesystem.copy_to_local("/tmp/nope", local)
        sandbox.exec("sh", "-c", "head -c 3000000 /dev/zero > /tmp/file")
        flaky = cast("Engine", Flaky(engine, [("receive", 500_000)]))
        again = face(Sandbox(sandbox.id, flaky))
        again.filesystem.copy_to_local("/tmp/file", tmp_path / "survives-a-lost-link")
        assert (tmp_path / "survives-a-lost-link").stat().st_size == 3_000_000
        sandbox.terminate()
        with pytest.raises(SandboxNotRunningError):
            sandbox.filesystem.copy_to_local("/tmp/file", local)
        assert local.read_text() == "old"
        assert sorted(os.listdir(tmp_path)) == ["file", "survives-a-lost-link"]

    def test_an_end_of_the_sandbox_in_the_middle_leaves_the_old_or_the_new(
        self, face: Face, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("old")
        sandbox.exec("sh", "-c", "head -c 100000000 /dev/zero > /tmp/file")
        copying = face.start(sandbox.filesystem.copy_to_local, "/tmp/file", tmp_path / "file")
        sandbox.terminate()
        failed = copying.exception(60)
        assert failed is None or isinstance(failed, SandboxNotRunningError)
        assert (tmp_path / "file").stat().st_size == (3 if failed else 100_000_000)
        assert os.listdir(tmp_path) == ["file"]

    def test_links_are_copied_and_not_followed(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.exec("sh", "-c", "mkdir /tmp/t; ln -s /etc/passwd /tmp/t/link; ln -s / /tmp/t/root")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        assert os.readlink(tmp_path / "t/link") == "/etc/passwd"
        assert os.readlink(tmp_path / "t/root") == "/"

    def test_a_link_that_is_asked_for_is_resolved_inside(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "outside").write_text("of this machine")
        sandbox.exec("sh", "-c", "cd /tmp; mkdir t; echo inside > t/file; ln -s t/file file; ln -s /tmp/t tree")
        sandbox.exec("ln", "-s", str(tmp_path / "outside"), "/tmp/out")
        sandbox.filesystem.copy_to_local("/tmp/file", tmp_path / "file")
        sandbox.filesystem.copy_to_local("/tmp/tree", tmp_path / "tree")
        for name in ("file", "tree/file"):
            assert (tmp_path / name).read_text() == "inside\n"
            assert not (tmp_path / name).is_symlink()
        with pytest.raises(SandboxFileNotFoundError):
            sandbox.filesystem.copy_to_local("/tmp/out", tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["file", "outside", "tree"]

    def test_copying_the_same_path_again_does_not_write_where_the_sandbox_chose(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        """The first time it was a link to a folder of this machine, the second time a folder, which was merged into that one."""
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "file").write_text("of this machine")
        sandbox.exec("sh", "-c", f"mkdir -p /tmp/t; ln -s {theirs} /tmp/out; ln -s {theirs} /tmp/t/out")
        with pytest.raises(SandboxFileNotFoundError):
            sandbox.filesystem.copy_to_local("/tmp/out", tmp_path / "out")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        sandbox.exec("sh", "-c", "cd /tmp; rm out t/out; mkdir out t/out; echo evil > out/file; echo evil > t/out/file")
        sandbox.filesystem.copy_to_local("/tmp/out", tmp_path / "out")
        for target in ("t", "t/out"):
            with pytest.raises((InvalidError, NotADirectoryError)):
                sandbox.filesystem.copy_to_local(f"/tmp/{target}", tmp_path / target)
        assert (tmp_path / "out/file").read_text() == "evil\n"
        assert (theirs / "file").read_text() == "of this machine"

    def test_a_local_link_is_not_followed_into_the_sandbox(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("of this machine")
        sandbox.exec("sh", "-c", f"mkdir /tmp/t; ln -s {tmp_path}/secret /tmp/t/link")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        assert (tmp_path / "t/link").read_text() == "of this machine", "the control"
        with pytest.raises(InvalidError, match="link"):
            sandbox.filesystem.copy_from_local(tmp_path / "t/link", "/tmp/got")
        sandbox.filesystem.copy_from_local(tmp_path / "t", "/tmp/back")
        assert not sandbox.filesystem.exists("/tmp/got")
        assert not sandbox.filesystem.exists("/tmp/back/link"), "it leads to what is there"

    def test_a_path_through_a_link_from_a_sandbox_is_refused(self, sandbox: Sandbox, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (tmp_path / "own").symlink_to("theirs")
        sandbox.exec("sh", "-c", f"mkdir -p /tmp/t/a; ln -s {theirs} /tmp/t/a/link; echo evil > /tmp/file")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        with pytest.raises(InvalidError, match="copied from a sandbox"):
            sandbox.filesystem.copy_to_local("/tmp/file", tmp_path / "t/a/link/file")
        assert os.listdir(theirs) == []
        sandbox.filesystem.copy_to_local("/tmp/file", tmp_path / "own/file")  # the control: the user's own link
        assert (theirs / "file").read_text() == "evil\n"
        with pytest.raises(InvalidError, match="copied from a sandbox"):
            sandbox.filesystem.copy_from_local(tmp_path / "t/a/link/file", "/tmp/got")
        assert not sandbox.filesystem.exists("/tmp/got")

    def test_a_set_user_id_bit_does_not_come_out(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.exec("sh", "-c", "mkdir /tmp/t; cp /bin/busybox /tmp/t/su; chmod 4755 /tmp/t/su")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        assert stat.S_IMODE((tmp_path / "t/su").stat().st_mode) == 0o755

    @promise("holes")
    def test_holes_stay_holes_in_both_directions(self, sandbox: Sandbox, tmp_path: Path) -> None:
        """A file of 100 GB that takes 4 KiB there takes no more here, nor the other way round."""
        script = "mkdir /tmp/t; cd /tmp/t; echo begin > file; dd of=file bs=1 count=0 seek=100G; echo end >> file"
        assert sandbox.exec("sh", "-c", script).returncode == 0
        for source, target in (("/tmp/t", "t"), ("/tmp/t/file", "file")):
            sandbox.filesystem.copy_to_local(source, tmp_path / target, max_bytes=1 << 20)
        for path, back in ((tmp_path / "t", "/tmp/back/file"), (tmp_path / "file", "/tmp/one")):
            file = path / "file" if path.is_dir() else path
            assert (file.stat().st_size, file.stat().st_blocks < 1000) == ((100 << 30) + 4, True)
            sandbox.filesystem.copy_from_local(path, back.removesuffix("/file"))
            assert sandbox.filesystem.stat(back).size == (100 << 30) + 4
            assert int(sandbox.exec("du", "-k", back).stdout.read().split()[0]) < 1000
            assert sandbox.filesystem.read_bytes(back, limit=7) == b"begin\n\0"
            assert sandbox.filesystem.read_bytes(back, offset=100 << 30) == b"end\n"

    def test_no_more_is_copied_out_than_was_wanted_at_most(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        sandbox.exec("sh", "-c", "head -c 3000000 /dev/zero > /tmp/file; mkdir /tmp/t; cd /tmp/t; touch $(seq 300)")
        for source, target in (("/tmp/file", "file"), ("/tmp/t", "t")):
            with pytest.raises(SandboxFileTooLargeError, match="max_bytes") as caught:
                sandbox.filesystem.copy_to_local(source, tmp_path / target, max_bytes=1_000_000)
            assert caught.value.limit == 1_000_000
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_text() == "old"
        sandbox.filesystem.copy_to_local("/tmp/file", tmp_path / "file", max_bytes=None)
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t", max_bytes=2_000_000)
        assert (tmp_path / "file").stat().st_size == 3_000_000

    def test_devices_and_pipes_in_a_tree_are_left_out(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.exec("sh", "-c", "mkdir /tmp/t; mkfifo /tmp/t/pipe; echo x > /tmp/t/file")
        sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
        assert os.listdir(tmp_path / "t") == ["file"]

    def test_a_folder_that_is_too_deep_is_refused_with_a_sentence(self, sandbox: Sandbox, tmp_path: Path) -> None:
        """With 1,000 levels the agent's worker died, and the copy tried again for half a minute."""
        script = "mkdir /srv/deep; cd /srv/deep; for n in $(seq 1200); do mkdir d; cd -P d; done"
        assert sandbox.exec("sh", "-c", script).returncode == 0
        with pytest.raises(SandboxFilesystemError, match="256"):
            sandbox.filesystem.copy_to_local("/srv/deep", tmp_path / "copy")
        assert list(tmp_path.iterdir()) == []

    def test_a_pipe_cannot_be_copied(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.exec("mkfifo", "/tmp/pipe")
        with pytest.raises((InvalidError, SandboxFilesystemError)):
            sandbox.filesystem.copy_to_local("/tmp/pipe", tmp_path / "pipe")
        assert os.listdir(tmp_path) == []

    def test_a_file_is_not_copied_over_a_folder(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(InvalidError, match="folder"):
            sandbox.filesystem.copy_to_local("/etc/passwd", tmp_path / "folder")
        assert os.listdir(tmp_path) == ["folder"]


def _tree(root: Path) -> dict[str, object]:
    """What a local folder consists of."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        else:
            found[name] = "folder" if path.is_dir() else path.read_bytes()
    return found


__all__ = ["TestCopying"]
