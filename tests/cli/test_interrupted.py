"""Copies that end too early: by a signal, a full disk, or because there is too much of it. Nothing
is left of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from openmodal import Sandbox
from openmodal.docker_cli import copy
from openmodal.errors import DiskFullError
from openmodal.testing.fixtures import eventually
from tests.cli.conftest import COMMAND, CommandLine
from tests.cli.test_docker import Docker
from tests.disks import small_disk

pytestmark = pytest.mark.embedded

OPENMODAL = [*COMMAND, "--local", "sandbox"]
DOCKER = [sys.executable, "-m", "openmodal.docker_cli"]


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")


@pytest.fixture
def large(sandbox: str) -> Sandbox:
    """A sandbox with a folder that takes a while to copy."""
    found = Sandbox.from_id(sandbox)
    made = "mkdir /large; for n in 1 2 3; do dd if=/dev/zero of=/large/$n bs=1M count=100; done"
    assert found.exec("sh", "-c", made).returncode == 0
    return found


def interrupted(command: list[str], number: int, folder: Path, temporary: Path) -> int:
    """Its exit code, when a signal ends it in the middle of a copy into that folder."""
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env) as process:
        try:
            eventually(lambda: begun(process.pid, folder, temporary), seconds=30)
            process.send_signal(number)
            return process.wait(30)
        finally:
            process.kill()


def begun(pid: int, *folders: Path) -> bool:
    """Whether it writes a file in one of the folders, perhaps one without a name."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        file = f"/proc/{pid}/fd/{fd}"
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(file).startswith(tuple(map(str, folders))) and os.path.isfile(file):
                return os.path.getsize(file) > 0
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("program", [OPENMODAL, DOCKER], ids=["openmodal", "openmodal-docker"])
def test_a_copy_that_a_signal_ends_leaves_nothing(
    program: list[str], number: int, large: Sandbox, tmp_path: Path
) -> None:
    """SIGTERM and SIGHUP ended these programs at once; what had come stayed beside the target."""
    folder, temporary = tmp_path / "to", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    code = interrupted([*program, "cp", f"{large.id}:/large", str(folder / "out")], number, folder, temporary)
    assert (code, os.listdir(folder), os.listdir(temporary)) == (128 + number, [], [])


def test_nohup_keeps_a_copy_from_its_end(sandbox: str, tmp_path: Path) -> None:
    """An ignored SIGHUP stays ignored."""
    code = f"import signal; signal.signal({signal.SIGHUP:d}, signal.SIG_IGN)\n"
    code += "import os, sys; from openmodal.cli._ending import unwinding\n"
    code += "with unwinding(): os.kill(os.getpid(), signal.SIGHUP)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_second_signal_does_not_interrupt_what_the_first_one_has_begun() -> None:
    """When a window is closed, the shell and the kernel both send SIGHUP."""
    code = (
        "import os, signal\nfrom openmodal.cli._ending import unwinding\n"
        "with unwinding():\n    try:\n        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        print('whole', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGHUP, b"whole\n")


def test_what_a_killed_copy_leaves_goes_with_the_next_one(large: Sandbox, tmp_path: Path) -> None:
    folder, temporary = tmp_path / "to", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    for program in (OPENMODAL, DOCKER):
        interrupted([*program, "cp", f"{large.id}:/large", str(folder / "out")], signal.SIGKILL, folder, temporary)
        assert len(os.listdir(folder)) == 1
    subprocess.run([*DOCKER, "cp", f"{large.id}:/bin/busybox", str(folder / "out")], check=True)
    assert os.listdir(folder) == ["out"]
    # An archive of it has no name at all.
    interrupted([*DOCKER, "cp", f"{large.id}:/large", "-"], signal.SIGKILL, folder, temporary)
    assert os.listdir(temporary) == []


def test_a_killed_upload_to_a_volume_leaves_no_file(tmp_path: Path) -> None:
    upload = (
        "import io, time\nfrom openmodal import Volume\n"
        "class Slow(io.BytesIO):\n"
        "    def read(self, size=-1):\n        return super().read(size) or time.sleep(100)\n"
        "volume = Volume.from_name('killed-upload', create_if_missing=True)\n"
        "with volume.batch_upload(force=True) as batch:\n    batch.put_file(Slow(bytes(9 << 20)), 'z')"
    )
    assert interrupted([sys.executable, "-c", upload], signal.SIGKILL, tmp_path, tmp_path) == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_an_archive_is_whole_and_bounded(large: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`cp -` wrote all that there was, and the zeros of a file's holes, to the disk and to its reader."""
    docker = Docker()
    large.exec("sh", "-c", "rm -r /large; mkdir -p /tree/below; echo x >/tree/below/file; truncate -s 1024G /holes")
    large.exec("sh", "-c", "ln -s file /tree/below/link; chown -R 7:8 /tree/below; chmod 640 /tree/below/file")
    with tarfile.open(fileobj=io.BytesIO(docker.run("cp", f"{large.id}:/tree", "-").stdout)) as archive:
        names = {"tree": (0, 0), **dict.fromkeys(("tree/below", "tree/below/file", "tree/below/link"), (7, 8))}
        assert {entry.name: (entry.uid, entry.gid) for entry in archive} == names
        content = archive.extractfile("tree/below/file")
        assert content is not None
        assert content.read() == b"x\n"
    with tarfile.open(fileobj=io.BytesIO(docker.run("cp", f"{large.id}:/tree/below/file", "-").stdout)) as archive:
        assert archive.getnames() == ["file"]
    begun = time.monotonic()
    assert "copy a part, or write `openmodal sandbox cp --max-bytes 0 " in docker.error("cp", f"{large.id}:/holes", "-")
    assert "is a device" in docker.error("cp", f"{large.id}:/dev/null", "-")
    assert time.monotonic() - begun < 30
    monkeypatch.setattr(copy, "COPY_MOST", 5000)
    assert "copied at most" in docker.error("cp", f"{large.id}:/bin/busybox", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_full_disk_here_is_named_by_all(
    openmodal: CommandLine, large: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was `no space left on device`, of a daemon that had no part in it."""
    docker = Docker()
    with small_disk(tmp_path) as disk:
        says = f"the disk of {disk} is full; free some space, or name a place on another disk"
        with pytest.raises(DiskFullError, match=says):
            large.filesystem.copy_to_local("/large", disk / "out")
        assert (
            openmodal.error("--local", "sandbox", "cp", f"{large.id}:/large", str(disk / "out")) == f"Error: {says}\n"
        )
        assert docker.error("cp", f"{large.id}:/large", str(disk / "out")) == f"{says}\n"
        assert {*os.listdir(disk)} <= {"lost+found"}
        monkeypatch.setenv("TMPDIR", str(disk))
        monkeypatch.setattr("tempfile.tempdir", None)
        says = f"the disk of {disk} is full; free some space, or set TMPDIR to another disk\n"
        assert docker.error("cp", f"{large.id}:/large", "-") == says


def test_names_that_a_sandbox_chose_are_shown_not_obeyed_by_diff(sandbox: str) -> None:
    Sandbox.from_id(sandbox).exec("sh", "-c", "touch \"$(printf '/odd\\033[2Jx\\nD faked')\"")
    assert "A /odd\\x1b[2Jx\\x0aD faked\n" in Docker()("diff", sandbox)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_mcp_while_it_waits_for_its_client(number: int) -> None:
    """A thread waits for the next line, and would keep what unwinds from its end."""
    pytest.importorskip("mcp")
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    command = [*COMMAND, "--local", "mcp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        assert '"result"' in process.stdout.readline()
        process.send_signal(number)
        try:
            assert process.wait(20) == -number
        finally:
            process.kill()
