"""Volumes and folders of this machine, embedded: ids on disk, locks, hostile links."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from openmodal import _config
from openmodal._dual import run_sync
from openmodal.engines.embedded import Embedded, launch
from openmodal.errors import DiskFullError, EngineError, InvalidError, SandboxNotRunningError, VolumeInUseError
from openmodal.housekeeping import gc
from openmodal.image import Image
from openmodal.testing.fixtures import Create, eventually
from openmodal.testing.volumes import sh
from openmodal.volume import HostDirectory, Volume
from tests.disks import small_disk

pytestmark = pytest.mark.feature("box")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of another user."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    return folder


def owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


@root_only
def test_what_a_sandbox_makes_in_a_folder_of_this_machine_is_its_owners(create: Create, theirs: Path) -> None:
    (theirs / "roots").write_text("secret")
    (theirs / "roots").chmod(0o600)
    sandbox = create(volumes={"/src": HostDirectory(theirs, read_only=False)})
    sh(sandbox, "echo one > /src/file; mkdir /src/folder; ln -s /etc/passwd /src/link; chmod 4755 /src/file")
    assert [owner(theirs / name) for name in ("file", "folder", "link")] == [(1234, 1235)] * 3
    assert sh(sandbox, "stat -c '%u %g' /src/file /src/roots").split() == ["0", "0", "65534", "65534"]
    for script in ("cat /src/roots", "chown 0 /src/roots", "chmod 777 /src/roots"):
        assert sandbox.exec("sh", "-c", script).returncode != 0, script
    assert sandbox.exec("touch", "/src/mine", user="agent").returncode != 0
    assert sandbox.exec("chown", "1000", "/src/file").returncode != 0, "there is one owner"
    assert (theirs / "roots").read_text() == "secret"


@root_only
def test_a_folder_of_roots_is_written_to_only_if_that_is_meant(create: Create, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="owner='root'"):
        create(volumes={"/src": HostDirectory(tmp_path, read_only=False)})
    sandbox = create(volumes={"/src": HostDirectory(tmp_path, read_only=False, owner="root")})
    sh(sandbox, "echo one > /src/file")
    assert owner(tmp_path / "file") == (0, 0)


@root_only
def test_a_file_system_without_idmapped_mounts_is_told(create: Create) -> None:
    with pytest.raises(EngineError, match=r"idmapped mounts.*copy_from_local.*ext4"):
        create(volumes={"/src": HostDirectory("/sys/kernel")})


@root_only
def test_what_is_mounted_below_a_folder_is_not_shown(create: Create, theirs: Path) -> None:
    (theirs / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(theirs / "below")], check=True)
    try:
        (theirs / "below" / "file").touch()
        sandbox = create(volumes={"/src": HostDirectory(theirs)})
        assert sh(sandbox, "ls /src; ls /src/below") == "below\n"
        sandbox.terminate()
    finally:
        subprocess.run(["umount", str(theirs / "below")], check=True)


def test_what_root_leaves_in_a_volume_is_reached_by_no_other_user(create: Create, volume: Volume) -> None:
    """A set-user-ID program of root's lies in it: only the state folder's owner comes to it."""
    sh(create(volumes={"/data": volume}), "cp /bin/busybox /data/grep; chmod 4755 /data/grep")
    (file,) = (_config.state() / "volumes" / volume.name / "data").iterdir()
    assert file.stat().st_mode & stat.S_ISUID, "the control: it is there"
    assert stat.S_IMODE((_config.state() / "volumes").stat().st_mode) == 0o700


def test_links_in_the_image_lead_no_volume_elsewhere(create: Create, image: Image, volume: Volume) -> None:
    linked = image.run_commands("ln -s /proc /data; mkdir /real; ln -s /real /other")
    for path in ("/data", "/data/sys", "/other/below"):
        with pytest.raises(EngineError, match="link"):
            create(image=linked, volumes={path: volume})
    sh(create(image=linked, volumes={"/real/below": volume}), "touch /other/below/file")


def test_a_supervisor_that_is_killed_leaves_the_volume_free_and_whole(
    create: Create, engine: Embedded, volume: Volume
) -> None:
    sandbox = create(volumes={"/data": volume})
    sh(sandbox, "echo one > /data/file")
    with pytest.raises(VolumeInUseError):
        Volume.delete(volume.name, engine=engine)
    os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
    eventually(lambda: sandbox.poll() is not None)
    with pytest.raises(SandboxNotRunningError):
        sandbox.exec("true")
    assert b"".join(Volume.from_name(volume.name, engine=engine).read_file("file")) == b"one\n"
    Volume.delete(volume.name, engine=engine)
    assert volume.name not in os.listdir(_config.state() / "volumes")


def test_gc_deletes_the_ephemeral_volumes_of_killed_programs_when_no_sandbox_has_them(
    create: Create, engine: Embedded
) -> None:
    program = (
        "import openmodal, os\n"
        "with openmodal.Volume.ephemeral(engine='embedded') as volume:\n"
        "    print(volume.name, flush=True)\n"
        "    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    name, folder = done.stdout.strip(), _config.state() / "volumes"
    sandbox = create(volumes={"/data": Volume(name, engine)})
    with Volume.ephemeral(engine=engine) as alive:
        for check in (True, False):
            assert f"volume {name}" not in gc(check=check, engine=engine).removed, "a sandbox has it"
        sh(sandbox, "touch /data/file")
        sandbox.terminate()
        for check in (True, False):
            assert f"volume {name}" in gc(check=check, engine=engine).removed
        assert alive.listdir() == []
    assert not {name, alive.name} & {*os.listdir(folder), *os.listdir(_config.state() / "ephemeral")}


def test_an_ephemeral_volume_of_another_state_folder_is_in_use_there(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "state")
    with Volume.ephemeral(engine=engine) as scratch:
        assert engine.gc() == []
        assert [found.name for found in run_sync(engine.volumes())] == [scratch.name]
    assert run_sync(engine.volumes()) == []


@root_only
def test_what_is_read_of_one_leaves_its_holes_and_a_full_disk_is_told(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file was written as zeros to the disk of temporary files, and a full one was told by its
    number alone."""
    with Volume.ephemeral(engine="embedded") as volume, small_disk(tmp_path) as small:
        with create(volumes={"/data": volume}) as sandbox:
            sh(sandbox, "cd /data; dd of=holes bs=1 count=0 seek=300M; echo end >> holes")
            sh(sandbox, "head -c 90000000 /dev/urandom > /data/full")
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        last = b""
        for piece in volume.read_file("holes"):
            last = piece
        assert last.strip(b"\0") == b"end\n"
        with pytest.raises(DiskFullError, match="set TMPDIR"):
            next(volume.read_file("full"))
        with (
            open("/dev/zero", "rb") as zeros,
            pytest.raises(DiskFullError, match="set TMPDIR"),
            volume.batch_upload() as upload,
        ):
            upload.put_file(zeros, "zeros")
        with pytest.raises(DiskFullError, match="name a place on another disk"):
            volume.copy_to_local("full", small / "copy")
        assert os.listdir(small) == ["lost+found"]
        assert shutil.disk_usage(small).free > 40_000_000, "nothing of it stays"
