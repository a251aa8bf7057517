"""A journal never fails a call, never grows without an end, and tells nothing but whole lines."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from openmodal._journal import MOST, MOST_TEXT, Event, Journal
from openmodal._spec import CommandStatus, EndRecord, ExitRecord, Status
from openmodal._store import KEEP_ENDED_SECONDS, Store
from openmodal.sandbox.timeline import merged

ID = "my-app-758f3413"
STATUS = Status(ID, "my-app", "", (), 1.0, 301.0, "image", "embedded")
RECORD = ExitRecord(False, 0, False, False, 5.0, 7.0, 0.1, 100)

APPENDS = """
import sys
from pathlib import Path
from openmodal._journal import Journal
journal = Journal(lambda: Path(sys.argv[1]))
for number in range(200):
    journal.note("exec", argv=(sys.argv[2], str(number), "x" * 1000))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal"


@pytest.fixture
def journal(place: Path) -> Journal:
    return Journal(lambda: place)


def test_a_call_is_noted_with_its_time_and_what_was_found_meanwhile(journal: Journal, place: Path) -> None:
    with journal.call("read", path="/a") as line:
        line["size"] = 3
    with pytest.raises(ZeroDivisionError), journal.call("write", path="/b"):
        _ = 1 / 0
    read, write = journal.events()
    assert (read.call, read.path, read.size, read.error) == ("read", "/a", 3, "")
    assert read.seconds is not None
    assert abs(read.at - time.time()) < 60
    assert (write.path, write.error) == ("/b", "ZeroDivisionError")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


def test_arguments_are_cut_and_bytes_that_are_no_text_are_escaped(journal: Journal) -> None:
    journal.note("exec", argv=("a", "b" * (MOST_TEXT + 1), "c"), path=os.fsdecode(b"/\xff\n\x1b"))
    (event,) = journal.events()
    assert event.cut
    assert sum(map(len, event.argv)) == MOST_TEXT
    assert event.path == "/\\udcff\n\x1b"


def test_the_newest_lines_are_kept_and_no_more_than_there_is_room_for(journal: Journal, place: Path) -> None:
    for number in range(3 * MOST // 4000):
        journal.note("exec", argv=(f"{number}", "x" * 4000))
    sizes = [path.stat().st_size for path in place.parent.iterdir()]
    assert sum(sizes) <= 2 * (MOST + 8192)
    numbers = [int(event.argv[0]) for event in journal.events()]
    assert numbers == list(range(numbers[0], 3 * MOST // 4000))
    assert len(numbers) >= MOST // 8192


def test_many_processes_write_whole_lines(place: Path, journal: Journal) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDS, str(place), str(number)], env=dict(os.environ))
        for number in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    events = journal.events()
    lines = sum(path.read_bytes().count(b"\n") for path in place.parent.iterdir())
    assert len(events) == lines
    assert {event.argv[0] for event in events} == {"0", "1", "2"}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "file for a folder"])
def test_what_somebody_put_in_its_place_is_left_alone(kind: str, tmp_path: Path) -> None:
    place, other = tmp_path / "journal", tmp_path / "other"
    other.write_text("mine")
    if kind == "link":
        place.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place = other / "journal"
    journal = Journal(lambda: place)
    journal.note("exec")
    assert journal.events() == []
    assert other.read_text() == "mine"


def test_lines_that_make_no_sense_are_left_out(journal: Journal, place: Path) -> None:
    journal.note("create")
    with place.open("ab") as file:
        file.write(b'{"at": 1, "call": "exe\n\xff\xfe\n[1]\n{"at": "x"}\n' + b"[" * 100_000 + b"\n\n")
    journal.note("exec")
    assert [event.call for event in journal.events()] == ["create", "exec"]


def test_a_full_disk_fails_no_call(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with journal.call("exec"):
            pass
    assert journal.events() == []
    journal.note("exec")
    assert len(journal.events()) == 1


def test_it_can_be_turned_off(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENMODAL_JOURNAL", "off")
    Journal(lambda: place).note("exec")
    monkeypatch.delenv("OPENMODAL_JOURNAL")
    monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('journal = "off"\n')
    journal = Journal(lambda: place)
    journal.note("exec")
    assert not place.exists()
    journal = Journal(lambda: place)
    (tmp_path / "config.toml").write_text("journal = no toml\n")
    journal.note("exec")  # the configuration is told to be wrong by what needs it
    (tmp_path / "config.toml").unlink()
    journal.note("exec")
    assert place.exists()


def test_it_is_forgotten_a_day_after_the_end_and_not_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.prepare()
    old = time.time() - KEEP_ENDED_SECONDS - 10
    places = [store.log(ID, name) for name in ("journal", "journal.old")]
    for place in places:
        place.write_text("{}\n")
        os.utime(place, (old, old))
    with store.new(STATUS):
        store.prune_ended()
        assert [place.exists() for place in places] == [True, True]
    assert store.ended_ids() == []
    store.remove(store.folder(ID))
    store.prune_ended()
    assert [place.exists() for place in places] == [False, False]


def test_the_ends_of_commands_come_from_whoever_saw_them() -> None:
    events = [
        Event(2.0, "spawn", 0.1, command="aa", argv=("a",)),
        Event(3.0, "spawn", 0.1, command="bb", argv=("b",)),
        Event(7.0, "exit", command="aa", record=RECORD),
    ]
    commands = [
        CommandStatus("bb", ("b",), False, 2, 3.0, "root", RECORD),
        CommandStatus("cc", ("c",), False, 3, 4.0, "root"),
        CommandStatus("0" * 32, ("m",), False, 1, 1.5, "root"),
    ]
    found = merged(events, commands, STATUS)
    assert [(event.call, event.command) for event in found] == [
        ("create", ""),
        ("main", "0" * 32),
        ("spawn", "aa"),
        ("spawn", "bb"),
        ("exec", "cc"),
    ]
    assert [event.seconds for event in found] == [None, None, 2.0, 2.0, None]
    ended = replace(STATUS, ended=EndRecord("timeout", 124, 9.0, "its timeout expired"))
    assert merged(events, [], ended)[-1] == Event(9.0, "end", detail="its timeout expired")
