"""A store of its own for each test, and an image that is there in milliseconds: one static busybox."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from openmodal._spec import Progress, Recipe
from openmodal.build import DEFAULTS, Options, RunRequest, build
from openmodal.build.layers import Layers
from openmodal.image import Image
from tests.build.runner import chroot_runner

APPLETS = (
    "sh",
    "cat",
    "chmod",
    "chown",
    "env",
    "id",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "pwd",
    "rm",
    "sleep",
    "stat",
    "test",
    "touch",
)


@pytest.fixture
def store(tmp_path: Path) -> Layers:
    return Layers(tmp_path / "store")


@pytest.fixture
def busybox(tmp_path: Path) -> Image:
    program = shutil.which("busybox")
    if program is None:
        pytest.fail("needs Debian's busybox-static")
    folder = tmp_path / "busybox"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(program, folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "tmp").mkdir()
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nada:x:1000:1001::/:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nada:x:1001:\n")
    return Image.from_scratch().add_local_dir(folder, "/")


class Built:
    """Builds with the runner of the tests and remembers what was reported."""

    def __init__(self, store: Layers) -> None:
        self.store = store
        self.news: list[Progress] = []
        self.requests: list[RunRequest] = []

    def run(self, request: RunRequest) -> int:
        self.requests.append(request)
        return chroot_runner(request)

    def __call__(self, image: Image | Recipe, options: Options = DEFAULTS) -> Tree:
        recipe = image.recipe if isinstance(image, Image) else image
        return Tree(build(recipe, self.store, self.run, self.news.append, options), self.store)


class Tree:
    """A built image, to be looked into."""

    def __init__(self, root, store: Layers) -> None:
        from openmodal.build.merged import Merged

        self.root = root
        self.folders = store.folders(root)
        self.merged = Merged(self.folders)

    def text(self, path: str) -> str:
        assert self.merged.find(path), path
        return self.merged.read(path).decode()

    def stat(self, path: str) -> os.stat_result:
        found = self.merged.find(path, follow=False)
        assert found, path
        return found.info

    def __contains__(self, path: str) -> bool:
        return self.merged.find(path, follow=False) is not None


@pytest.fixture
def made(store: Layers) -> Built:
    return Built(store)
