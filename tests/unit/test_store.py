"""State is files: complete or absent, locked while alive, and never somebody else's."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmodal import _config, _ends, _store
from openmodal._dual import run_sync
from openmodal._spec import EndRecord, SandboxSpec, Status
from openmodal._store import KEEP_ENDED_SECONDS, Store
from openmodal.engines import choose
from openmodal.engines.book import Book
from openmodal.errors import EngineError, InvalidError, NotFoundError

ID = "my-app-758f3413"


def status(id: str = ID) -> Status:
    return Status(id, "my-app", "name", (("a", "b"),), 1.0, 301.0, "image", "embedded")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "state")
    found.prepare()
    return found


@pytest.fixture
def alive(store: Store) -> Iterator[Path]:
    """A sandbox whose supervisor lives: its lock is held."""
    with store.new(status()) as folder:
        pass
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield folder
    os.close(fd)


def test_folders_are_private(store: Store) -> None:
    for folder in (store.state, store.sandboxes, store.ended):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    store.prepare()


@pytest.mark.parametrize("before", [None, 0o755])
def test_what_sandboxes_share_in_memory_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
) -> None:
    """After a boot /run/openmodal was open to all, and anybody could hold the router's lock."""
    machine = tmp_path / "run" / "openmodal"
    monkeypatch.setattr(_config, "machine", lambda: machine)
    if before:
        machine.mkdir(parents=True)
        machine.chmod(before)
    found = Store(tmp_path / "state", brief=True)
    found.prepare()
    folders = (machine, *([Path(found.brief).parent] if found.brief else []))
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_a_status_of_any_size_is_read_whole(store: Store) -> None:
    """There may be any number of tags. A sandbox with more than 64 KiB of them could not be found."""
    tags = tuple((f"{number:063d}", "v" * 63) for number in range(1200))
    many = msgspec.structs.replace(status(), tags=tags)
    with store.new(many) as folder:
        assert store.status(ID) == many
    assert store.write_end(ID, EndRecord("terminated", 137, 1.0, "x"))
    store.remove(folder)
    assert store.status(ID) == many


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="OPENMODAL_HOME"):
        Store(tmp_path / "file/state").prepare()


@pytest.mark.root
def test_somebody_elses_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65534, 65534)
    with pytest.raises(EngineError, match="65534"):
        Store(tmp_path / "state").prepare()


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("mode", "safe"), [(0o777, False), (0o707, False), (0o1777, True), (0o775, True), (0o755, True)]
)
def test_a_state_folder_that_others_can_replace_is_refused(tmp_path: Path, mode: int, safe: bool, linked: bool) -> None:
    """K11: a parent that everybody may write to, directly or behind a link. In a sticky one, as /tmp is, nobody renames others' things."""
    home = tmp_path / "open" / "inner"
    home.mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    home.parent.chmod(mode)
    store = Store((tmp_path / "link" if linked else home) / "state")
    if safe:
        store.prepare()
        return
    with pytest.raises(
        EngineError, match=rf"{home.parent} may be written by everybody \(mode {mode:o}\).*OPENMODAL_HOME"
    ):
        store.prepare()
    assert not (home / "state").exists()


@pytest.mark.root
def test_a_state_folder_below_somebody_elses_is_refused(tmp_path: Path) -> None:
    """K11: its owner can replace it, whatever its mode."""
    (tmp_path / "theirs").mkdir(mode=0o755)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(EngineError, match="theirs belongs to user 65534"):
        Store(tmp_path / "theirs/mine/state").prepare()


@pytest.mark.parametrize("id", ["", ".", "..", "../x", "a/b", "/etc", "a\0", "a\n", "-x", ".hidden", "x" * 100, "ü"])
def test_what_cannot_be_an_id_is_not_found(store: Store, id: str) -> None:
    with pytest.raises(NotFoundError):
        store.folder(id)


@given(st.text())
def test_an_id_that_can_be_stays_in_the_folder(id: str) -> None:
    store = Store(Path("/state"))
    try:
        folder = store.folder(id)
    except NotFoundError:
        return
    assert folder.parent == store.sandboxes
    assert folder.name not in ("", ".", "..")


def test_a_new_sandbox_has_status_and_lock_during_the_block(store: Store) -> None:
    with store.new(status()) as folder:
        assert store.status(ID) == status()
        assert store.alive(ID), "its maker holds it"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert store.ids() == [ID]
    assert not store.alive(ID), "no supervisor has taken it over"


def test_a_block_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.new(status()) as folder:  # noqa: PT012
        (folder / "upper").mkdir()
        (folder / "upper/file").touch()
        raise ZeroDivisionError
    assert os.listdir(store.sandboxes) == []


def test_an_id_that_exists_is_not_taken_over(store: Store, alive: Path) -> None:
    with pytest.raises(FileExistsError), store.new(status()):
        pass
    assert store.status(ID) == status()


def test_a_sandbox_lives_as_long_as_its_lock_is_held(store: Store, alive: Path) -> None:
    assert store.alive(ID)
    (alive / "lock").unlink()
    assert not store.alive(ID)


def test_a_link_in_place_of_the_lock_is_not_followed(store: Store, alive: Path, tmp_path: Path) -> None:
    held = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    (alive / "lock").unlink()
    (alive / "lock").symlink_to(tmp_path / "other")
    assert not store.alive(ID)
    os.close(held)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"id": 7}', b"null"])
def test_a_status_that_is_not_complete_is_none(store: Store, alive: Path, content: bytes) -> None:
    (alive / "status.json").write_bytes(content)
    assert store.status(ID) is None
    assert store.ids() == [ID]


def test_readers_see_the_old_status_or_the_new(store: Store, alive: Path) -> None:
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            found = store.status(ID)
            seen.add(found.tags if found else None)

    thread = threading.Thread(target=read)
    thread.start()
    from msgspec.structs import replace

    for n in range(200):
        store.write_status(replace(status(), tags=(("n", str(n)),)))
    stop.set()
    thread.join()
    assert None not in seen


def test_how_it_ended_is_kept_once(store: Store) -> None:
    assert store.end(ID) is None
    store.write_end(ID, EndRecord("oom", 137, 12.5, "it ran out of memory", (1, 2)))
    store.write_end(ID, EndRecord("lost", 1))
    assert store.end(ID) == EndRecord("oom", 137, 12.5, "it ran out of memory", (1, 2))
    assert os.listdir(store.ended) == [ID]


@given(st.text())
def test_a_record_that_cannot_be_read_is_a_lost_sandbox_and_no_exception(text: str) -> None:
    assert _ends.decode(text).reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reason=exited\nreturncode=3\nstarted=1\nended=2.5\ntext=a=b c\n", EndRecord("exited", 3, 2.5, "a=b c")),
        ("reason=timeout\nreturncode=124\n", _ends.ended("timeout", 124, 0.0)),
        ("reason=timeout\nreturncode=124\nwritten=3 4\n", _ends.ended("timeout", 124, 0.0, written=(3, 4))),
        ("reason=timeout\n", EndRecord("lost", 137, 0.0, "its supervisor left a record that cannot be read")),
        ("", EndRecord("lost", 137, 0.0, "its supervisor left a record that cannot be read")),
    ],
)
def test_records_are_lines_of_key_and_value(text: str, expected: EndRecord) -> None:
    assert _ends.decode(text) == expected


def test_the_main_commands_output_is_kept(store: Store) -> None:
    (store.ended / f"{ID}.stdout").write_bytes(b"\xff out")
    assert store.main_output(ID, 1) == b"\xff out"
    assert store.main_output(ID, 2) == b""


def test_what_ended_long_ago_is_forgotten(store: Store) -> None:
    for id in ("old-00000000", "new-00000000"):
        store.write_end(id, EndRecord("exited", 0))
    long_ago = time.time() - KEEP_ENDED_SECONDS - 10
    os.utime(store.ended / "old-00000000", (long_ago, long_ago))
    store.prune_ended()
    assert os.listdir(store.ended) == ["new-00000000"]


def test_of_many_that_ended_the_newest_are_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "MOST_ENDED", 2)
    for age, id in enumerate(("new-00000000", "newer-00000000", "old-00000000")):
        store.write_end(id, EndRecord("exited", 0))
        os.utime(store.ended / id, (time.time() - age,) * 2)
    store.prune_ended()
    assert sorted(os.listdir(store.ended)) == ["new-00000000", "newer-00000000"]


def test_of_what_many_have_printed_the_newest_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each could leave 16 MiB for a day: 10,000 of a task filled the disk. How they ended stays."""
    monkeypatch.setattr(_store, "MOST_OUTPUT", 5 << 20)
    for age, id in enumerate(("new-00000000", "old-00000000")):
        store.write_end(id, EndRecord("exited", 0))
        (store.ended / f"{id}.stdout").write_bytes(bytes(4 << 20))
        for name in (id, f"{id}.stdout"):
            os.utime(store.ended / name, (time.time() - 10 * age,) * 2)
    store.prune_ended()
    assert sorted(os.listdir(store.ended)) == ["new-00000000", "new-00000000.stdout", "old-00000000"]


def test_a_look_at_some_of_many_forgets_what_a_look_at_all_does_after_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each creation may be the one that tidies up, and waited for a look at ten thousand files."""
    monkeypatch.setattr(_store, "MOST_ENDED", 30)
    monkeypatch.setattr(_store, "MOST_OUTPUT", 30)
    monkeypatch.setattr(_store, "_SOME", 8)
    monkeypatch.setattr(_store, "_LARGE", 1)
    long_ago = time.time() - KEEP_ENDED_SECONDS - 10
    for number in range(36):
        (store.ended / f"large-{number}").write_bytes(bytes(2))
        if number % 4 == 0:
            os.utime(store.ended / f"large-{number}", (long_ago, long_ago))
    store.prune_ended(some=True)
    assert 28 <= len(os.listdir(store.ended)) <= 34, "of 8 files those that are old, and all but 6 bytes of the others"
    for _ in range(300):
        store.prune_ended(some=True)
    left = [path.stat() for path in store.ended.iterdir()]
    assert all(seen.st_mtime > long_ago for seen in left)
    assert sum(seen.st_size for seen in left) <= 30


def test_how_it_ended_and_what_it_was_are_one_file(store: Store, alive: Path) -> None:
    store.write_end(ID, EndRecord("exited", 3, 2.5, "it said a=b"))
    store.remove(alive)
    assert os.listdir(store.ended) == [ID]
    assert store.status(ID) == status()
    assert store.end(ID) == EndRecord("exited", 3, 2.5, "it said a=b")


def test_what_a_version_before_this_one_kept_is_known(store: Store) -> None:
    (store.ended / ID).write_text("reason=exited\nreturncode=0\n")
    (store.ended / f"{ID}.status").write_bytes(msgspec.json.encode(status()))
    assert store.status(ID) == status()


def test_removal_copes_with_links_modes_and_others_who_remove(store: Store, alive: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("keep")
    (alive / "link").symlink_to(tmp_path)
    (alive / "deep/er").mkdir(parents=True)
    (alive / "deep").chmod(0)
    store.remove(alive)
    store.remove(alive)
    assert (tmp_path / "outside").read_text() == "keep"
    assert not alive.exists()


@pytest.mark.parametrize(
    ("reason", "code", "sentence"),
    [
        ("exited", 3, "its main command exited with 3"),
        ("timeout", 124, "its timeout expired; give Sandbox.create a longer timeout="),
        ("unheard-of", 1, "it ended (unheard-of)"),
    ],
)
def test_each_reason_has_its_sentence(reason: str, code: int, sentence: str) -> None:
    assert _ends.ended(reason, code, 0.0).text == sentence
    assert _ends.decode(_ends.encode(EndRecord(reason, code))).text == sentence, "a supervisor says the reason only"


def test_a_sentence_of_several_lines_cannot_be_taken_for_another_field() -> None:
    end = EndRecord("error", 137, 1.0, "the cluster says\nreason=exited\nstatus={}")
    assert _ends.decode(_ends.encode(end)) == EndRecord("error", 137, 1.0, "the cluster says reason=exited status={}")


class TestNames:
    @pytest.fixture
    def book(self, tmp_path: Path) -> Book:
        book = Book(tmp_path / "state", choose("embedded"))
        book.prepare()
        return book

    def test_they_are_taken_one_after_the_other(self, book: Book) -> None:
        inside, most, lock = 0, 0, threading.Lock()
        named = SandboxSpec("my-app", name="name")

        async def take() -> None:
            nonlocal inside, most
            async with book.naming(named):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1

        threads = [threading.Thread(target=lambda: run_sync(take())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_one_without_a_name_waits_for_nobody(self, book: Book) -> None:
        async def take() -> None:
            async with book.naming(SandboxSpec("my-app", name="name")), book.naming(SandboxSpec("my-app")):
                pass

        run_sync(take())


def test_without_a_state_folder_there_is_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing").ids() == []
    assert Store(tmp_path / "nothing").ended_ids() == []


def test_of_what_ended_those_are_known_whose_apps_names_have_dots(store: Store) -> None:
    for name in ("my.app-758f3413", "my.app-758f3413.stdout", "my.app-758f3413.made", "chosen", "chosen.stderr"):
        (store.ended / name).write_text("")
    assert store.ended_ids() == ["chosen", "my.app-758f3413"]


class TestConfig:
    def test_the_environment_beats_the_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
        monkeypatch.delenv("OPENMODAL_ENGINE", raising=False)
        assert _config.state() == tmp_path
        assert _config.engine() is None
        (tmp_path / "config.toml").write_text('engine = "docker"\n')
        assert _config.engine() == "docker"
        monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
        assert _config.engine() == "embedded"

    @pytest.mark.parametrize(
        ("name", "told"),
        [("engin", "did you mean 'engine'"), ("Base", "did you mean 'base'"), ("qqq", "there are allow_")],
    )
    def test_a_misspelt_setting_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, told: str
    ) -> None:
        """It was ignored."""
        monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
        (tmp_path / "config.toml").write_text(f'engine = "docker"\n{name} = "x"\n')
        with pytest.raises(InvalidError, match=rf"config\.toml has '{name}', which is no setting; {told}"):
            _config.allow_degraded()

    @pytest.mark.parametrize("home", ["file", "/dev/null", "/tmp/" + "x" * 300])
    def test_what_cannot_be_the_state_folder_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path / home))
        for ask in (_config.state, _config.config_file):
            with pytest.raises(InvalidError, match=r"OPENMODAL_HOME is '.*', which .*; set it to a folder"):
                ask()

    @pytest.mark.parametrize("content", [b"engine = ", b"\xff", b"engine = 7\n"])
    def test_a_file_that_cannot_be_read_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
    ) -> None:
        monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
        monkeypatch.delenv("OPENMODAL_ENGINE", raising=False)
        (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(InvalidError, match=r"config\.toml"):
            _config.engine()
