"""Pushing: an image of the store, through Debian's docker-registry, and back into another store."""

from __future__ import annotations

import ctypes
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx2
import pytest

from openmodal._spec import Layered
from openmodal.build.layers import Layers, Meta
from openmodal.build.push import Pusher, pack, push
from openmodal.build.reference import MANIFESTS, Reference, parse
from openmodal.errors import RegistryError
from tests.build.test_registry import docker_registry, pull

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def store(tmp_path: Path) -> Layers:
    return Layers(tmp_path / "store")


def layer(store: Layers, key: str, files: Path) -> str:
    claim = store.claim(key)
    with claim.held, store.scratch() as scratch:
        os.rename(files, scratch / "files")
        store.publish(scratch / "files", key, Meta())
    return key


def lower(folder: Path) -> Path:
    """What an image may have: links of both kinds, owners, modes, capabilities, names that are no text."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/one").write_bytes(b"1")
    (folder / "etc/gone").write_bytes(b"x")
    (folder / "old").mkdir()
    (folder / "old/file").write_bytes(b"old")
    (folder / "tool").write_bytes(b"#!/bin/sh\n")
    os.chown(folder / "tool", 0, 50)
    (folder / "tool").chmod(0o4755)
    os.link(folder / "tool", folder / "same")
    os.symlink("etc/one", folder / "link")
    os.mkfifo(folder / "fifo")
    Path(os.fsdecode(os.fsencode(folder) + b"/not\xfftext")).write_bytes(b"bytes")
    os.setxattr(folder / "tool", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (folder / ("long" * 40)).write_bytes(b"long")
    return folder


def upper(folder: Path) -> Path:
    """What overlayfs makes of removing a file, and of replacing a folder."""
    (folder / "etc").mkdir(parents=True)
    os.mknod(folder / "etc/gone", stat.S_IFCHR, 0)
    (folder / "old").mkdir()
    (folder / "old/new").write_bytes(b"new")
    os.setxattr(folder / "old", "trusted.overlay.opaque", b"y")
    return folder


@pytest.fixture
def image(store: Layers, tmp_path: Path) -> Layered:
    below = layer(store, "a" * 64, lower(tmp_path / "lower"))
    above = layer(store, "b" * 64, upper(tmp_path / "upper"))
    return Layered(
        key="c" * 64,
        layers=(above, below),
        env=(("A", "1"), ("B", "x=y")),
        workdir="/w",
        user="7:8",
        entrypoint=("/e",),
        cmd=("c",),
    )


def test_what_is_pushed_comes_back(registry: str, store: Layers, image: Layered, tmp_path: Path) -> None:
    pushed = push(store, image, parse(f"{registry}/team/openmodal:latest"))
    assert pushed.reference.startswith(f"{registry}/team/openmodal@sha256:")
    other = Layers(tmp_path / "other")
    again = pull(other, pushed.reference)
    assert (again.env, again.workdir, again.user, again.entrypoint, again.cmd) == (
        image.env, image.workdir, image.user, image.entrypoint, image.cmd,
    )  # fmt: skip
    above, below = (Path(folder) for folder in other.folders(again))
    assert (below / "etc/one").read_bytes() == b"1"
    info = os.stat(below / "tool")
    assert (stat.S_IMODE(info.st_mode), info.st_gid, info.st_nlink) == (0o4755, 50, 2)
    assert os.readlink(below / "link") == "etc/one"
    assert Path(os.fsdecode(os.fsencode(below) + b"/not\xfftext")).read_bytes() == b"bytes"
    assert (below / ("long" * 40)).read_bytes() == b"long"
    gone = os.lstat(above / "etc/gone")
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(above / "old", "trusted.overlay.opaque") == b"y"


def test_the_same_files_are_the_same_blob(store: Layers, image: Layered, tmp_path: Path) -> None:
    blobs = []
    for name in ("one", "two"):
        with (tmp_path / name).open("w+b") as file:
            blobs.append(pack(store.folder(image.layers[1]), file))
    assert blobs[0] == blobs[1]
    assert blobs[0].size == (tmp_path / "one").stat().st_size


def test_only_what_is_missing_is_sent(
    registry: str, store: Layers, image: Layered, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Reference(registry, "team/share", "latest")
    sent: list[str] = []
    upload = Pusher._upload

    def noted(self: Pusher, file: IO[bytes], digest: str, size: int) -> None:
        sent.append(digest)
        upload(self, file, digest, size)

    monkeypatch.setattr(Pusher, "_upload", noted)
    first = push(store, image, target)
    assert len(sent) == 3, "two layers and a configuration"
    assert push(store, image, target) == first
    other = Layered(key="d" * 64, layers=image.layers, workdir="/other")
    push(store, other, target)
    assert len(sent) == 4, "another configuration"


def test_what_a_registry_has_lost_is_sent_again(
    store: Layers, image: Layered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmodal.build.push._SURE", 0.0)
    with docker_registry(tmp_path) as host:
        target = Reference(host, "x", "latest")
        first = push(store, image, target)
        os.rename(tmp_path / "data", tmp_path / "lost")
        (tmp_path / "data").mkdir()
        assert push(store, image, target) == first
        digest = first.reference.rpartition("@")[2]
        assert httpx2.get(f"http://{host}/v2/x/manifests/{digest}", headers={"Accept": MANIFESTS[0]}).status_code == 200


def test_a_registry_that_cannot_be_reached_is_named(
    store: Layers, image: Layered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1/.*cannot be pushed to"):
        push(store, image, Reference("127.0.0.1:1", "x", "latest"))


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry that wants a name and a password; `docker login` was done for another."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed = crypt(b"secret", b"$2b$05$abcdefghijklmnopqrstuu").decode()
    (tmp_path / "passwords").write_text(f"ada:{hashed}\n")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    auth = f"auth: {{htpasswd: {{realm: x, path: {tmp_path / 'passwords'}}}}}\n"
    with docker_registry(tmp_path, auth=auth) as host:
        yield host


def login(folder: Path, host: str, password: str) -> None:
    auths = {host: {"username": "ada", "password": password}}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))


def test_without_credentials_the_remedy_is_told(guarded: str, store: Layers, image: Layered) -> None:
    with pytest.raises(RegistryError, match="docker login"):
        push(store, image, Reference(guarded, "x", "latest"))


def test_wrong_credentials_are_told(guarded: str, store: Layers, image: Layered, tmp_path: Path) -> None:
    login(tmp_path, guarded, "wrong")
    with pytest.raises(RegistryError, match="credentials"):
        push(store, image, Reference(guarded, "x", "latest"))


def test_the_password_of_docker_login_is_used(guarded: str, store: Layers, image: Layered, tmp_path: Path) -> None:
    login(tmp_path, guarded, "secret")
    pushed = push(store, image, Reference(guarded, "x", "latest"))
    assert pull(Layers(tmp_path / "other"), pushed.reference).env == image.env
