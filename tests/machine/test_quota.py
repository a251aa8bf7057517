"""A store whose file system has project quota: what a sandbox may write without `disk=` is a hard
limit there. Only the kernel tells whether it has quotas."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal import Image, Sandbox
from openmodal.engines.embedded import Embedded
from tests.disks import mounted_disk

pytestmark = [pytest.mark.machine, pytest.mark.root]

MOST = 48  # MiB
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-m", "0", "-O", "quota,project", "-E", "quotatype=prjquota"],
    "xfs": ["mkfs.xfs", "-q"],
}
LEAVE = "for file in / /srv /srv/x; do chattr -p 7 $file; chattr -P $file; done 2>/dev/null; "
"""Root of the sandbox tries to take its files out of the project."""


@pytest.fixture(params=MKFS)
def quota(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """An engine whose store has project quota."""
    monkeypatch.setattr("openmodal.engines.embedded.engine.MOST_ON_DISK", MOST << 20)
    # So large that the guard does not take it for nearly full.
    disk = mounted_disk(tmp_path, 6000, MKFS[request.param], "loop,prjquota")
    try:
        home = disk.__enter__()
    except subprocess.CalledProcessError:
        pytest.skip(f"this kernel has no project quota for {request.param}")
    try:
        yield Embedded(home)
    finally:
        disk.__exit__(None, None, None)


@pytest.fixture
def image(busybox: Path, tmp_path: Path) -> Image:
    """Made without a command, which would need a network."""
    for folder in ("bin", "srv", "tmp"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    for name in ("sh", "dd", "df", "sync", "wc", "rm", "fallocate", "chattr"):
        (tmp_path / "root/bin" / name).symlink_to("busybox")
    return Image.from_scratch().add_local_dir(tmp_path / "root", "/").add_local_file(busybox, "/bin/busybox")


def written(sandbox: Sandbox, file: str, before: str = "") -> int:
    """How many of 80 MiB a file takes."""
    fill = f"dd if=/dev/zero of={file} bs=1M count=80 2>/dev/null; sync; wc -c <{file} || echo 0"
    return int(sandbox.exec("sh", "-c", before + fill).stdout.read()) >> 20


def test_project_quota_is_a_hard_limit(quota: Embedded, image: Image) -> None:
    """The control is the guard, which ends who has more, but only when it has looked."""
    with Sandbox.create(image=image, engine=quota, timeout=900, block_network=True) as sandbox:
        assert (sandbox.info().disk, sandbox.info().degraded) == (MOST, ())
        assert MOST * 3 // 4 < written(sandbox, "/srv/x", LEAVE) <= MOST
        assert "100%" in sandbox.exec("df", "/").stdout.read()
        assert sandbox.exec("fallocate", "-l", "1M", "/srv/y").returncode != 0
        assert sandbox.exec("sh", "-c", "rm /srv/x; echo there is room >/srv/x").returncode == 0
        assert sandbox.poll() is None


def test_each_sandbox_and_each_generation_has_all_of_its_quota(quota: Embedded, image: Image) -> None:
    """A folder is used again, a checkpoint's files stay, and what is mounted counts."""
    for _ in range(2):
        with Sandbox.create(image=image, engine=quota, timeout=900, block_network=True) as sandbox:
            assert sandbox.exec("sh", "-c", "dd if=/dev/zero of=/srv/x bs=1M count=30").returncode == 0
            point = sandbox.checkpoint()
            assert MOST * 3 // 4 < written(sandbox, "/srv/y") <= MOST
            sandbox.reset(to=point)
            assert MOST * 3 // 4 < written(sandbox, "/srv/y") <= MOST
            sandbox.reset()
            sandbox.mount_image("/srv", image)
            assert written(sandbox, "/srv/y") + written(sandbox, "/x") <= MOST
