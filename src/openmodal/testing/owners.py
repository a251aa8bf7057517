"""Files and who owns them: what a sandbox's user, and whoever is named, may see and change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.errors import InvalidError, SandboxPermissionError
from openmodal.filesystem import Filesystem
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import Face, plain
from openmodal.testing.fixtures import Create, promise

AsUser = Callable[[Sandbox, str], Filesystem]


class TestOwners:
    @pytest.fixture
    def agents(self, create: Create, image: Image) -> Sandbox:
        """A sandbox of an image whose user is "agent", 1000, who is in the group "staff"."""
        return create(image=image.user("agent"))

    @pytest.fixture
    def as_user(self, face: Face) -> AsUser:
        return lambda sandbox, user: face(plain(sandbox.filesystem).as_user(user))

    @promise("users")
    def test_what_is_made_belongs_to_the_images_user_whose_commands_can_change_it(
        self, agents: Sandbox, tmp_path: Path
    ) -> None:
        """It was root's, so commands could not change what they were given to work on."""
        files = agents.filesystem
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/file").write_text("copied\n", encoding="utf-8")
        files.write_text("/home/agent/deep/file", "written\n")
        files.make_directory("/home/agent/folder")
        files.copy_from_local(tmp_path / "tree", "/home/agent/tree")
        for path in ("deep", "deep/file", "folder", "tree", "tree/file"):
            info = files.stat(f"/home/agent/{path}")
            assert (path, info.uid, info.gid) == (path, 1000, 1000)
        process = agents.exec("sh", "-c", "cd ~ && echo more >> deep/file && echo more >> tree/file && rm -r folder")
        assert process.stderr.read() == ""
        assert files.read_text("/home/agent/deep/file") == "written\nmore\n"
        files.write_text("/home/agent/tree/file", "again")
        files.rename("/home/agent/tree", "/home/agent/tree2")
        files.remove("/home/agent/tree2", recursive=True)

    @promise("users")
    def test_what_the_user_may_not_do_is_a_permission_error_and_changes_nothing(
        self, agents: Sandbox, as_user: AsUser, tmp_path: Path
    ) -> None:
        files, root = agents.filesystem, as_user(agents, "root")
        root.write_text("/srv/secret", "secret", mode=0o600)
        root.make_directory("/srv/closed", mode=0o700)
        root.write_text("/srv/closed/file", "inside")
        root.write_text("/home/agent/roots", "old")
        refused: list[Callable[[], object]] = [
            lambda: files.read_text("/srv/secret"),
            lambda: files.list_files("/srv/closed"),
            lambda: files.stat("/srv/closed/file"),
            lambda: files.copy_to_local("/srv/closed", tmp_path / "copy"),
            lambda: files.write_text("/srv/new", "x"),
            lambda: files.write_text("/etc/passwd", "x"),
            lambda: files.write_text("/home/agent/roots", "new"),
            lambda: files.make_directory("/srv/folder"),
            lambda: files.remove("/srv/secret"),
            lambda: files.rename("/srv/secret", "/home/agent/secret"),
            lambda: files.chmod("/srv/secret", 0o644),
            lambda: files.chown("/srv/secret", "agent"),
        ]
        for number, act in enumerate(refused):
            with pytest.raises(PermissionError) as caught:
                act()
            assert isinstance(caught.value, SandboxPermissionError), number
        assert root.read_text("/srv/secret") == "secret"
        assert root.read_text("/home/agent/roots") == "old"
        assert "agent" in root.read_text("/etc/passwd")
        assert not (tmp_path / "copy").exists()
        names = [info.name for folder in ("/srv", "/home/agent") for info in root.list_files(folder)]
        assert sorted(names) == ["closed", "roots", "secret"], "nothing half done is left"

    @promise("users")
    def test_anothers_file_that_may_be_written_stays_anothers(self, agents: Sandbox, as_user: AsUser) -> None:
        """Renaming a new file over it would ask the folder only, and take it away from its owner."""
        files, root = agents.filesystem, as_user(agents, "root")
        root.write_text("/srv/shared", "a long old text", mode=0o664)
        root.chown("/srv/shared", "0:staff")
        root.write_text("/srv/own", "a long old text", mode=0o600)
        root.chown("/srv/own", "agent")
        for name, owner in (("shared", (0, 50, 0o664)), ("own", (1000, 0, 0o600))):
            files.write_text(f"/srv/{name}", "new")
            info = files.stat(f"/srv/{name}")
            assert (info.uid, info.gid, info.mode) == owner
            assert files.read_text(f"/srv/{name}") == "new"

    @promise("users")
    def test_any_user_can_be_named(self, sandbox: Sandbox, as_user: AsUser) -> None:
        for user, owner in (("agent", (1000, 1000)), ("agent:staff", (1000, 50)), ("4242:77", (4242, 77))):
            as_user(sandbox, user).write_text("/tmp/file", user)
            info = sandbox.filesystem.stat("/tmp/file")
            assert (info.uid, info.gid) == owner
            sandbox.filesystem.remove("/tmp/file")
        with pytest.raises(PermissionError):
            as_user(sandbox, "agent").write_text("/srv/file", "x")
        sandbox.filesystem.write_text("/srv/file", "the sandbox's own user is root")

    @promise("users")
    def test_a_user_that_is_not_there_is_the_callers_mistake(self, sandbox: Sandbox, as_user: AsUser) -> None:
        nobody = as_user(sandbox, "no-such-user")
        for act in (
            lambda: nobody.read_text("/etc/passwd"),
            lambda: nobody.write_text("/tmp/file", "x" * 3_000_000),
            lambda: sandbox.filesystem.chown("/etc/passwd", "no-such-user"),
        ):
            with pytest.raises(InvalidError, match=r"no-such-user.*/etc/passwd"):
                act()
        with pytest.raises(InvalidError, match="user"):
            plain(sandbox.filesystem).as_user("")
        assert not sandbox.filesystem.exists("/tmp/file")

    def test_modes_are_given_kept_and_changed(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        files.write_text("/tmp/file", "x", mode=0o751)
        files.make_directory("/tmp/folder", mode=0o700)
        assert (files.stat("/tmp/file").mode, files.stat("/tmp/folder").mode) == (0o751, 0o700)
        files.write_text("/tmp/file", "y")
        assert files.stat("/tmp/file").mode == 0o751
        for mode in (0o640, 0, 0o777):
            files.chmod("/tmp/file", mode)
            assert files.stat("/tmp/file").mode == mode
        for wrong in (-1, 0o10000, 0.5, True, "644", None):
            with pytest.raises(InvalidError, match="mode"):
                files.chmod("/tmp/file", wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="mode"):
            files.write_text("/tmp/file", "z", mode=0)

    @promise("users")
    def test_owners_are_changed_by_name_and_number(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        files.write_text("/tmp/file", "x")
        for owner, expected in (
            ("agent", (1000, 0)),
            ("0:staff", (0, 50)),
            ("12:34", (12, 34)),
            ("agent:agent", (1000, 1000)),
        ):
            files.chown("/tmp/file", owner)
            info = files.stat("/tmp/file")
            assert (info.uid, info.gid) == expected
        with pytest.raises(FileNotFoundError):
            files.chown("/nothing", "agent")


__all__ = ["TestOwners"]
