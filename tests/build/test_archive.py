"""Archives that are no layers, as `openmodal-docker cp - NAME:/` is given them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmodal.build.tar import HostileTar
from openmodal.build.unpack import unpack_archive
from tests.build.test_unpack import archive, folder, hard, link, member


@pytest.mark.parametrize("way", ["hard link", "link and file", "device", "up"])
def test_an_archive_from_a_sandbox_reaches_nothing_outside(tmp_path: Path, way: str) -> None:
    """tarfile's filter made a hard link to any file of this machine, which was then copied in."""
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("of this machine")
    target.mkdir()
    hostile = {
        "hard link": (hard("stolen", "../secret"),),
        "link and file": (link("out", ".."), member("out/secret", data=b"overwritten")),
        "device": (member("dev/sda", tarfile.BLKTYPE),),
        "up": (member("../secret", data=b"overwritten"),),
    }[way]
    if way == "hard link":  # the control
        with tarfile.open(fileobj=io.BytesIO(archive(*hostile))) as opened:
            # Debian 12's Python has no filters yet.
            filters: Any = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
            opened.extractall(target, **filters)
        assert (target / "stolen").read_text() == secret.read_text()
        (target / "stolen").unlink()
    with contextlib.suppress(HostileTar):
        unpack_archive(io.BytesIO(archive(*hostile)), target)
        assert way == "link and file", "it is kept inside"
    assert secret.read_text() == "of this machine"
    assert not (target / "stolen").exists()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_that_is_no_layer_is_unpacked_as_it_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(archive(folder("a"), member("a/.wh.b", uid=1 << 20, uname="", mode=0o640), hard("c", "a/.wh.b")))
    unpack_archive(io.BytesIO(packed), tmp_path)
    kept = tmp_path / "a/.wh.b"
    assert (kept.read_text(), kept.stat().st_mode & 0o777, kept.stat().st_uid) == ("x", 0o640, os.geteuid())
    assert kept.samefile(tmp_path / "c")
    with pytest.raises(HostileTar):
        unpack_archive(io.BytesIO(packed[: len(packed) // 8]), tmp_path)
