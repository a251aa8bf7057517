"""`disk=` where the daemon limits what containers write: on xfs with project quotas, or on btrfs
where this kernel's xfs has none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from openmodal.engines.docker.engine import Docker
from openmodal.engines.docker.host import Host
from openmodal.engines.docker.links import RUN
from openmodal.errors import UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from tests.disks import mounted_disk
from tests.docker.dockerd import bridge, dockerd

# The daemon mounts its folder over itself, with its first image.
pytestmark = pytest.mark.may_leave("*/home/data/btrfs")

LIMIT = 64  # MiB
LIMITING = {"xfs": ("mkfs.xfs -q", "loop,pquota"), "btrfs": ("mkfs.btrfs -q", "loop")}


@contextmanager
def on_disk(*names: str, options: str = "") -> Iterator[Docker]:
    """An engine with a daemon of its own, whose data is on the first of these file systems that this
    kernel mounts so."""
    mkfs, usual = LIMITING[names[0]]
    with ExitStack() as stack:
        # The paths of a daemon's sockets are long, and may have 107 bytes.
        folder = Path(stack.enter_context(TemporaryDirectory(dir=os.environ["OPENMODAL_HOME"])))
        try:
            home = stack.enter_context(mounted_disk(folder, 6000, mkfs.split(), options or usual))
        except (subprocess.CalledProcessError, FileNotFoundError):
            if not names[1:]:
                pytest.skip("needs root, xfsprogs, btrfs-progs, and a kernel with xfs and btrfs")
            yield stack.enter_context(on_disk(*names[1:]))
            return
        interface = stack.enter_context(bridge(home))
        yield Docker(folder / "state", stack.enter_context(dockerd(home, interface)))


@pytest.fixture(scope="module")
def limiting() -> Iterator[Docker]:
    with on_disk("xfs", "btrfs") as engine:
        yield engine


@pytest.fixture(scope="module")
def root(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Made without a command."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("bin", "etc", "srv", "tmp"):
        (folder / name).mkdir()
    for name in "sh dd sync wc rm ls cat grep true".split():
        (folder / "bin" / name).symlink_to("busybox")
    return Image.from_scratch().add_local_dir(folder, "/").add_local_file(busybox, "/bin/busybox")


@contextmanager
def sandbox_of(engine: Docker, root: Image, **options: object) -> Iterator[Sandbox]:
    with Sandbox.create(
        image=root,
        engine=engine,
        timeout=120,
        **{"block_network": True, "disk": LIMIT, **options},  # type: ignore[arg-type]
    ) as sandbox:
        yield sandbox


def written(sandbox: Sandbox, file: str) -> int:
    """How many of 100 MiB root can write to a file that is there or not."""
    fill = f"dd if=/dev/zero of={file} bs=1M count=100 2>/dev/null; sync; wc -c <{file} || echo 0"
    return int(sandbox.exec("sh", "-c", fill).stdout.read()) >> 20


def test_a_sandbox_writes_no_more_than_its_disk_also_after_a_reset(limiting: Docker, root: Image) -> None:
    with sandbox_of(limiting, root) as sandbox:
        assert sandbox.info().disk == LIMIT
        assert LIMIT * 3 // 4 < written(sandbox, "/srv/x") <= LIMIT
        assert sandbox.exec("sh", "-c", "rm /srv/x; echo there is room >/srv/x").returncode == 0
        sandbox.filesystem.write_bytes("/srv/kept", bytes(20 << 20))
        point, snapshot = sandbox.checkpoint(), sandbox.snapshot_filesystem()
        for to in (None, point):
            sandbox.reset(to=to)
            assert LIMIT // 2 < written(sandbox, "/srv/y") <= LIMIT
        assert len(sandbox.filesystem.read_bytes("/srv/kept")) == 20 << 20
    with sandbox_of(limiting, snapshot) as sandbox:
        assert LIMIT // 2 < written(sandbox, "/srv/y") <= LIMIT
    with sandbox_of(limiting, root, disk=None) as sandbox:
        assert written(sandbox, "/srv/x") == 100, "the control"


NO_DISK = {"cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs"}


def disks(sandbox: Sandbox) -> set[str]:
    """Where something is mounted that root in the sandbox may write to, and that is no memory."""
    mounts = [line.split() for line in sandbox.exec("cat", "/proc/mounts").stdout.read().splitlines()]
    return {place for _, place, kind, options, *_ in mounts if "rw" in options.split(",") and kind not in NO_DISK}


def test_root_inside_finds_no_place_beside_the_disk(limiting: Docker, root: Image) -> None:
    """Docker keeps /etc/hosts and its like on its own disk, and the folder of the agent's socket was
    one of this machine."""
    beside = {f"{RUN}/x", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    with sandbox_of(limiting, root) as sandbox:
        for generation in range(2):
            assert sandbox.info().generation == generation
            assert {file: written(sandbox, file) for file in beside} == dict.fromkeys(beside, 0)
            covered = sandbox.exec("grep", "-c", " /etc/hosts ", "/proc/mounts").stdout.read()
            assert (disks(sandbox) - beside, covered) == ({"/"}, "2\n")
            sandbox.reset()
    with sandbox_of(limiting, root, disk=None) as sandbox:
        assert {file: written(sandbox, file) for file in beside} == dict.fromkeys(beside, 100), "the control"
        assert disks(sandbox) == {"/", RUN, *beside} - {f"{RUN}/x"}, "the control"


def test_the_files_about_the_network_say_the_same_and_may_be_written(limiting: Docker, root: Image) -> None:
    names = "/etc/hosts /etc/hostname /etc/resolv.conf"
    with sandbox_of(limiting, root, block_network=False) as sandbox, limiting.daemon.open() as api:
        found = api.get(f"/containers/{sandbox.id}/json")
        theirs = "".join(Path(found[path]).read_text() for path in ("HostsPath", "HostnamePath", "ResolvConfPath"))
        assert sandbox.exec("cat", *names.split()).stdout.read() == theirs
        assert sandbox.exec("ls", "-A", RUN).stdout.read() == "agent.sock\n"
        assert (
            sandbox.exec("sh", "-c", f"echo 10.1.2.3 name >>/etc/hosts; ls -l {names}")
            .stdout.read()
            .count("-rw-r--r--")
            == 3
        )
        assert sandbox.filesystem.read_text("/etc/hosts").endswith("\n10.1.2.3 name\n")


def test_commands_and_files_work(limiting: Docker, root: Image) -> None:
    with sandbox_of(limiting, root) as sandbox:
        process = sandbox.exec("sh", "-c", "cat; exit 3", stdin=b"x" * 3_000_000)
        assert (process.returncode, len(process.stdout.read())) == (3, 3_000_000)
        sandbox.filesystem.write_bytes("/tmp/file", os.urandom(2_000_000))
        again = Sandbox.from_id(sandbox.id, engine=limiting)
        assert len(again.filesystem.read_bytes("/tmp/file")) == 2_000_000
        sandbox.pause()
        assert sandbox.exec("true").returncode == 0
        assert [found.id for found in Sandbox.list(engine=limiting)] == [sandbox.id]


def test_an_owner_needs_the_folder_from_the_beginning(limiting: Docker, root: Image) -> None:
    """One that has no owner any more loses the folder with its next reset, and is reached."""
    with sandbox_of(limiting, root) as sandbox:  # noqa: SIM117
        with pytest.raises(UnsupportedError, match="only if it was created with one; give Sandbox"):
            sandbox.set_owner(os.getpid())
    with sandbox_of(limiting, root, owner=os.getpid()) as sandbox:
        assert LIMIT // 2 < written(sandbox, "/srv/x") <= LIMIT
        sandbox.set_owner(None)
        sandbox.reset()
        assert sandbox.exec("true").returncode == 0
        assert sandbox.poll() is None


def test_on_btrfs_an_image_counts_and_one_that_is_larger_is_told(limiting: Docker, root: Image, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(20 << 20))
    larger = root.add_local_file(tmp_path / "file", "/file")
    with ExitStack() as stack:
        if Host.of(limiting.daemon).info["Driver"] == "btrfs":
            stack.enter_context(
                pytest.raises(UnsupportedError, match=r"less than the image takes.*; say a larger disk=")
            )
        assert stack.enter_context(sandbox_of(limiting, larger, disk=16)).info().disk == 16


def test_an_xfs_without_project_quotas_is_told(root: Image) -> None:
    """The daemon says so only when the container is made."""
    with on_disk("xfs", options="loop") as engine:
        with pytest.raises(UnsupportedError, match=r"disk= needs .* xfs with project quotas, .*pquota"):
            Sandbox.create(image=root, engine=engine, timeout=60, block_network=True, disk=LIMIT)
        assert Sandbox.list(engine=engine) == []
