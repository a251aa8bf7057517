"""Copying: what a sandbox sends is hostile, and never leaves the folder it is copied to."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmodal import _planted
from openmodal._localcopy import DEEPEST, PER_ENTRY, Receiver, entries, pieces
from openmodal._wire import Entry
from openmodal.build import local
from openmodal.build.local import scan
from openmodal.errors import (
    ImageBuildError,
    InvalidError,
    ProtocolError,
    SandboxFilesystemError,
    SandboxFileTooLargeError,
)
from openmodal.volume import HostDirectory


def entry(kind: str, path: bytes, *, mode: int = 0o644, target: bytes = b"", size: int = 0) -> Entry:
    return Entry(kind, mode, 0, 0, size, 0, path, target)


ROOT = entry("d", b"", mode=0o755)


def receive(target: Path, *items: Entry, data: bytes = b"", most: int | None = None) -> None:
    with Receiver(target, most) as receiver:
        for item in items:
            receiver.begin(item)
            if item.kind == "f" and data:
                receiver.write(memoryview(data))
        receiver.commit()


def test_a_tree_is_put_in_place(tmp_path: Path) -> None:
    receive(
        tmp_path / "out",
        ROOT,
        entry("d", b"a", mode=0o700),
        entry("f", b"a/file", mode=0o755),
        entry("d", b"a/b", mode=0o755),
        entry("l", b"a/b/link", target=b"../file"),
        entry("f", b"z"),
        data=b"content",
    )
    assert (tmp_path / "out/a/file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "out/a/file").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o700
    assert os.readlink(tmp_path / "out/a/b/link") == "../file"
    assert (tmp_path / "out/z").exists()
    assert os.listdir(tmp_path) == ["out"]


HOSTILE = {
    "upwards": [entry("f", b"../evil")],
    "upwards below": [entry("d", b"a"), entry("f", b"a/../../evil")],
    "absolute": [entry("f", b"/tmp/evil")],
    "dot": [entry("f", b"./evil")],
    "dots alone": [entry("d", b"..")],
    "empty component": [entry("d", b"a"), entry("f", b"a//evil")],
    "trailing slash": [entry("d", b"a/")],
    "NUL": [entry("f", b"evil\0")],
    "second root": [entry("d", b"")],
    "folder not sent": [entry("f", b"a/evil")],
    "folder left already": [entry("d", b"a"), entry("d", b"b"), entry("f", b"a/evil")],
    "through a link": [entry("l", b"a", target=b".."), entry("f", b"a/evil")],
    "through an absolute link": [entry("l", b"a", target=b"/tmp"), entry("f", b"a/evil")],
    "link made a folder": [entry("l", b"a", target=b".."), entry("d", b"a"), entry("f", b"a/evil")],
    "same name twice": [entry("f", b"a"), entry("f", b"a")],
    "folder over file": [entry("f", b"a"), entry("d", b"a")],
    "file over link": [entry("l", b"a", target=b"../evil"), entry("f", b"a")],
    "name too long": [entry("f", b"x" * 300)],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_leaves_the_folder_by(tmp_path: Path, what: str) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises((ProtocolError, OSError)):
        receive(tmp_path / "inner/out", ROOT, *HOSTILE[what], data=b"evil")
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(tmp_path / "inner") == []


names = st.sampled_from([b"", b".", b"..", b"a", b"b", b"a/b", b"a/..", b"../a", b"/a", b"a/b/c", b"\0", b"\xff"])
things = st.builds(
    entry,
    st.sampled_from("fdlo"),
    names,
    mode=st.integers(0, 0o7777),
    target=names.filter(lambda n: n not in (b"", b"\0")),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(things, max_size=8))
def test_whatever_is_sent_stays_inside(tmp_path: Path, items: list[Entry]) -> None:
    (tmp_path / "inner").mkdir(exist_ok=True)
    try:
        receive(tmp_path / "inner/out", *items, data=b"x")
    except (ProtocolError, InvalidError, OSError, ValueError):
        pass
    assert os.listdir(tmp_path) == ["inner"]
    assert set(os.listdir(tmp_path / "inner")) <= {"out"}
    _remove(tmp_path / "inner/out")


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def test_set_user_id_bits_are_dropped(tmp_path: Path) -> None:
    receive(tmp_path / "out", entry("f", b"", mode=0o6755))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    receive(tmp_path / "tree", entry("d", b"", mode=0o7777), entry("f", b"a", mode=0o4711))
    assert stat.S_IMODE((tmp_path / "tree/a").stat().st_mode) == 0o711
    assert stat.S_IMODE((tmp_path / "tree").stat().st_mode) == 0o777


def test_folders_stay_usable_for_their_owner(tmp_path: Path) -> None:
    receive(tmp_path / "out", entry("d", b"", mode=0), entry("d", b"a", mode=0o111), entry("f", b"a/b"))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o711


def test_devices_and_pipes_are_left_out(tmp_path: Path) -> None:
    receive(tmp_path / "out", ROOT, entry("o", b"pipe"), entry("f", b"file"))
    assert os.listdir(tmp_path / "out") == ["file"]
    with pytest.raises(InvalidError):
        receive(tmp_path / "other", entry("o", b""))


def test_bytes_without_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError), Receiver(tmp_path / "out") as receiver:  # noqa: PT012
        receiver.begin(ROOT)
        receiver.write(memoryview(b"x"))
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_what_was_asked_for_is_refused(tmp_path: Path) -> None:
    """An agent that is older than this SDK sends it; made here, it would lead to a file of this machine."""
    with pytest.raises(InvalidError, match="link"):
        receive(tmp_path / "inner/out", entry("l", b"", target=b".."))
    assert os.listdir(tmp_path / "inner") == []


def test_a_folder_is_not_merged_into_what_a_local_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("theirs")
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(InvalidError, match="link"):
        receive(tmp_path / "out", ROOT, entry("f", b"file"), data=b"evil")
    assert (tmp_path / "elsewhere/file").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "out"]


def test_a_tree_that_is_too_deep_is_refused_and_taken_away(tmp_path: Path) -> None:
    """Each level holds a descriptor, and removing it some stack."""
    folders = [entry("d", b"/".join([b"d"] * depth)) for depth in range(1, DEEPEST + 1)]
    receive(tmp_path / "deepest", ROOT, *folders)
    receive(tmp_path / "deepest", ROOT, *folders)
    with pytest.raises(SandboxFilesystemError, match="deeper than 256"):
        receive(tmp_path / "out", ROOT, *folders, entry("d", b"/".join([b"d"] * (DEEPEST + 1))))
    assert os.listdir(tmp_path) == ["deepest"]
    assert sum(1 for _ in entries(tmp_path / "deepest")) == DEEPEST + 1
    (tmp_path / "deepest" / "/".join("d" * (DEEPEST + 1))).mkdir()
    with pytest.raises(InvalidError, match="deeper"):
        list(entries(tmp_path / "deepest"))


@pytest.mark.parametrize("name", [".", "a/..", "a/."])
def test_a_target_that_ends_in_dots_is_the_folder_that_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    receive(Path(name), ROOT, entry("f", b"file"), data=b"x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) in (["a", "a/file"], ["a", "file"])


def test_an_empty_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        receive(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_tree_without_a_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="root"):
        receive(tmp_path / "out", entry("f", b"a"))


def test_without_commit_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(ZeroDivisionError), Receiver(tmp_path / "out") as receiver:  # noqa: PT012
        receiver.begin(entry("f", b""))
        receiver.write(memoryview(b"new"))
        raise ZeroDivisionError
    assert (tmp_path / "out").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_replaces_a_file_or_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("keep")
    (tmp_path / "out").symlink_to("keep")
    receive(tmp_path / "out", entry("f", b""), data=b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert (tmp_path / "keep").read_text() == "keep"


def test_a_folder_merges_and_follows_no_local_link_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/keep").write_text("keep")
    with pytest.raises(InvalidError, match=r"/out/a is a folder in the sandbox, and none here"):
        receive(tmp_path / "out", ROOT, entry("d", b"a", mode=0o755), entry("f", b"a/file"))
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (tmp_path / "out/keep").read_text() == "keep"


def test_what_meets_another_kind_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    """It stopped half merged, with Python's error, whenever a sandbox wanted that."""
    was = entry("d", b"d", mode=0o755)
    receive(tmp_path / "out", ROOT, entry("f", b"a"), was, entry("f", b"d/is"), data=b"old")
    for bad in (entry("f", b"d/is"), entry("d", b"d/is", mode=0o755)):
        kinds = [was, bad] if bad.kind == "d" else [entry("f", b"d")]
        with pytest.raises(
            InvalidError, match=r"/out/d(/is)? is (a|no) folder in the sandbox, and (none|one) here; rem"
        ):
            receive(tmp_path / "out", ROOT, entry("f", b"a"), *kinds, data=b"new")
        assert (tmp_path / "out/a").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidError, match="folder"):
        receive(tmp_path / "out", entry("f", b""))
    assert os.listdir(tmp_path) == ["out"]


def test_missing_parents_of_the_target_are_made(tmp_path: Path) -> None:
    receive(tmp_path / "a/b/out", entry("f", b""), data=b"x")
    assert (tmp_path / "a/b/out").read_bytes() == b"x"


def test_a_target_with_the_longest_name_works(tmp_path: Path) -> None:
    receive(tmp_path / ("x" * 255), entry("f", b""), data=b"x")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"x"


def test_what_is_read_is_what_is_received(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(os.urandom(1_500_000))
    (source / "a/empty").touch()
    (source / "a/odd\nname\udcff").write_text("odd")
    (source / "link").symlink_to("/no/where")
    os.mkfifo(source / "pipe")
    with Receiver(tmp_path / "copy") as receiver:
        for item, file in entries(source):
            receiver.begin(item)
            if file:
                for piece in pieces(file, item.size):
                    assert isinstance(piece, bytes)
                    receiver.write(memoryview(piece))
        receiver.commit()
    assert (tmp_path / "copy/a/b/file").read_bytes() == (source / "a/b/file").read_bytes()
    assert (tmp_path / "copy/a/odd\nname\udcff").read_text() == "odd"
    assert os.readlink(tmp_path / "copy/link") == "/no/where"
    assert sorted(os.listdir(tmp_path / "copy")) == ["a", "link"], "a pipe is left out"


def test_folders_come_before_what_is_in_them_and_owners_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "b/a").touch()
    (tmp_path / "a").touch()
    found = [item for item, _ in entries(tmp_path)]
    assert [item.path for item in found] == [b"", b"a", b"b", b"b/a", b"b/c"]
    assert {(item.uid, item.gid) for item in found} == {(0, 0)}


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    with open(tmp_path / "file", "rb") as file, pytest.raises(InvalidError, match="shorter"):
        list(pieces(file, 11))


def test_a_file_that_becomes_longer_is_cut_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open(tmp_path / "file", "rb") as file:
        assert list(pieces(file, 4)) == [b"0123"]


def test_holes_are_told_and_what_is_told_is_made(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as made:
        made.seek(10 << 20)
        made.write(b"middle")
        made.truncate(1 << 40)
    with open(tmp_path / "file", "rb") as file, Receiver(tmp_path / "copy", 1 << 20) as receiver:
        receiver.begin(entry("f", b"", size=1 << 40))
        told = list(pieces(file, 1 << 40, holes=True))
        for piece in told:
            receiver.skip(piece) if isinstance(piece, int) else receiver.write(memoryview(piece))
        receiver.commit()
    assert isinstance(told[0], int)
    assert b"middle" in b"".join(piece for piece in told if isinstance(piece, bytes))
    assert sum(piece if isinstance(piece, int) else len(piece) for piece in told) == 1 << 40
    for name in ("file", "copy"):
        info = (tmp_path / name).stat()
        assert (info.st_size, info.st_blocks < 1000) == (1 << 40, True)
    with open(tmp_path / "copy", "rb") as copy:
        assert os.pread(copy.fileno(), 8, (10 << 20) - 1) == b"\0middle\0"


def test_a_sparse_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1 << 20)
    with open(tmp_path / "file", "rb") as file, pytest.raises(InvalidError, match="shorter"):
        list(pieces(file, 2 << 20, holes=True))


def test_a_hole_without_a_file_is_refused(tmp_path: Path) -> None:
    for size in (1, 1 << 63):
        with pytest.raises(ProtocolError), Receiver(tmp_path / "out") as receiver:  # noqa: PT012
            receiver.begin(entry("f", b"") if size > 1 else ROOT)
            receiver.skip(size)
    assert os.listdir(tmp_path) == []


def test_no_more_is_written_than_was_wanted(tmp_path: Path) -> None:
    """Empty files and folders count, too: an agent that lies could send them without end."""
    receive(tmp_path / "out", ROOT, entry("f", b"a"), data=bytes(100), most=2 * PER_ENTRY + 100)
    for what in ([entry("f", b"a")], [entry("d", b"a"), entry("d", b"b"), entry("l", b"c", target=b"x")]):
        with pytest.raises(SandboxFileTooLargeError):
            receive(tmp_path / "more", ROOT, *what, data=bytes(101), most=2 * PER_ENTRY + 100)
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nothing-here"):
        with pytest.raises(InvalidError, match=name):
            list(entries(tmp_path / name))


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
def test_a_link_that_is_named_itself_is_not_followed(tmp_path: Path, target: str) -> None:
    """A sandbox may have sent it, to get a file of this machine back."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(InvalidError, match="link"):
        list(entries(tmp_path / "link"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from openmodal._localcopy import DEEPEST, Receiver
from openmodal._wire import Entry
from openmodal.build.local import scan
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk does, it cuts a write short
try:
    with Receiver(Path(sys.argv[1])) as receiver:
        receiver.begin(Entry("f", 0o644, 0, 0, 1500, 0, b"", b""))
        receiver.write(memoryview(bytes(1500)))
        receiver.commit()
except OSError as error:
    print("refused", error.errno)
"""


def test_a_write_that_is_cut_short_is_no_success(tmp_path: Path) -> None:
    """write(2) may take a part of the bytes when the disk is nearly full, and say no more than how many."""
    (tmp_path / "out").write_text("old")
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("refused")
    assert (tmp_path / "out").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def through(way: Path) -> list[Callable[[], object]]:
    """All that goes the way of a local path: out of a sandbox, into one, and into an image."""
    return [
        lambda: receive(way / "new/file", entry("f", b""), data=b"evil"),
        lambda: list(entries(way / "file")),
        lambda: scan(str(way / "file")),
        lambda: scan(str(way)),
    ]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A tree with a link that a sandbox sent; it leads to a folder of this machine."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("of this machine")
    receive(tmp_path / "out", ROOT, entry("d", b"a"), entry("l", b"a/link", target=os.fsencode(theirs)))
    return tmp_path / "out/a/link"


@pytest.mark.parametrize("number", range(4))
def test_a_link_from_a_sandbox_is_followed_nowhere_in_a_path(planted: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "mine").symlink_to("out")
    os.rename(tmp_path / "out", tmp_path / "moved")
    os.rename(tmp_path / "moved", tmp_path / "out")
    for way in (planted, tmp_path / "mine/a/link", planted.parent / "../a/./link", planted.parent / "new/../link"):
        with pytest.raises(InvalidError, match=r"link.*copied from a sandbox.*realpath"):
            through(way)[number]()
    assert os.listdir(tmp_path / "theirs") == ["file"]
    planted.unlink()
    planted.symlink_to(tmp_path / "theirs")
    through(tmp_path / "mine/a/link")[number]()  # the control: links of the user's own


def test_links_that_lead_nowhere_or_in_a_circle_are_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("/no/where")
    for name in ("circle", "nowhere", "missing"):
        with pytest.raises(InvalidError, match="cannot be copied"):
            list(entries(tmp_path / name / "file"))


def test_no_folder_is_made_where_a_sandbox_has_put_a_link_meanwhile(
    lent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were made by name, and only then it was seen where."""
    look = _planted.refuse

    def late(path: Path) -> str:
        real = look(path)
        (lent / "new").symlink_to(lent.parent / "theirs")
        return real

    receive(lent / "made/here/out", entry("f", b""), data=b"x")
    monkeypatch.setattr(_planted, "refuse", late)
    with pytest.raises(InvalidError, match="exchanged"):
        receive(lent / "new/deep/out", entry("f", b""), data=b"x")
    assert os.listdir(lent.parent / "theirs") == ["file"]


@pytest.fixture
def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a sandbox may write to, with links in it: out, and to its own `inner`."""
    monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path / "home"))
    for folder in (tmp_path / "theirs", tmp_path / "lent/inner"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("of this machine")
    (tmp_path / "lent/out").symlink_to("../theirs")
    (tmp_path / "lent/in").symlink_to(tmp_path / "lent/inner")
    (tmp_path / "mine").symlink_to("lent/out")
    HostDirectory(tmp_path / "lent", read_only=False).mount("/src")
    return tmp_path / "lent"


@pytest.mark.parametrize("number", range(4))
def test_no_link_leads_out_of_a_folder_that_a_sandbox_may_write_to(lent: Path, number: int) -> None:
    for way in (lent / "out", lent / "in/../out", lent.parent / "mine"):
        with pytest.raises(InvalidError, match=r"'.*/lent/out' is a link that leads out of .*realpath"):
            through(way)[number]()
        with pytest.raises(InvalidError, match="leads out of"):
            HostDirectory(way)
    assert os.listdir(lent.parent / "theirs") == ["file"]
    # The controls: to where the sandbox can write anyway, and where none was.
    through(lent / "in")[number]()
    shutil.rmtree(lent.parent / "home/given")
    through(lent / "out")[number]()


def test_a_folder_is_not_exchanged_while_it_is_opened(lent: Path) -> None:
    for way, real in ((lent / "inner", str(lent / "inner")), (lent.parent / "theirs", "")):
        assert _planted.refuse(way) == real, "only in folders of sandboxes can anybody exchange it"
    fds = [os.open(lent / name, os.O_RDONLY) for name in ("inner", "out")]
    _planted.stay(str(lent / "inner"), fds[0])
    with pytest.raises(InvalidError, match="exchanged"):
        _planted.stay(str(lent / "inner"), fds[1])
    os.close(fds[0])


def test_folders_that_are_gone_are_noted_no_longer(lent: Path) -> None:
    def given_(name: str) -> int:
        HostDirectory(lent.parent / name, read_only=False).mount("/src")
        return len(os.listdir(lent.parent / "home/given"))

    assert [given_("lent"), given_("theirs")] == [1, 2]
    shutil.rmtree(lent)
    assert given_("home") == 2


SWAPS: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to a folder": lambda path: path.symlink_to("/etc"),
    "a pipe": os.mkfifo,
    "another file": lambda path: path.write_text("!"),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
@pytest.mark.parametrize("name", ["a/file", "a"])
def test_what_takes_the_place_of_what_was_found_is_not_read(
    name: str, swap: Callable[[Path], object], tmp_path: Path
) -> None:
    """A sandbox that writes meanwhile chooses neither what is read nor that the read never ends."""
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a/file").write_text("content")
    found = scan(str(source))
    assert local.copy_file(found.entries[-1], str(tmp_path / "control"), 0o644)
    (source / name).rename(tmp_path / "away")
    swap(source / name)
    with pytest.raises((ImageBuildError, InvalidError)):
        found.digest()
    with pytest.raises((ImageBuildError, FileNotFoundError)):
        local.copy_file(found.entries[-1], str(tmp_path / "copy"), 0o644)
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_becomes_a_link_is_not_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source/a").mkdir(parents=True)

    class Exchanging:
        def matches(self, path: str) -> bool:
            (tmp_path / "source/a").rmdir()
            (tmp_path / "source/a").symlink_to("/etc")
            return False

    monkeypatch.setattr(local, "matcher", lambda ignore: Exchanging())
    with pytest.raises(ImageBuildError, match="changed"):
        scan(str(tmp_path / "source"))
