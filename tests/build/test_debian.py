"""The real thing: Debian from its packages, with apt and pip steps on top."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from openmodal.build import Options
from openmodal.image import Image
from tests.build.conftest import Built

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]
PACKAGES = Options(base="packages")


@pytest.fixture(autouse=True)
def _mmdebstrap():
    if shutil.which("mmdebstrap") is None:
        pytest.fail("needs Debian's mmdebstrap")


def test_debian_slim_with_git_and_requests(made: Built):
    begun = time.monotonic()
    image = Image.debian_slim("3.13").apt_install("git").pip_install("requests")
    made(image, PACKAGES)
    print(f"\nbase, git, requests: {time.monotonic() - begun:.1f} s")
    check = (
        "python3 -c 'import sys, requests; print(sys.version)' > /out; git --version >> /out; python --version >> /out; "
        "ps -e && top -bn1 && less --version"
    )
    tree = made(image.run_commands(check, "python3 -m venv /venv").uv_pip_install("six"), PACKAGES)
    assert tree.text("/out").startswith("3.13")
    assert "git version 2" in tree.text("/out")
    for path in ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/openmodal", "/root/.cache"):
        assert not _files(tree.folders, path)
    assert tree.text("/etc/resolv.conf") == ""
    base = tree.folders[-1]
    assert not _files((base,), "/dev")
    assert not _files((base,), "/usr/share/man")
    assert os.path.isdir(f"{base}/usr/share/man/man1"), "or Java's package is not installed"
    assert os.path.exists(f"{base}/usr/share/doc/libc6/copyright")
    _again_without_downloads(made)
    made(image.pip_install("uv").run_commands("uv pip install --system iniconfig"), PACKAGES)


def test_another_python_is_another_debian(made: Built):
    image = Image.debian_slim("3.11").apt_install("tree").pip_install("six")
    check = "python3 -c 'import sys, six; print(sys.version)' > /out; tree --version >> /out"
    tree = made(image.run_commands(check), PACKAGES)
    assert tree.text("/out").startswith("3.11")
    assert "tree v" in tree.text("/out")


def _files(layers: tuple[str, ...], path: str) -> list[Path]:
    files = [p for layer in layers for p in Path(layer + path).rglob("*") if not p.is_dir()]
    return [p for p in files if p.name not in ("lock", "lock-frontend")]


def _again_without_downloads(made: Built) -> None:
    """A second image with the same package takes it from the cache."""
    made.news.clear()
    made(Image.debian_slim("3.13").run_commands("true").apt_install("git"), PACKAGES)
    printed = "".join(news.text for news in made.news if news.event == "output")
    assert "Need to get 0 B" in printed
