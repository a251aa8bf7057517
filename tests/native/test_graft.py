"""Layers that are mounted in a folder of a running sandbox."""

from __future__ import annotations

import fcntl
import os
import random
from functools import partial
from pathlib import Path

import pytest

from tests.native.test_box import BUSYBOX, Box, Host, public_program, root_host
from tests.native.test_layers import ask, grouped, locked
from tests.native.test_switch import Stack, interrupted

__all__ = ["public_program", "root_host"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.feature("box"),
    pytest.mark.may_leave("/tmp/om-box-*"),
]


@pytest.fixture
def box(root_host: Host) -> Box:
    return grouped(root_host)


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two layers, the newer one with another version of a file."""
    for name in ("new", "old"):
        (tmp_path / name / "both").mkdir(parents=True)
        (tmp_path / name / "both" / name).write_text(f"{name}\n")
        (tmp_path / name / "file").write_text(f"{name}\n")
    return [tmp_path / "new", tmp_path / "old"]


def test_layers_are_mounted_writable_and_stay_as_they_were(box: Box, layers: list[Path]) -> None:
    lock = os.open(layers[0], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    link = box.link()
    link.start("/bin/sleep", "1000")
    assert ask(box, "mount /made/here", *layers, lock=lock) == "ok"
    os.close(lock)
    assert box.run("cd /made/here; ls . both; cat file") == ".:\nboth\nfile\n\nboth:\nnew\nold\nnew\n"
    box.run("echo changed > /made/here/file; /bin/busybox rm /made/here/both/old; echo x > /made/here/x")
    assert box.run("cat /made/here/file; ls /made/here/both") == "changed\nnew\n"
    assert (layers[0] / "file").read_text() == "new\n"
    assert (layers[1] / "both" / "old").exists()
    assert locked(layers[0])
    assert ask(box, "unmount /made/here") == "ok"
    assert not locked(layers[0])
    assert box.run("ls /made/here") == ""
    assert ask(box, "mount /made/here", *layers) == "ok"
    assert box.run("cat /made/here/file; ls /made/here") == "new\nboth\nfile\n"
    link.close()


def test_mounts_survive_a_switch_and_not_a_reset(box: Box, layers: list[Path]) -> None:
    assert ask(box, "mount /here", *layers) == "ok"
    box.run("echo changed > /here/file; echo x > /x")
    assert Stack(box).switch() == "ok"
    assert box.run("cat /here/file /x; echo again > /here/file; cat /here/file") == "changed\nx\nagain\n"
    assert ask(box, "reset", listed=True) == "ok"
    assert box.run("test -e /here || echo none") == "none\n"
    assert ask(box, "mount /here", *layers) == "ok"
    assert box.run("cat /here/file") == "new\n"
    box.end()
    assert not box.dir.exists()


def test_nothing_but_what_was_mounted_is_unmounted(box: Box, layers: list[Path]) -> None:
    """Root of the sandbox puts a link to a mount of ours, which hides something, in its place."""
    assert ask(box, "unmount /proc") == "error plan nothing was mounted on /proc in the sandbox"
    assert ask(box, "mount /in/here", *layers) == "ok"
    assert ask(box, "mount /in/here", *layers).startswith("error plan something is mounted on /in/here ")
    box.run("/bin/busybox mv /in /moved; mkdir /in; /bin/busybox ln -s /proc/sys /in/here")
    assert ask(box, "unmount /in/here").startswith("error plan /in/here in the sandbox is not what was mounted there")
    assert "ro," in next(line for line in box.run("cat /proc/mounts").splitlines() if " /proc/sys " in line)
    box.run("/bin/busybox rm -r /in; /bin/busybox mv /moved /in")
    assert ask(box, "unmount /in/here") == "ok"
    assert "/in/here" not in box.run("cat /proc/mounts")


def test_links_on_the_way_stay_inside(root_host: Host, box: Box, layers: list[Path]) -> None:
    box.run(
        f"mkdir -p /real {root_host.folder}; /bin/busybox ln -s /real /link; /bin/busybox ln -s {root_host.folder} /out; touch /real/file"
    )
    assert ask(box, "mount /link/here", *layers) == "ok"
    assert box.run("cat /real/here/file") == "new\n"
    assert ask(box, "mount /out/here", *layers) == "ok"
    assert box.run(f"cat {root_host.folder}/here/file") == "new\n"
    assert not (root_host.folder / "here").exists()
    assert ask(box, "mount /real/file", *layers).startswith("error image cannot mount on /real/file ")
    assert ask(box, "mount /bad", Path("/nowhere")).startswith("error image cannot mount /nowhere")


def test_another_mount_of_ours_is_not_what_was_mounted_there(box: Box, layers: list[Path]) -> None:
    """Root of the sandbox puts a link to one image in the place of another."""
    assert ask(box, "mount /one/here", layers[0]) == "ok"
    assert ask(box, "mount /other/here", layers[1]) == "ok"
    box.run("/bin/busybox mv /one /moved; mkdir /one; /bin/busybox ln -s /other/here /one/here")
    assert ask(box, "unmount /one/here").startswith("error plan /one/here in the sandbox is not what was mounted there")
    assert box.run("cat /other/here/file /moved/here/file") == "old\nnew\n"
    assert ask(box, "unmount /other/here") == "ok"


def test_what_another_is_mounted_in_stays(box: Box, layers: list[Path]) -> None:
    assert ask(box, "mount /a", layers[0]) == "ok"
    assert ask(box, "mount /a/b", layers[1]) == "ok"
    assert ask(box, "unmount /a") == "error plan /a/b is mounted in /a; unmount it first"
    assert box.run("cat /a/b/file /a/file") == "old\nnew\n"
    assert [ask(box, f"unmount {path}") for path in ("/a/b", "/a")] == ["ok", "ok"]
    assert not locked(layers[0])


def test_a_mount_that_is_killed_at_any_time_is_there_and_held_or_neither(box: Box, layers: list[Path]) -> None:
    """Its process may be killed between the mount and its answer."""
    chance, outcomes = random.Random(7), set[str]()
    for _ in range(40):
        lock = os.open(layers[0], os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        answer = interrupted(box, partial(ask, box, "mount /here", *layers, lock=lock), chance.random() / 200)
        os.close(lock)
        outcomes.add(answer)
        there = box.run("cat /here/file 2>/dev/null; true") == "new\n"
        assert there == (answer == "ok") == locked(layers[0])
        if there:
            answer = interrupted(box, partial(ask, box, "unmount /here"), chance.random() / 400)
            there = box.run("cat /here/file 2>/dev/null; true") == "new\n"
            assert there == (answer != "ok") == locked(layers[0])
        if there:
            assert ask(box, "unmount /here") == "ok"
    assert outcomes == {"ok", "error internal"}
