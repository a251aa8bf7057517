"""The layer switch: the upper folder of a running sandbox becomes a layer without a copy."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.test_agent import eventually
from tests.native.test_box import BUSYBOX, Box, Host, _children, _gone, public_program, root_host
from tests.native.test_layers import MAKE, UNIFIED, ask, copied, grouped, listing, locked

__all__ = ["public_program", "root_host"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.feature("box"),
    pytest.mark.may_leave("/tmp/om-box-*"),
]


class Stack:
    """The layers of a box, as who asks for switches keeps them."""

    def __init__(self, box: Box) -> None:
        self.box, self.own, self._count = box, list[Path](), 0

    def switch(self, lock: int = -1) -> str:
        """Freeze the upper folder; try again while what ran a moment ago is still there."""
        deadline = time.monotonic() + 20
        while (answer := self.once(lock)).startswith("error busy ") and time.monotonic() < deadline:
            time.sleep(0.001)
        return answer

    def once(self, lock: int = -1) -> str:
        self._count += 1
        frozen = self.box.dir.parent / f"{self.box.dir.name}-{self._count}"
        answer = ask(self.box, f"switch {frozen}", *self.own, listed=True, lock=lock)
        if answer == "ok":
            self.own.insert(0, frozen)
        return answer


@pytest.fixture
def box(root_host: Host) -> Box:
    return grouped(root_host)


@pytest.fixture
def stack(box: Box) -> Stack:
    return Stack(box)


SHOW = """
cd /; /bin/busybox find a opt etc bin -xdev | /bin/busybox sort; stat -c '%a %u %g %h' a/* | /bin/busybox sort
/bin/busybox cat opt/* a/b/one etc/group 2>&1; /bin/busybox readlink a/link; cat /etc/hosts
/bin/busybox cut -d ' ' -f 2-4 /proc/mounts | /bin/busybox sed 's/,[a-z]*dir[^ ]*//'
"""


def test_a_switch_freezes_what_is_there_and_shows_the_same(root_host: Host, box: Box, stack: Stack) -> None:
    (root_host.image / "opt").mkdir()
    (root_host.image / "opt" / "old").touch()
    box.run(MAKE.replace("/bin/cat ", ""))
    files, seen = listing(box.dir / "upper"), box.run(SHOW)
    assert stack.switch() == "ok"
    assert listing(stack.own[0]) == files
    assert not list((box.dir / "upper").iterdir())
    assert box.run(SHOW) == seen
    box.run("echo late >> /a/b/one; /bin/busybox rm -r /a/odd /opt/new; /bin/busybox mv /a/b /c; touch /etc/group")
    assert (
        box.run("cat /c/one; ls /a /opt; cat /etc/group")
        == "one\nlate\n/a:\nlarge\nlink\npipe\nsparse\nsuid\ntwo\n\n/opt:\n"
    )
    assert listing(stack.own[0]) == files
    assert stack.switch() == "ok"
    assert box.run("cat /c/one; ls /a/odd /opt/old 2>&1 | /bin/busybox wc -l") == "one\nlate\n2\n"
    again = grouped(root_host, lower=[*map(str, stack.own), str(root_host.image)])
    assert again.run("cat /c/one; ls /a/odd /opt/old 2>&1 | /bin/busybox wc -l") == "one\nlate\n2\n"


def test_the_root_folder_stays_what_the_sandbox_has_made_of_it(box: Box, stack: Stack) -> None:
    box.run("/bin/busybox chown 33:44 /; chmod 1751 /")
    for _ in range(2):
        assert stack.switch() == "ok"
        assert box.run("stat -c '%a %u %g' /") == "1751 33 44\n"


def shape(box: Box) -> tuple[int, ...]:
    """What must not grow: descriptors, threads, mounts (on this machine: of the box), children."""
    # What was put aside is removed by a child that begins behind the answer.
    assert eventually(lambda: len(_children(box.pid)) <= 1, 10)
    counts = [len(os.listdir(f"/proc/{pid}/{kind}")) for pid in (box.pid, box.init) for kind in ("fd", "task")]
    here, inside = (Path(f"/proc/{pid}/mountinfo").read_text().splitlines() for pid in ("self", box.init))
    ours = sum(str(box.dir.parent) in line for line in here)
    return (*counts, ours, len(inside), len(_children(box.pid)))


def settled(box: Box) -> tuple[int, ...]:
    """Its shape when what follows an answer is over."""
    found = [shape(box)]
    while (now := shape(box)) != found[-1] or len(found) < 3:
        found.append(now)
        time.sleep(0.01)
    return now


def test_hundreds_of_switches_leave_nothing_of_the_old(root_host: Host, box: Box, stack: Stack) -> None:
    assert stack.switch() == "ok"
    before, roots = settled(box), set[int]()
    change = "echo {0} > /file; touch /f{0}; /bin/busybox rm -f /f{1}; cat /file; test ! -e /f{2}"
    for number in range(120):
        assert box.run(change.format(number, number - 3, number - 4)) == f"{number}\n"
        if len(stack.own) == 8:
            merged = box.dir.parent / f"merged{number}"
            assert ask(box, f"merge {merged}", *stack.own).startswith("ok ")
            stack.own = [merged]
        assert stack.switch() == "ok"
        # The kernel gives an overlay the lowest number that is free: what is alive keeps its own.
        roots.add(os.stat(f"/proc/{box.init}/root").st_dev)
    assert eventually(lambda: shape(box) == before, 10), (shape(box), before)
    assert len(roots) < 60, sorted(roots)
    assert {path.name for path in box.dir.iterdir()} <= {
        "agent.sock",
        "control.sock",
        "lock",
        "next",
        "old",
        "upper",
        "work",
    }


def test_while_a_command_runs_there_is_no_switch(box: Box, stack: Stack) -> None:
    link = box.link()
    link.start("/bin/sleep", "1000")
    assert stack.once() == "error busy commands run in the sandbox"
    link.close()
    assert box.run("echo goes on") == "goes on\n"
    assert not list(box.dir.parent.glob(f"{box.dir.name}-*"))


def test_what_begins_during_a_switch_sees_the_new_root_or_keeps_it_from_happening(box: Box, stack: Stack) -> None:
    answers: list[str] = []
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            answers.append(stack.once())
            if len(stack.own) > 20:
                return

    switching = threading.Thread(target=switch)
    switching.start()
    for number in range(60):
        box.run(f"echo {number} > /n{number}; echo {number} >> /all")
    stop.set()
    switching.join()
    assert {answer.split()[0] for answer in answers} <= {"ok", "error"}
    assert all(answer == "ok" or answer.startswith("error busy ") for answer in answers)
    assert box.run("cat /all").split() == [str(number) for number in range(60)]
    assert box.run("cat $(ls / | /bin/busybox grep '^n' | /bin/busybox sed 's|^|/|')").count("\n") == 60


def interrupted(box: Box, begin: Callable[[], str], after: float) -> str:
    """Begin something, kill its process after so many seconds; the answer's first words."""
    children, answers = set(_children(box.pid)), list[str]()
    asking = threading.Thread(target=lambda: answers.append(begin()))
    asking.start()
    new = set[int]()
    while asking.is_alive() and not new:
        new = set(_children(box.pid)) - children
    time.sleep(after)
    for pid in new & set(_children(box.pid)):
        # It may just have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    asking.join()
    return " ".join(answers[0].split()[:2])


def test_a_switch_that_is_killed_at_any_time_has_happened_or_not(box: Box, stack: Stack) -> None:
    stack.switch()
    before, chance, outcomes = settled(box), random.Random(8), set[str]()
    for number in range(60):
        box.run(f"echo {number} >> /all")
        outcomes.add(interrupted(box, stack.once, chance.random() * 0.006))
        assert box.run("cat /all").split() == [str(one) for one in range(number + 1)]
    assert "error internal" in outcomes
    assert box.run("ls /.. | /bin/busybox wc -l") == box.run("ls / | /bin/busybox wc -l")
    assert stack.switch() == "ok"
    assert eventually(lambda: shape(box)[4:] == before[4:], 10), (shape(box), before)
    assert outcomes <= {"ok", "error internal", "error busy"}


def ended(stack: Stack) -> None:
    """Ask for a switch whose supervisor is killed."""
    with contextlib.suppress(OSError):
        stack.once()


def test_a_killed_supervisor_leaves_no_half_layer(root_host: Host) -> None:
    chance = random.Random(5)
    for _ in range(8):
        box = grouped(root_host)
        stack = Stack(box)
        box.run("echo x > /file")
        asking = threading.Thread(target=ended, args=(stack,))
        asking.start()
        time.sleep(chance.random() * 0.008)
        os.kill(box.pid, signal.SIGKILL)
        assert _gone(box.init, within=5)
        asking.join()
        left = [box.dir / "upper" / "file", *(path / "file" for path in box.dir.parent.glob(f"{box.dir.name}-*"))]
        assert [path.read_text() for path in left if path.exists()] == ["x\n"]
        root_host.running.remove(box)
        group = next(UNIFIED.glob(f"om-layers-{os.getpid()}-*"))
        group.rmdir()


def test_the_lock_of_the_newest_layer_is_kept(box: Box, stack: Stack, tmp_path: Path) -> None:
    locks = [tmp_path / str(number) for number in range(3)]
    for lock in locks:
        lock.mkdir()
        fd = os.open(lock, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)
        box.run("echo x >> /file")
        assert stack.switch(fd) == "ok"
        os.close(fd)
        # A child that removes what is old may have the former one for a moment.
        deadline = time.monotonic() + 10
        while [each for each in locks if each.exists() and locked(each)] != [lock]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    box.end()
    assert _gone(box.pid, within=10)
    assert not locked(locks[-1])


def test_links_where_something_is_mounted_lead_nowhere(root_host: Host, tmp_path: Path) -> None:
    """Root of the sandbox moves the folder of a mounted file, and puts a link in its place."""
    (tmp_path / "file").write_text("good\n")
    box = grouped(root_host, bind=[f"{tmp_path}/file\t/in/file\tro"])
    stack = Stack(box)
    box.run("/bin/busybox mv /in /moved; mkdir /evil; echo evil > /evil/file; /bin/busybox ln -s /evil /in")
    for _ in range(2):
        assert box.run("cat /moved/file /in/file") == "good\nevil\n"
        assert stack.switch() == "ok"
    assert box.run("cat /moved/file /in/file; ls /evil") == "good\nevil\nfile\n"


def test_a_frozen_layer_has_a_name_of_its_own(box: Box, stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "no" / "parent", Path("/dev/shm/elsewhere")):
        assert ask(box, f"switch {path}", listed=True).startswith("error plan ")
    assert ask(box, "switch relative", listed=True) == "error plan expected an absolute path behind the word"
    assert box.run("echo goes on") == "goes on\n"
    assert copied(box).is_dir()
