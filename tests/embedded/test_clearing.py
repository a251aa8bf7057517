"""Clearing away what a sandbox or a step of an image has made, whatever that is; and that one failure does not keep the rest."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.build.layers import Layers, Meta
from openmodal.build.prune import prune
from openmodal.engines.embedded import Embedded, launch
from openmodal.errors import EngineError, ImageBuildError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, creating, eventually

DEEP = "p=$(printf 'd/%.0s' $(seq 100)); for n in $(seq {hundreds}); do mkdir -p $p; cd -P $p || exit 9; done; echo x > file"


@pytest.fixture
def create(engine: Embedded, image: Image) -> Iterator[Create]:
    with creating(app=App("clearing"), image=image, engine=engine, timeout=300) as create:
        yield create


def bury(engine: Embedded, sandbox: Sandbox) -> Path:
    """Kill a sandbox's supervisor, so that others have to clear away.

    Returns the folder of what it wrote, whose name is the sandbox's id.
    """
    os.kill(run_sync(launch.supervisor(engine.store.folder(sandbox.id))), signal.SIGKILL)
    eventually(lambda: not engine.store.alive(sandbox.id))
    return engine._uppers.folder(sandbox.id)


def depth(folder: Path) -> int:
    """How many folders lie in each other, by the first of each."""
    levels, fd = 0, os.open(folder, os.O_RDONLY)
    while below := [name for name in os.listdir(fd) if not os.path.islink(name)]:
        try:
            fd, above = os.open(min(below), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), fd
        except NotADirectoryError:
            break
        os.close(above)
        levels += 1
    os.close(fd)
    return levels


@pytest.mark.parametrize("way", ["poll", "terminate", "gc"])
def test_deep_folders_of_a_dead_sandbox_are_cleared_away(engine: Embedded, create: Create, way: str) -> None:
    """I31: 3,000 levels: more than Python's stack, descriptors, or a path have room for."""
    sandbox = create()
    assert sandbox.exec("sh", "-c", f"mkdir /deep; cd /deep; {DEEP.format(hundreds=30)}").returncode == 0
    folder = bury(engine, sandbox)
    assert depth(folder / "upper/deep") == 3000, "the control"
    ways: dict[str, Callable[[], object]] = {"poll": sandbox.poll, "terminate": sandbox.terminate, "gc": engine.gc}
    ways[way]()
    assert not folder.exists()
    assert not engine.store.folder(sandbox.id).exists()
    assert sandbox.poll() == 137


@pytest.fixture
def stuck(engine: Embedded, create: Create) -> Iterator[Path]:
    """The folder of a dead sandbox that cannot be removed: something is mounted in it."""
    folder = bury(engine, create())
    subprocess.run(["mount", "-t", "tmpfs", "stuck", folder / "upper"], check=True)
    yield folder
    left = next(path for path in (folder, folder.with_name(f"{folder.name}.trash")) if path.exists())
    subprocess.run(["umount", left / "upper"], check=True)
    engine.gc()
    assert not left.exists()


@pytest.mark.root
def test_one_failure_keeps_nothing_else_and_is_told(engine: Embedded, create: Create, stuck: Path) -> None:
    """I31: gc did nothing behind the first that failed. Ids are random: the others are before it or behind it."""
    others = [bury(engine, create()) for _ in range(4)]
    (engine.layers.path / "tmp" / "0-left").mkdir()
    with pytest.raises(EngineError, match=f"{stuck.name}.* is not removed: .*gc"):
        engine.gc()
    assert not any(folder.exists() for folder in others)
    assert not (engine.layers.path / "tmp" / "0-left").exists()
    assert Sandbox.from_id(stuck.name, engine=engine).poll() == 137, "how it ended is known all the same"


@pytest.mark.parametrize("code", [0, 1])
def test_deep_folders_of_a_step_of_an_image_are_no_trouble_for_anybody(tmp_path: Path, image: Image, code: int) -> None:
    """I31: 5,000 levels that a RUN has made, kept or not, and in a cache of packages. In a store that ends with the test."""
    engine = Embedded(tmp_path / "state")
    script = f"mkdir /deep; cd /deep; {DEEP.format(hundreds=50)}; exit {code}"
    deep = image.run_commands(f": {secrets.token_hex(8)}; {script}")
    if code:
        with pytest.raises(ImageBuildError, match="exit code 1"):
            deep.build(engine=engine)
    else:
        deep.build(engine=engine)
    engine.gc()
    engine.prune(unused_for=3600.0)
    assert list((engine.layers.path / "tmp").iterdir()) == []
    engine.prune()
    assert not any((layer / "root" / "deep").exists() for layer in (engine.layers.path / "layers").iterdir())


def test_deep_folders_in_a_layer_and_a_cache_are_pruned(tmp_path: Path) -> None:
    """I31: also counted: how much a prune has freed."""
    store = Layers(tmp_path)
    for folder in (store.folder("key"), tmp_path / "cache" / "apt-0"):
        made = subprocess.run(["sh", "-c", DEEP.format(hundreds=25)], cwd=made_folder(folder), check=False)
        assert made.returncode == 0
        assert depth(folder) == 2500, "the control"
    (store.folder("key").parent / "meta.json").write_bytes(msgspec.json.encode(Meta(size=1)))
    (tmp_path / "locks").mkdir()
    pruned = prune(store, caches=True)
    assert pruned.layers == 1
    assert pruned.bytes > 4096
    assert not any(list((tmp_path / name).iterdir()) for name in ("layers", "cache", "tmp"))


def made_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_terminate_returns_when_the_sandbox_is_gone_whoever_ends_it(engine: Embedded, create: Create) -> None:
    """J19: a supervisor that is ending listens no more, and still has its lock and folder; here the test stands for it."""
    sandbox = create()
    bury(engine, sandbox)
    folder = engine.store.folder(sandbox.id)
    fd = os.open(folder / "lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(sandbox.terminate)
        with pytest.raises(TimeoutError):
            call.result(1)
        os.close(fd)
        call.result(30)
    assert not folder.exists()
    assert sandbox.poll() == 137
