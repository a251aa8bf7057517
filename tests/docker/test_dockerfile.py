"""The same Dockerfile gives the same image here as with Docker's own builder: files, modes, owners, times of change, and settings."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from openmodal._dual import run_sync
from openmodal._spec import Root
from openmodal.build.merged import Found, Merged
from openmodal.engines.embedded import Embedded
from openmodal.image import Image
from tests.docker.engine import DockerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.embedded]

BASE = r"""
FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp /real /root && chmod 1777 /tmp && chmod 0750 /real && ln -s real /linked \
 && echo 'root:x:0:0::/root:/bin/sh' > /etc/passwd && echo 'ada:x:1000:1001::/:/bin/sh' >> /etc/passwd \
 && echo 'root:x:0:' > /etc/group && echo 'staff:x:50:' >> /etc/group && echo 'ada:x:1001:' >> /etc/group
FROM base
"""

LONG_AGO = 1_000_000_000

# What Docker makes for itself when it starts a container, and what both mount something over.
_MADE = ("dev", "proc", "sys", ".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", "cache")


class Seen(NamedTuple):
    """A file of an image. `long_ago`: it has the time of change that all files of the context have."""

    kind: str
    mode: int
    owner: tuple[int, int]
    content: str
    long_ago: bool


def _cases() -> dict[str, str]:
    text = (Path(__file__).parent / "dockerfiles.txt").read_text()
    parts = (part.split("\n", 1) for part in text.split("=== ")[1:])
    return dict(parts)


CASES = _cases()
"""Dockerfiles by what they try. Each stands on BASE, in the folder that `context` makes."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Path:
    folder = tmp_path_factory.mktemp("context")
    # Not the file of other tests: an image of theirs may have that in a layer, with another time, which no layer's key depends on.
    (folder / "busybox").write_bytes(busybox.read_bytes() + b"of these tests")
    shutil.copymode(busybox, folder / "busybox")
    modes = {
        "a.txt": 0o644, "b.txt": 0o664, "x y.txt": 0o644, "private": 0o600, "tool": 0o755, "setuid": 0o4755, "arr[0].md": 0o644,
        ".hid": 0o644, "src/main.py": 0o640, "src/deep/er.pyc": 0o644, "closed/in": 0o600, "other/deep/new": 0o644,
        "other/main.py": 0o755, "sub/mine.txt": 0o644, "ign/x.log": 0o644, "ign/keep.log": 0o644, "ign/all/x": 0o644,
        "ign/all/yes/x": 0o644,
    }  # fmt: skip
    for name, mode in modes.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"this is {name}\n")
        file.chmod(mode)
    (folder / "packed.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3\3\0\0\0\0\0\0\0\0\0")
    (folder / "closed").chmod(0o700)
    (folder / "src/deep").chmod(0o2775)
    (folder / "link").symlink_to("a.txt")
    (folder / "linkdir").symlink_to("src")
    (folder / "src/in").symlink_to("main.py")
    (folder / "src/out").symlink_to("/nowhere")
    (folder / ".dockerignore").write_text(
        "# comment\nign/*.log\n!ign/keep.log\nign/all\n!ign/all/yes\n  nothing*  \n/none\n"
    )
    os.mkfifo(folder / "src/deep/pipe")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return folder


def of_docker(engine: DockerUnderTest, image: Image) -> tuple[Root, dict[str, Seen]]:
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    with engine._daemon.open() as api:
        made = api.post("/containers/create", {"Image": root.reference, "Cmd": ["none"]})["Id"]
        try:
            data = api.read(f"/containers/{made}/export")
        finally:
            api.delete(f"/containers/{made}", force=True, v=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name.strip("/"): member for member in tar}
        found = {name: _of_member(tar, members, member) for name, member in members.items() if _counts(name)}
    if not any(name.startswith("etc/") for name in found):
        found.pop("etc", None)  # made for the files in it
    return root, found


def _of_member(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], member: tarfile.TarInfo) -> Seen:
    while member.islnk():
        member = members[member.linkname.strip("/")]
    kind = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "fifo"}.get(member.type, "file")
    opened = tar.extractfile(member) if kind == "file" else None
    content = member.linkname if kind == "link" else opened.read().decode("latin-1") if opened else ""
    return Seen(
        kind,
        0 if kind == "link" else stat.S_IMODE(member.mode),
        (member.uid, member.gid),
        content,
        member.mtime == LONG_AGO,
    )


def of_embedded(image: Image) -> tuple[Root, dict[str, Seen]]:
    engine = Embedded()
    root = run_sync(engine.prepare(image.recipe, lambda news: None))
    tree = Merged(engine.layers.folders(root))
    top = tree.find("/")
    assert top
    return root, dict(_walked(tree, top))


def _walked(tree: Merged, folder: Found) -> Iterator[tuple[str, Seen]]:
    for child in tree.children(folder):
        name, info = child.name.strip("/"), child.info
        if not _counts(name):
            continue
        kind = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}.get(
            stat.S_IFMT(info.st_mode), "file"
        )
        content = os.readlink(child.file) if kind == "link" else ""
        if kind == "file":
            content = Path(child.file).read_bytes().decode("latin-1")
        mode = 0 if kind == "link" else stat.S_IMODE(info.st_mode)
        yield name, Seen(kind, mode, (info.st_uid, info.st_gid), content, info.st_mtime == LONG_AGO)
        if kind == "folder":
            yield from _walked(tree, child)


def _counts(name: str) -> bool:
    return bool(name) and name not in _MADE and not name.startswith(("bin/", *(f"{made}/" for made in _MADE)))


def settings(root: Root) -> dict[str, Any]:
    return {
        "env": dict(root.env), "workdir": root.workdir or "/", "user": root.user, "entrypoint": root.entrypoint, "cmd": root.cmd,
        "shell": root.shell,
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_dockerfile_gives_the_same_image_as_with_docker(case: str, context: Path, engine: DockerUnderTest) -> None:
    """Wildcards, modes, times, ARG and SHELL of stages, WORKDIR, PATH and more were others."""
    text = CASES[case]
    directive, rest = text.split("\n", 1) if text.startswith("# escape") else ("", text)
    base = BASE.lstrip().replace("\\\n", "") if directive else BASE
    (context / "Dockerfile").write_text(f"{directive}\n{base}\n{rest}".lstrip())
    os.utime(context / "Dockerfile", (LONG_AGO, LONG_AGO))
    image = Image.from_dockerfile(context / "Dockerfile")
    expected, files = of_docker(engine, image)
    ours, own = of_embedded(image)
    others = [name for name in sorted(files.keys() | own.keys()) if files.get(name) != own.get(name)]
    assert not others, "\n".join(f"{name}: {files.get(name)} is here {own.get(name)}" for name in others)
    assert settings(ours) == settings(expected)
