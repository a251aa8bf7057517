"""What is half made goes: with its block, or when the next one is made beside what a killed process
has left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal import _halfmade
from openmodal._localcopy import Receiver
from openmodal._wire import Entry

COPIES = """
import sys, time
from pathlib import Path
from openmodal._localcopy import Receiver
from openmodal._wire import Entry
with Receiver(Path(sys.argv[1])) as receiver:
    receiver.begin(Entry("d", 0o755, 0, 0, 0, 0, b"", b""))
    receiver.begin(Entry("f", 0o644, 0, 0, 1, 0, b"file", b""))
    receiver.write(memoryview(b"x"))
    print("begun", flush=True)
    time.sleep(100)
"""


@contextmanager
def copying(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a copy."""
    with subprocess.Popen([sys.executable, "-c", COPIES, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


def copy(target: Path) -> None:
    """A copy of a file."""
    with Receiver(target) as receiver:
        receiver.begin(Entry("f", 0o644, 0, 0, 0, 0, b"", b""))
        receiver.commit()


def test_the_next_copy_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    with copying(tmp_path / "killed"):
        pass
    (left,) = tmp_path.iterdir()
    (left / "of the killed").touch()
    left.rename(left.with_name(f"{left.name[:-1]}1"))  # two were killed
    (tmp_path / left.name).mkdir()
    with copying(tmp_path / "alive"):
        # Of another machine, whose locks are not seen here.
        other = ".openmodal-00000000-0"
        (tmp_path / other).mkdir()
        alive = {*os.listdir(tmp_path)} - {other}
        assert alive == {left.name}
        assert "of the killed" not in os.listdir(left)
        copy(tmp_path / "copied")
        assert {*os.listdir(tmp_path)} == alive | {other, "copied"}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_what_somebody_else_has_left_stays(tmp_path: Path) -> None:
    with copying(tmp_path / "killed"):
        pass
    (left,) = os.listdir(tmp_path)
    os.chown(tmp_path / left, 1234, 1234)
    copy(tmp_path / "copied")
    assert {*os.listdir(tmp_path)} == {left, "copied"}


def test_a_temporary_folder_goes_with_its_block_whatever_is_in_it() -> None:
    with _halfmade.temporary() as folder:
        (Path(folder) / "deep" / "below").mkdir(parents=True)
        (Path(folder) / "deep" / "file").write_text("x")
        (Path(folder) / "deep").chmod(0)
    assert not Path(folder).exists()


def test_many_folders_made_and_swept_at_once_take_none_from_another(tmp_path: Path) -> None:
    """Between mkdir and its lock, a folder looks like one that a killed process has left."""
    script = (
        "import os, sys\nfrom openmodal import _halfmade\nparent = os.open(sys.argv[1], os.O_RDONLY)\n"
        "for _ in range(300):\n    with _halfmade.folder(parent) as fd:\n"
        "        os.mkdir('made', dir_fd=fd)\n        os.rename('made', str(os.getpid()), src_dir_fd=fd, dst_dir_fd=parent)\n"
        "        os.rmdir(str(os.getpid()), dir_fd=parent)\n"
    )
    all_of_them = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(100) for process in all_of_them] == [0] * 4
    assert os.listdir(tmp_path) == []
