"""D. Devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from openmodal.engines.embedded import cgroup, host
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from tests.security import attack
from tests.security.attack import sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]

HARDWARE = """
kvm net/tun fuse vsock vhost-net loop-control loop0 vda sda nvme0 zram0 userfaultfd mem kmsg hwrng input dri nvidia0
mapper console btrfs-control
""".split()


def test_only_harmless_devices_are_there(inside: Sandbox) -> None:
    """D1: and none beside them."""
    wanted = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert sorted(sh(inside, "ls -A /dev").split()) == sorted(wanted.split())
    kinds = {line.split()[0][0] + line.split()[-1].split("/")[-1] for line in sh(inside, "ls -l /dev").splitlines()[1:]}
    assert not any(kind[0] == "b" for kind in kinds)


def test_no_device_of_the_machine_is_there(inside: Sandbox) -> None:
    """D2: none of those that lead to its kernel, disks or network."""
    assert sh(inside, f"for d in {' '.join(HARDWARE)}; do test -e /dev/$d && echo $d; done") == ""
    assert any(os.path.exists(f"/dev/{name}") for name in HARDWARE), "the control"


def test_no_device_can_be_made_or_brought(
    inside: Sandbox, bare: Sandbox, armed: Image, create: Create, tmp_path: Path
) -> None:
    """D4: by root inside, by an upload, by a local folder; archives of images are in tests/build/test_unpack.py."""
    for place in ("/dev/x", "/tmp/x", "/dev/shm/x"):
        assert not works(inside, f"mknod {place} c 1 3")
    assert works(bare, "mknod /dev/shm/x c 1 3"), "the control"
    assert not works(bare, "head -c 1 /dev/shm/x"), "and it would be of no use: no file system has devices"
    os.mknod(tmp_path / "disk", 0o060644, os.makedev(8, 0))
    (tmp_path / "file").write_text("comes along")
    inside.filesystem.copy_from_local(tmp_path, "/tmp/tree")
    assert sh(inside, "ls /tmp/tree") == "file\n"
    assert sh(create(image=armed.add_local_dir(str(tmp_path), "/tree")), "ls /tree") == "file\n"


FOUND = host.hierarchies()
VERSIONS = [*([1] if "devices" in dict(FOUND.v1) else []), *([2] if FOUND.v2 else [])]
"""Those of control groups with which this machine can have a list of devices."""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_control_group_has_a_list_of_devices(weaken: Weaken, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """D4, D2: where all else that keeps devices away is missing. Without a group of version 1, a program in the kernel is the list."""
    if version == 2:
        without = replace(FOUND, v1=tuple(pair for pair in FOUND.v1 if pair[0] != "devices"))
        monkeypatch.setattr(host, "hierarchies", lambda: without)
    place, use = "mount -t tmpfs -o dev tmpfs /tmp", "mknod /tmp/{0} c {1} && true < /tmp/{0}"
    sandbox = weaken(*attack.ALL_CONTROLS)
    assert works(sandbox, place)
    for name, number in (("tun", "10 200"), ("mem", "1 1"), ("port", "1 4"), ("kmsg", "1 11")):
        assert "Operation not permitted" in sh(sandbox, use.format(name, number)), name
    assert not works(sandbox, "mknod /tmp/disk b 1 3"), "a disk with a harmless device's numbers"
    assert works(sandbox, use.format("zero", "1 5"))
    monkeypatch.setattr(cgroup, "_DEVICES", ())
    monkeypatch.setattr(cgroup, "_v1_values", lambda *_: [])
    cgroup._plan.cache_clear()
    try:
        assert works(weaken(*attack.ALL_CONTROLS), f"{place}; {use.format('kmsg', '1 11')}"), "the control"
    finally:
        cgroup._plan.cache_clear()


def test_the_makers_terminal_is_out_of_reach(inside: Sandbox, create: Create) -> None:
    """D5: and nobody types into it (TIOCSTI)."""
    assert not works(inside, "cat < /dev/tty")
    assert sh(inside, "readlink /proc/self/fd/0").strip() == "/dev/null"
    terminal = create().exec("sh", "-c", "echo shown > /dev/tty; readlink /proc/self/fd/0", pty=True)
    assert terminal.stdout.read().split() == ["shown", "/dev/pts/0"], "the control: it may have one of its own"
    assert sh(inside, "probe call 16 0 0x5412 s:x").strip() == "ERR 1"
