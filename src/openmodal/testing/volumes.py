"""Volumes and folders of this machine: what sandboxes share, and what hostile ones leave."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from openmodal.engines import Engine, lacking
from openmodal.errors import (
    AlreadyExistsError,
    EngineError,
    Error,
    InvalidError,
    NotFoundError,
    SandboxDirectoryNotEmptyError,
    SandboxFileNotFoundError,
    SandboxFilesystemError,
    SandboxFileTooLargeError,
    SandboxIsADirectoryError,
    SandboxNotRunningError,
    SandboxPathAlreadyExistsError,
    UnsupportedError,
    VolumeInUseError,
)
from openmodal.filesystem import COPY_MOST
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, eventually, promise
from openmodal.volume import HostDirectory, Volume


@pytest.fixture
def volume(face: Face, engine: Engine, afterwards: contextlib.ExitStack) -> Volume:
    """A new volume, deleted after the test and its sandboxes."""
    name = f"contract-{secrets.token_hex(6)}"

    def delete() -> None:
        if name in [found.name for found in Volume.list(engine=engine)]:
            Volume.delete(name, engine=engine)

    afterwards.callback(delete)
    return face(Volume.from_name(name, create_if_missing=True, engine=engine))


def sh(sandbox: Sandbox, script: str, **options: Any) -> str:
    """Run a script that has to succeed; what it printed."""
    process = sandbox.exec("sh", "-c", script, **options)
    assert process.returncode == 0, process.stderr.read()
    return str(process.stdout.read())


def upload_to(volume: Volume, face: Face, *paths: str) -> None:
    """Write files to a volume."""
    with face(volume.batch_upload()) as upload:
        for path in paths:
            upload.put_file(io.BytesIO(b"two"), path)


class TestVolumes:
    @promise("volumes")
    def test_what_a_sandbox_wrote_outlives_it_and_others_see_it(self, create: Create, volume: Volume) -> None:
        with create(volumes={"/data": volume}) as writer:
            sh(writer, "mkdir /data/a && echo one > /data/a/b && chown -R 1000:1000 /data/a && chmod 750 /data/a")
            volume.commit()
        reader = create(volumes={"/else/where": volume})
        volume.reload()
        reader.reload_volumes()
        assert sh(reader, "cat /else/where/a/b; stat -c '%u %g %a' /else/where/a") == "one\n1000 1000 750\n"

    @promise("volumes")
    def test_two_writers_of_different_files_lose_nothing(self, create: Create, volume: Volume) -> None:
        first, second = (create(volumes={"/data": volume}) for _ in range(2))
        script = 'i=0; while [ $i -lt 200 ]; do echo "$0$i" > "/data/$0$i"; i=$((i+1)); done'
        writing = [sandbox.spawn("sh", "-c", script, name) for sandbox, name in ((first, "a"), (second, "b"))]
        assert [process.wait() for process in writing] == [0, 0]
        volume.commit()
        first.reload_volumes()
        assert sh(first, "ls /data | wc -l; cat /data/b199").split() == ["400", "b199"]

    @promise("volumes")
    def test_one_that_is_read_only_is(self, create: Create, volume: Volume) -> None:
        free = create(volumes={"/data": volume})
        fixed = create(volumes={"/data": volume.read_only()})
        sh(free, "echo one > /data/file")
        for script in ("echo two > /data/file", "rm /data/file", "mount -o remount,rw /data && touch /data/x"):
            assert fixed.exec("sh", "-c", script).returncode != 0, script
        assert sh(fixed, "cat /data/file") == "one\n"

    @promise("volumes")
    def test_one_that_is_missing_is_refused_before_an_image_is_built(
        self, create: Create, face: Face, engine: Engine, image: Image
    ) -> None:
        missing = face(Volume.from_name("contract-missing", engine=engine))
        with pytest.raises(NotFoundError, match="contract-missing"):
            create(image=image.run_commands("sleep 3600"), volumes={"/data": missing})
        for call in (missing.listdir, missing.commit, missing.reload):
            with pytest.raises(NotFoundError, match="contract-missing"):
                call()
        with pytest.raises(NotFoundError, match="contract-missing"):
            face(Volume).delete("contract-missing", engine=engine)

    @promise("volumes")
    def test_one_that_is_in_use_is_not_deleted(
        self, create: Create, face: Face, engine: Engine, volume: Volume
    ) -> None:
        sandbox = create(volumes={"/data": volume})
        with pytest.raises(VolumeInUseError, match=volume.name):
            face(Volume).delete(volume.name, engine=engine)
        sh(sandbox, "echo still > /data/there; cat /data/there")
        sandbox.terminate()
        with pytest.raises(SandboxNotRunningError):
            sandbox.reload_volumes()
        face(Volume).delete(volume.name, engine=engine)
        assert volume.name not in [found.name for found in face(Volume).list(engine=engine)]

    @promise("volumes")
    def test_an_ephemeral_one_ends_with_its_block(self, create: Create, face: Face, engine: Engine) -> None:
        with face(Volume.ephemeral(engine=engine)) as volume:
            with create(volumes={"/data": volume}) as writer:
                sh(writer, "echo one > /data/file")
            with create(volumes={"/data": volume}) as reader:
                assert sh(reader, "cat /data/file") == "one\n"
            assert volume.name not in [found.name for found in face(Volume).list(engine=engine)]
        with pytest.raises(NotFoundError):
            create(volumes={"/data": volume})

    @promise("volume_rename")
    def test_one_can_be_renamed(self, create: Create, face: Face, engine: Engine, volume: Volume) -> None:
        new = f"{volume.name}-new"
        with create(volumes={"/data": volume}) as sandbox:
            sh(sandbox, "echo one > /data/file")
            with pytest.raises(VolumeInUseError):
                face(Volume).rename(volume.name, new, engine=engine)
        face(Volume).rename(volume.name, new, engine=engine)
        volume.listdir()  # which makes the old one again
        with pytest.raises(AlreadyExistsError, match=new):
            face(Volume).rename(volume.name, new, engine=engine)
        assert [entry.path for entry in face(Volume.from_name(new, engine=engine)).listdir()] == ["file"]
        face(Volume).delete(new, engine=engine)

    @promise("volume_sub_paths")
    def test_neither_dots_nor_links_lead_out_of_a_sub_path(self, create: Create, volume: Volume) -> None:
        whole = create(volumes={"/data": volume})
        sh(whole, "mkdir -p /data/inner/deep && echo secret > /data/secret")
        part = create(volumes={"/data": volume.with_mount_options(sub_path="inner/deep")})
        sh(part, "echo one > /data/file; ln -s ../../secret /data/out; ln -s /data/../../secret /data/far")
        assert sh(whole, "cat /data/inner/deep/file") == "one\n"
        for path in ("/data/../../secret", "/data/out", "/data/far", "/data/../secret"):
            assert part.exec("cat", path).returncode != 0, path
        new = create(volumes={"/data": volume.with_mount_options(sub_path="made/here")})
        sh(new, "echo two > /data/file")
        assert sh(whole, "cat /data/made/here/file; stat -c '%u %g' /data/made").split() == ["two", "0", "0"]

    @promise("volume_sub_paths")
    def test_a_link_is_no_sub_path(self, create: Create, volume: Volume) -> None:
        sandbox = create(volumes={"/data": volume})
        sh(sandbox, "ln -s /etc /data/evil; mkdir /data/a; ln -s /etc /data/a/evil; ln -s .. /data/up")
        for path in ("evil", "a/evil", "up", "up/a"):
            with pytest.raises(EngineError):
                create(volumes={"/data": volume.with_mount_options(sub_path=path)})

    @promise("volumes")
    def test_set_user_id_programs_and_devices_in_it_do_nothing(self, create: Create, volume: Volume) -> None:
        planter = create(volumes={"/data": volume})
        sh(planter, "cp /bin/busybox /data/grep && chmod 4755 /data/grep")
        assert planter.exec("mknod", "/data/disk", "b", "8", "0").returncode != 0
        other = create(volumes={"/data": volume})
        assert sh(other, "stat -c '%u %a' /data/grep") == "0 4755\n", "the control: the bit is there"
        assert sh(other, "/data/grep ^Uid /proc/self/status", user="agent").split() == ["Uid:", *["1000"] * 4]


class TestVolumeFiles:
    @promise("volumes")
    def test_files_are_read_and_written_without_a_sandbox(self, face: Face, volume: Volume, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").write_bytes(b"x" * 100_000)
        (folder / "top").write_text("top")
        with face(volume.batch_upload()) as upload:
            upload.put_directory(folder, "/all")
            upload.put_directory(folder, "flat", recursive=False)
            upload.put_file(io.BytesIO(b"from memory"), "/memory", mode=0o600)
        assert [entry.path for entry in volume.listdir("/")] == ["all", "flat", "memory"]
        assert [entry.path for entry in face(volume.iterdir("all"))] == ["all/deep", "all/deep/file", "all/top"]
        assert [entry.path for entry in volume.listdir("flat", recursive=True)] == ["flat/top"]
        (memory,) = volume.listdir("memory")
        assert (memory.kind, memory.size, memory.mode) == ("file", 11, 0o600)
        assert b"".join(face(volume.read_file("/all/deep/file"))) == b"x" * 100_000
        kept = io.BytesIO()
        assert volume.read_file_into_fileobj("memory", kept) == len(kept.getvalue()) == 11

    @promise("volumes")
    def test_files_are_copied_and_removed_within_it(self, face: Face, volume: Volume) -> None:
        with face(volume.batch_upload()) as upload:
            upload.put_file(io.BytesIO(b"one"), "folder/file")
        volume.copy_files(["folder/file"], "copy")
        volume.copy_files(["folder"], "other", recursive=True)
        volume.copy_files(["copy"], "other")
        paths = [entry.path for entry in face(volume.iterdir())]
        assert paths == ["copy", "folder", "folder/file", "other", "other/copy", "other/file"]
        assert b"".join(face(volume.read_file("other/copy"))) == b"one"
        with pytest.raises(InvalidError, match="recursive"):
            volume.copy_files(["folder"], "third")
        with pytest.raises(SandboxDirectoryNotEmptyError):
            volume.remove_file("folder")
        volume.remove_file("folder", recursive=True)
        volume.remove_file("copy")
        assert [entry.path for entry in volume.listdir()] == ["other"]
        with pytest.raises(SandboxFileNotFoundError):
            volume.remove_file("copy")

    @promise("volumes")
    def test_nothing_is_written_over_unless_asked_for_and_nothing_if_the_block_fails(
        self, face: Face, volume: Volume
    ) -> None:
        with face(volume.batch_upload()) as upload:
            upload.put_file(io.BytesIO(b"one"), "file")
        with pytest.raises(SandboxPathAlreadyExistsError):
            upload_to(volume, face, "new", "file")
        with contextlib.suppress(ZeroDivisionError), face(volume.batch_upload()) as upload:
            upload.put_file(io.BytesIO(b"two"), "new")
            raise ZeroDivisionError
        assert [entry.path for entry in volume.listdir()] == ["file"]
        with face(volume.batch_upload(force=True)) as upload:
            upload.put_file(io.BytesIO(b"three"), "file")
        assert b"".join(face(volume.read_file("file"))) == b"three"

    @promise("volumes")
    def test_links_of_a_hostile_sandbox_lead_to_nothing_of_this_machine(
        self, create: Create, face: Face, volume: Volume, tmp_path: Path
    ) -> None:
        (tmp_path / "canary").write_text("of this machine")
        with create(volumes={"/data": volume}) as sandbox:
            sh(sandbox, f"cd /data; ln -s {tmp_path} folder; ln -s {tmp_path}/canary file; ln -s /etc/passwd passwd")
        for path in ("folder/canary", "file", "passwd", f"../../../../..{tmp_path}/canary"):
            with pytest.raises((SandboxFileNotFoundError, SandboxIsADirectoryError)):
                b"".join(face(volume.read_file(path)))
        with pytest.raises(SandboxFilesystemError):
            upload_to(volume, face, "folder/new")
        assert sorted(os.listdir(tmp_path)) == ["canary"]
        assert (tmp_path / "canary").read_text() == "of this machine", "the control: it was there to be read"
        volume.remove_file("folder")
        volume.remove_file("file")
        assert [entry.kind for entry in volume.listdir()] == ["symlink"]

    @promise("volumes")
    def test_a_huge_file_does_not_fill_the_disk_of_who_reads_it(
        self, create: Create, face: Face, volume: Volume
    ) -> None:
        """A hole takes a sandbox no time; it was written as zeros here, while there was room."""
        with create(volumes={"/data": volume}) as sandbox:
            sh(sandbox, "cd /data; dd of=huge bs=1 count=0 seek=100G; dd of=holes bs=1 count=0 seek=16M")
            sh(sandbox, "echo end >> /data/holes")
        kept = io.BytesIO()
        for path, options, limit in (("huge", {}, COPY_MOST), ("holes", {"max_bytes": 16 << 20}, 16 << 20)):
            with pytest.raises(SandboxFileTooLargeError, match="max_bytes") as caught:
                b"".join(face(volume.read_file(path, **options)))
            assert caught.value.limit == limit
            with pytest.raises(SandboxFileTooLargeError, match="max_bytes") as caught:
                volume.read_file_into_fileobj(path, kept, **options)
            assert caught.value.limit == limit
        assert not kept.getvalue(), "nothing is written of a file whose size is known"
        whole = bytes(16 << 20) + b"end\n"
        assert b"".join(face(volume.read_file("holes", max_bytes=len(whole)))) == whole
        assert volume.read_file_into_fileobj("holes", kept, max_bytes=None) == len(whole)
        assert kept.getvalue() == whole

    @promise("volumes")
    def test_boxes_that_look_into_it_are_in_no_list(
        self, face: Face, engine: Engine, create: Create, volume: Volume
    ) -> None:
        sandbox = create()
        listing = face.start(volume.listdir)
        seen = {found.id for _ in range(5) for found in Sandbox.list(engine=engine)}
        assert listing.result(100) == []
        assert sandbox.id in seen
        assert not [id for id in seen if id.startswith("volume-")]


WRONG: dict[str, tuple[Any, str]] = {
    "a list": (["/data"], "dict"),
    "text": ({"/data": "data"}, "from_name"),
    "a relative path": ({"data": Volume("a")}, "absolute"),
    "the root": ({"/": Volume("a")}, "cannot be mounted"),
    "the root in other words": ({"//.": Volume("a")}, "cannot be mounted"),
    "dots": ({"/data/../proc": Volume("a")}, r"\.\."),
    "proc": ({"/proc/x": Volume("a")}, "/proc"),
    "sys": ({"/sys": Volume("a")}, "/proc"),
    "dev": ({"/dev/shm/": Volume("a")}, "/proc"),
    "a path twice": ({"/data": Volume("a"), "/data/": Volume("b")}, "twice"),
    "a volume twice": ({"/data": Volume("a"), "/other": Volume("a")}, "twice"),
    "a tab": ({"/da\tta": Volume("a")}, "tab"),
    "another engine's": ({"/data": Volume("a", "tests.unit.nowhere:Engine")}, "engine"),
}


class TestVolumeMistakes:
    @pytest.mark.parametrize("case", WRONG)
    def test_wrong_volumes_are_refused(self, create: Create, case: str) -> None:
        volumes, word = WRONG[case]
        with pytest.raises(InvalidError, match=word):
            create(volumes=volumes)

    def test_wrong_names_and_sub_paths_are_refused(self) -> None:
        for name in ("", "a/b", "..", ".hidden", "x" * 64, 7, "ephemeral-x"):
            with pytest.raises(InvalidError, match="name"):
                Volume.from_name(name)  # type: ignore[arg-type]
        for path in ("", "..", "a/../b", 7, "a\tb"):
            with pytest.raises(InvalidError, match="sub_path"):
                Volume.from_name("a").with_mount_options(sub_path=path)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="owner"):
            HostDirectory("/srv", owner="agent")

    def test_what_the_engine_lacks_is_refused(self, create: Create, engine: Engine, tmp_path: Path) -> None:
        asked = {
            "volumes": Volume.from_name("contract-missing"),
            "volume_sub_paths": Volume.from_name("contract-missing").with_mount_options(sub_path="a"),
            "host_folders": HostDirectory(tmp_path),
        }
        for name, found in asked.items():
            if name in lacking(engine):
                with pytest.raises((UnsupportedError, NotFoundError), match=f"the {engine.name} engine|no volume"):
                    create(volumes={"/data": found})


class TestHostDirectories:
    @promise("host_folders")
    def test_a_folder_of_this_machine_is_seen_and_not_changed(self, create: Create, face: Face, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("one")
        sandbox = create(volumes={"/src": HostDirectory(tmp_path)})
        assert sh(sandbox, "cat /src/file") == "one"
        for script in ("echo two > /src/file", "touch /src/new", "rm /src/file"):
            assert sandbox.exec("sh", "-c", script).returncode != 0, script
        (tmp_path / "file").write_text("two")
        eventually(lambda: sh(sandbox, "cat /src/file") == "two")
        assert os.listdir(tmp_path) == ["file"]

    @promise("host_folders")
    def test_a_folder_that_is_not_there_is_refused(self, create: Create, image: Image, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "missing", tmp_path / "file"):
            with pytest.raises(InvalidError, match=path.name):
                create(image=image.run_commands("sleep 3600"), volumes={"/src": HostDirectory(path)})

    @promise("host_folders")
    def test_a_folder_that_a_sandbox_exchanged_for_a_link_is_not_shown(self, create: Create, tmp_path: Path) -> None:
        """Docker's daemon goes there by name: the link of a sandbox led it to any folder here."""
        shared, secret = tmp_path / "shared", tmp_path / "secret"
        for folder in (shared / "sub", secret):
            folder.mkdir(parents=True)
        (secret / "file").write_text("secret")
        exchange = f"mv /shared/sub /shared/was && ln -s {secret} /shared/sub"
        below, above = HostDirectory(shared / "sub"), HostDirectory(shared, read_only=False, owner="root")
        both = create(volumes={"/shared": above, "/sub": below})
        sh(both, exchange)
        with pytest.raises(Error, match=r"link|exchanged"):
            create(volumes={"/sub": below})
        with pytest.raises(Error, match=r"link|exchanged"):
            both.reset()


__all__ = ["TestHostDirectories", "TestVolumeFiles", "TestVolumeMistakes", "TestVolumes", "volume"]
