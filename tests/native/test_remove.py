"""The verb `remove`: whatever a folder has in it goes, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def remove(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        command = [str(program), "remove", *arguments]
        return subprocess.run(command, stdin=at, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(at)


def test_links_are_removed_and_not_followed(program: Path, tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/file").touch()
    (tmp_path / "tree/deep/er").mkdir(parents=True)
    for place in ("tree/link", "tree/deep/er/link", "link"):
        (tmp_path / place).symlink_to(tmp_path / "keep")
    (tmp_path / "tree/deep").chmod(0)
    assert remove(program, tmp_path, "tree").returncode == 0
    assert remove(program, tmp_path, "tree").returncode == 0, "it is gone"
    done = remove(program, tmp_path, "link")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error ")
    assert sorted(os.listdir(tmp_path)) == ["keep", "link"]
    assert (tmp_path / "keep/file").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc"])
def test_only_a_name_of_the_folder_is_taken(program: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert remove(program, tmp_path / "a", name).returncode == 2
    assert (tmp_path / "a/b").exists()


@pytest.mark.root
def test_what_is_mounted_in_it_stays(program: Path, tmp_path: Path) -> None:
    (tmp_path / "tree/mount").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "openmodal-test", tmp_path / "tree/mount"], check=True)
    try:
        (tmp_path / "tree/mount/file").touch()
        assert remove(program, tmp_path, "tree").returncode == 1
        assert (tmp_path / "tree/mount/file").exists()
    finally:
        subprocess.run(["umount", tmp_path / "tree/mount"], check=True)
    assert remove(program, tmp_path, "tree").returncode == 0


def test_two_that_remove_the_same_tree_both_succeed(program: Path, tmp_path: Path) -> None:
    for width in range(40):
        (tmp_path / "tree" / str(width) / "/".join("d" * 60)).mkdir(parents=True)
    folder = os.open(tmp_path, os.O_RDONLY)
    started = [
        subprocess.Popen([program, "remove", "tree"], stdin=folder, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    os.close(folder)
    assert [process.communicate(timeout=600)[1] for process in started] == [""] * 4
    assert os.listdir(tmp_path) == []
