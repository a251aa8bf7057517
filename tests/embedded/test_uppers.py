"""Folders that sandboxes use one after the other, and those in memory: each sandbox begins like the
first, and nothing stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal import _config, _memory
from openmodal._dual import run_sync
from openmodal.build.locks import Lock
from openmodal.engines.embedded import Embedded, launch, uppers
from openmodal.errors import SandboxNotRunningError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating, eventually
from tests.leaks import TEMPORARY

GET_FLAGS, SET_FLAGS, NO_DUMP = 0x80086601, 0x40086602, 0x40
DEFAULT_RIGHTS = bytes.fromhex("02000000" + "01000700ffffffff" + "04000700ffffffff" + "20000700ffffffff")


@pytest.fixture
def folders(engine: Embedded) -> Path:
    """Those of this state folder; none is unused."""
    found = engine._uppers.folder("none").parent
    for name in engine._uppers._unused():
        engine.store.remove(found / name)
    return found


def upper_of(engine: Embedded, sandbox: Sandbox) -> Path:
    return engine._uppers.folder(sandbox.id) / "upper"


def number(folder: Path) -> int:
    return folder.stat().st_ino


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on the file system of the machine's root."""
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir="/var/tmp"))
    assert _memory.is_on_disk(str(folder))
    yield folder
    shutil.rmtree(folder)


class TestOneAfterTheOther:
    def test_the_next_sandbox_begins_like_the_first(self, engine: Embedded, create: Create, folders: Path) -> None:
        """Root of a sandbox owns its "/": what it does to that folder is not the next one's, either."""
        first = create()
        used = number(upper_of(engine, first).parent)
        seen = ("stat", "-c", "%a %u %g", "/")
        new = first.exec(*seen).stdout.read()
        script = "mkdir /left && echo left > /left/file && echo x > /etc/hosts.left && chown 33:33 / && chmod 700 /"
        assert first.exec("sh", "-c", script).returncode == 0
        assert first.exec(*seen).stdout.read() == "700 33 33\n", "the control"
        os.setxattr(upper_of(engine, first), "user.left", b"1")
        os.setxattr(upper_of(engine, first), "system.posix_acl_default", DEFAULT_RIGHTS)
        first.terminate()

        second = create()
        assert number(upper_of(engine, second).parent) == used, "it has the same folder"
        assert second.exec(*seen).stdout.read() == new
        assert second.exec("ls", "/left", "/etc/hosts.left").returncode != 0
        assert [name for name in os.listxattr(upper_of(engine, second)) if "overlay" not in name] == []

    @pytest.mark.root
    def test_a_folder_with_flags_is_made_again(self, engine: Embedded, create: Create, folders: Path) -> None:
        first = create()
        upper = upper_of(engine, first)
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = int.from_bytes(fcntl.ioctl(fd, GET_FLAGS, bytes(8))[:4], "little")
            fcntl.ioctl(fd, SET_FLAGS, (flags | NO_DUMP).to_bytes(8, "little"))
        except OSError:
            pytest.skip("the file system of this store has no flags")
        finally:
            os.close(fd)
        first.terminate()
        fd = os.open(upper_of(engine, create()), os.O_RDONLY | os.O_DIRECTORY)
        assert int.from_bytes(fcntl.ioctl(fd, GET_FLAGS, bytes(8))[:4], "little") == flags
        os.close(fd)

    def test_what_a_killed_supervisor_left_is_used_by_nobody(
        self, engine: Embedded, create: Create, folders: Path
    ) -> None:
        first = create()
        first.exec("sh", "-c", "echo secret > /secret")
        left = upper_of(engine, first).parent
        os.kill(run_sync(launch.supervisor(engine.store.folder(first.id))), signal.SIGKILL)
        eventually(lambda: not engine.store.alive(first.id))
        assert (left / "upper/secret").exists(), "the control"
        second = create()
        assert number(upper_of(engine, second).parent) != number(left)
        assert first.poll() == 137
        assert not left.exists(), "who asks how it ended clears it away"

    def test_after_a_boot_the_next_creation_clears_what_is_left(
        self, engine: Embedded, create: Create, folders: Path
    ) -> None:
        """Nothing else tells of a folder then. Those of sandboxes that run are locked."""
        running = create()
        (folders / "faults-0badf00d/upper/full").mkdir(parents=True)
        (folders / "boot").write_text("another boot")
        uppers._clear_once.cache_clear()
        create()
        assert not (folders / "faults-0badf00d").exists()
        assert running.exec("echo", "here").stdout.read() == "here\n"

    def test_more_unused_ones_than_wait_for_a_sandbox_are_removed(
        self, engine: Embedded, create: Create, folders: Path
    ) -> None:
        """A thousand at once left a thousand, and each creation read their names."""
        sandboxes = [create() for _ in range(2)]
        for number in range(uppers.MOST_UNUSED):
            (folders / f".{number}").mkdir()
        (folders / ".of-an-earlier-version").mkdir()
        for sandbox in sandboxes:
            sandbox.terminate()
        engine.gc()
        left = {path.name for path in folders.iterdir()} - {"boot"}
        assert left == {f".{number}" for number in range(uppers.MOST_UNUSED)}
        for name in left:
            (folders / name).rmdir()

    def test_a_name_that_another_folder_has_got_meanwhile_is_no_trap(
        self, engine: Embedded, create: Create, folders: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who locks one folder may take another by its name: `gc` would remove one without a lock."""
        for sandbox in [create() for _ in range(2)]:
            sandbox.terminate()
        lock = uppers._shared

        def exchanged(path: str | Path) -> Lock | None:
            held = lock(path)
            if str(path) == f"{folders}/.0":
                (folders / ".0").rename(folders / ".aside")
                (folders / ".1").rename(folders / ".0")
            return held

        monkeypatch.setattr(uppers, "_shared", exchanged)
        found = create()
        monkeypatch.undo()
        (folders / ".aside").rename(folders / ".1")
        engine.gc()
        assert found.exec("sh", "-c", "echo x > /file && cat /file").stdout.read() == "x\n"
        assert upper_of(engine, found).joinpath("file").exists()


class TestInMemory:
    @pytest.mark.root
    def test_folders_of_sandboxes_are_on_run_and_of_one_state_folder_only(
        self, engine: Embedded, create: Create, tmp_path: Path
    ) -> None:
        sandbox, other = create(), Embedded(tmp_path)
        other.store.prepare()
        folder = engine.store.folder(sandbox.id)
        assert folder.parent == _config.machine() / "sandboxes"
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert sandbox.id in engine.store.ids()
        assert sandbox.id not in other.store.ids()
        link = tmp_path / "link"
        link.symlink_to(engine.store.state)
        assert Embedded(link).store.ids() == engine.store.ids(), "another path of the same folder"

    @pytest.mark.root
    def test_what_a_killed_program_left_of_a_state_folder_that_is_gone_is_removed(self, engine: Embedded) -> None:
        """No other state folder's `gc` knows the beginning of its name."""
        stray = _config.machine() / "sandboxes" / ".ffffff-1.gone-0badf00d"
        stray.mkdir()
        engine.gc()
        assert not stray.exists()

    def test_without_room_they_are_beside_the_store_and_found_all_the_same(
        self, engine: Embedded, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As those of the version before this one are."""
        with creating(image=image, engine=Embedded()) as create:
            monkeypatch.setattr(_memory, "_ROOM", 1 << 62)
            sandbox = create("sleep", "600")
            monkeypatch.undo()
            assert engine.store.folder(sandbox.id).parent == engine.store.sandboxes
            found = Sandbox.from_id(sandbox.id, engine=engine)
            assert found.exec("echo", "found").stdout.read() == "found\n"
            found.terminate()
            assert not engine.store.folder(sandbox.id).exists()
            with pytest.raises(SandboxNotRunningError, match="terminated"):
                sandbox.exec("true")

    @pytest.mark.parametrize("left", [False, True])
    def test_where_run_is_on_the_disk_a_file_system_in_memory_is_mounted_once(
        self, on_disk: Path, tmp_path: Path, left: bool
    ) -> None:
        """As in most containers: a create took a fifth longer. What runs already keeps its folder."""
        if left:
            (on_disk / "openmodal/sandboxes/1-2.left").mkdir(parents=True)
        code = "for _ in range(2): Store(Path(sys.argv[1]), brief=True).prepare()"
        program = f"import sys; from pathlib import Path; from openmodal._store import Store\n{code}"
        begin = f"umount -l /run/openmodal/sandboxes 2>/dev/null; mount --bind {on_disk} /run"
        script = f'{begin} && "$@" && grep /run/openmodal/sandboxes /proc/self/mountinfo; :'
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            program,
            str(tmp_path / "state"),
        ]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        assert [line.partition(" - ")[2].split()[0] for line in found] == ([] if left else ["tmpfs"])
        assert all("nosuid,nodev,noexec" in line and "mode=700" in line for line in found)
        assert [path.name for path in on_disk.rglob("1-2.left")] == (["1-2.left"] if left else [])
