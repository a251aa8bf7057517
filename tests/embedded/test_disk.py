"""What a sandbox without `disk=`, and a step of an image, may have on the store's disk."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from openmodal import _binary
from openmodal.engines.embedded import Embedded
from openmodal.errors import DiskFullError, ImageBuildError, SandboxNotRunningError
from openmodal.image import Image
from openmodal.testing.fixtures import Create, eventually

FILL = "dd if=/dev/zero of=/file bs=1M count=96 2>/dev/null; sync; sleep 60"


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmodal.engines.embedded.engine.MOST_ON_DISK", 64 << 20)


def test_who_fills_the_disk_is_ended_and_told_why(create: Create) -> None:
    sandbox, other = create(), create()
    with pytest.raises(SandboxNotRunningError, match=r"disk of the sandboxes.*disk="):
        sandbox.exec("sh", "-c", FILL)
    eventually(lambda: sandbox.poll() == 137)
    assert other.exec("echo", "alive").stdout.read() == "alive\n"


@pytest.mark.root
def test_a_disk_of_ones_own_is_not_guarded(create: Create) -> None:
    sandbox = create(disk=128)
    assert sandbox.exec("sh", "-c", FILL.replace("sleep 60", "sleep 3")).returncode == 0
    assert sandbox.poll() is None


@pytest.mark.root
def test_a_disk_is_formatted_once_and_each_sandbox_has_its_own(
    engine: Embedded, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, formatted, run = 131, list[str](), _binary.run

    def counted(argv: Sequence[str], *more: bytes) -> subprocess.CompletedProcess[bytes]:
        formatted.extend(name for name in (Path(argv[0]).name,) if name == "mkfs.ext4")
        return run(argv, *more)

    monkeypatch.setattr(_binary, "run", counted)
    ready = engine.store.state / "cache/disks"
    for kept in ready.glob(f"{size}-*"):
        kept.unlink()
    first = create(disk=size)
    first.filesystem.write_text("/srv/mine", "first")
    second = create(disk=size)
    assert not second.filesystem.exists("/srv/mine")
    assert second.exec("dd", "if=/dev/zero", "of=/srv/file", "bs=1M", "count=150").returncode == 1, "it is a limit"
    shutil.rmtree(ready)  # as `openmodal image prune --caches` does
    assert first.filesystem.read_text("/srv/mine") == "first"
    create(disk=size)
    assert formatted == ["mkfs.ext4"] * 2
    assert len(list(ready.glob(f"{size}-*"))) == 1
    assert sum(file.stat().st_blocks for file in ready.glob(f"{size}-*")) * 512 < 1 << 20, "holes stay holes"


FILLING = {  # a step's own files, and a cache that outlives the step
    "its own": "RUN dd if=/dev/zero of=/file bs=1M count=96; sync; {then} # {tag}",
    "a cache": "RUN --mount=type=cache,target=/{tag} dd if=/dev/zero of=/{tag}/file bs=1M count=96; sync; {then}",
}


@pytest.mark.parametrize("what", FILLING)
def test_a_step_that_fills_the_disk_is_ended_and_told_why(
    engine: Embedded, image: Image, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tag = f"filled-{secrets.token_hex(4)}"
    caches = engine.store.state / "cache"
    before = set(engine.store.ended.glob("build-*"))

    def fill(then: str) -> None:
        image.dockerfile_commands([FILLING[what].format(tag=tag, then=then)]).build(engine=engine)

    try:
        with pytest.raises(ImageBuildError, match="exit code 7"):  # the control: nothing guards it
            fill("exit 7")
        monkeypatch.setattr("openmodal.engines.embedded.booth.MOST_ON_DISK", 64 << 20)
        with pytest.raises(DiskFullError, match=r"^step .*, RUN .* \(disk\).*`openmodal image prune`"):
            fill("sleep 60")
    finally:
        for folder in caches.glob(f"{tag}-*"):
            shutil.rmtree(folder)
    assert set(engine.store.ended.glob("build-*")) <= before
    assert not [file for file in (engine.store.state / "tmp").rglob("file") if file.lstat().st_size == 96 << 20]
