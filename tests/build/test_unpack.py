"""One table of hostile and odd archives, each with its verdict, and nothing is ever written outside (H5)."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.build.merged import Merged
from openmodal.build.tar import BLOCK, HostileTar
from openmodal.build.unpack import Limits, unpack

pytestmark = pytest.mark.root

Make = Callable[[tarfile.TarFile], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"x", **fields: object) -> Make:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        info.size = len(data) if kind == tarfile.REGTYPE else 0
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)

    return add


def link(name: str, target: str) -> Make:
    return member(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Make:
    return member(name, tarfile.LNKTYPE, linkname=target)


def folder(name: str, **fields: object) -> Make:
    return member(name, tarfile.DIRTYPE, b"", **fields)


def archive(*members: Make, form: int = tarfile.PAX_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        for add in members:
            add(file)
    return output.getvalue()


def header(data: bytes, **changes: tuple[int, bytes]) -> bytes:
    """Change fields of the first header and make its checksum right again."""
    block = bytearray(data[:BLOCK])
    for offset, value in changes.values():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[BLOCK:]


def run(data: bytes, target: Path, limits: Limits | None = None) -> None:
    stream = io.BytesIO(data)
    unpack(stream.read, target, len(data), limits)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "inside" / "root"
    path.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def canary(tmp_path: Path):
    """Whatever an archive says, nothing beside its folder changes."""
    file = tmp_path / "canary"
    file.write_text("alive")
    yield file
    assert file.read_text() == "alive"
    assert file.stat().st_nlink == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "inside"]
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["root"]


LONG = "n" * 256
REFUSED: dict[str, bytes] = {
    "parent": archive(member("../x")),
    "parent in the middle": archive(member("a/../../x")),
    "parent that stays inside": archive(member("a/../x")),
    "parent as a name": archive(folder("..")),
    "root as a link": archive(link("./", "/etc")),
    "root as a file": archive(member(".")),
    "hard link out": archive(hard("a", "../../canary")),
    "hard link to an absolute path outside": archive(hard("a", "/etc/passwd")),
    "hard link to nothing": archive(hard("a", "none")),
    "hard link to a folder": archive(folder("d"), hard("a", "d")),
    "hard link through a link": archive(link("l", "../../.."), hard("a", "l/canary")),
    "hard link to the root": archive(hard("a", "/")),
    "chain of links": archive(*[link(f"l{n}", f"l{n + 1}") for n in range(60)], member("l0/x")),
    "loop of links": archive(link("a", "b"), link("b", "a"), member("a/x")),
    "dangling link as a folder": archive(link("a", "/none"), member("a/x")),
    "file as a folder": archive(member("a"), member("a/b")),
    "component too long": archive(member(LONG)),
    "path too long": archive(member("/".join(["d" * 200] * 25))),
    "path too deep": archive(member("/".join("d" * 300))),
    "link target too long": archive(link("a", "t" * 5000)),
    "block device": archive(member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "character device": archive(member("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)),
    "whiteout device by hand": archive(member("gone", tarfile.CHRTYPE, devmajor=0, devminor=0)),
    "device behind a link to /dev": archive(link("d", "dev"), member("d/mem", tarfile.CHRTYPE, devmajor=1, devminor=1)),
    "owner 65536": archive(member("a", uid=65_536)),
    "group 65536": archive(member("a", gid=65_536)),
    "owner 2^31": archive(member("a", uid=1 << 31)),
    "group 2^32-1": archive(member("a", gid=(1 << 32) - 1)),
    "negative owner": archive(member("a", uid=-2), form=tarfile.GNU_FORMAT),
    "owner that is no number": archive(member("a", pax_headers={"uid": "0x0"})),
    "size 2^62": header(archive(member("a")), size=(124, (1 << 62 | 1 << 95).to_bytes(12, "big"))),
    "negative size": header(archive(member("a")), size=(124, b"\xff" * 12)),
    "size in PAX 2^63": archive(member("a", pax_headers={"size": str(1 << 63)})),
    "size in PAX negative": archive(member("a", pax_headers={"size": "-1"})),
    "sparse, GNU": header(archive(member("a")), kind=(156, b"S")),
    "sparse, PAX": archive(member("a", pax_headers={"GNU.sparse.major": "1"})),
    "several volumes": header(archive(member("a")), kind=(156, b"M")),
    "PAX path out": archive(member("a", pax_headers={"path": "../x"})),
    "PAX path with NUL": archive(member("a", pax_headers={"path": "a\0b"})),
    "PAX path empty": archive(member("a", pax_headers={"path": ""})),
    "PAX records broken": archive(member("a", pax_headers={"k": "v"})).replace(b"6 k=v\n", b"7 k=v\n"),
    "PAX record of length 0": archive(member("a", pax_headers={"k": "v"})).replace(b"6 k=v\n", b"0 k=v\n"),
    "GNU long name of 10 MiB": archive(member("x" * (10 << 20)), form=tarfile.GNU_FORMAT),
    "time that is none": archive(member("a", pax_headers={"mtime": "soon"})),
    "checksum wrong": b"x" + archive(member("a"))[1:],
    "mode that is no number": header(archive(member("a")), mode=(100, b"rwxr-x\0 ")),
    "cut off in a header": archive(member("a"))[:300],
    "cut off in data": archive(member("a", data=b"x" * 4000))[:2000],
    "no archive at all": b"hello " * 200,
    "whiteout of nothing": archive(member("d/.wh.")),
    "whiteout of .": archive(member("d/.wh..")),
    "whiteout of ..": archive(member("d/.wh...")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_archives_are_refused(name: str, target: Path):
    """H5: and nothing beside the folder changes."""
    with pytest.raises(HostileTar) as caught:
        run(REFUSED[name], target)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "shown"), [("parent", "'../x'"), ("block device", "'disk'"), ("owner 2^31", "'a'")])
def test_the_error_names_the_member(name: str, shown: str, target: Path):
    with pytest.raises(HostileTar, match=shown):
        run(REFUSED[name], target)


CONTAINED: dict[str, tuple[bytes, str]] = {
    "absolute": (archive(member("/abs/x")), "abs/x"),
    "many slashes": (archive(member("//./a///b")), "a/b"),
    "through an absolute link": (archive(folder("etc"), link("a", "/etc"), member("a/x")), "etc/x"),
    "through a link with ..": (archive(folder("etc"), link("a", "../../../../etc"), member("a/x")), "etc/x"),
    "through a link to itself": (archive(link("a", "."), member("a/a/a/x")), "x"),
    "to the root by a link": (archive(link("a", "/"), member("a/x")), "x"),
    "newline": (archive(member("a\nb")), "a\nb"),
    "bytes that are not UTF-8": (archive(member("a\udcff"), form=tarfile.GNU_FORMAT), "a\udcff"),
    "right to left": (archive(member("\u202etxt.exe")), "\u202etxt.exe"),
    "same name in another case": (archive(member("A"), member("a")), "A"),
    "folder forgotten": (archive(member("deep/er/x")), "deep/er/x"),
    "old folder": (archive(folder("d"), member("d/x"), form=tarfile.USTAR_FORMAT), "d/x"),
    "no end": (archive(member("x"))[: 2 * BLOCK], "x"),
    "garbage after the end": (archive(member("x")) + b"garbage", "x"),
    "device below /dev is left out": (archive(member("dev/mem", tarfile.CHRTYPE, devmajor=1), member("x")), "x"),
    "long names": (archive(member("d" * 200 + "/" + "f" * 250)), "d" * 200 + "/" + "f" * 250),
    "long names, GNU": (archive(member("d" * 200 + "/x"), form=tarfile.GNU_FORMAT), "d" * 200 + "/x"),
    "prefix, ustar": (archive(member("d" * 90 + "/" + "f" * 90), form=tarfile.USTAR_FORMAT), "d" * 90 + "/" + "f" * 90),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_odd_archives_stay_inside(name: str, target: Path):
    data, path = CONTAINED[name]
    run(data, target)
    file = target / path
    assert file.read_text() == "x"
    assert target in file.resolve().parents


def test_a_link_out_is_kept_as_it_is_and_never_followed(target: Path, canary: Path):
    run(archive(link("l", str(canary)), member("l", data=b"new"), link("m", "../../canary")), target)
    assert (target / "l").read_text() == "new"
    assert not (target / "l").is_symlink()
    assert os.readlink(target / "m") == "../../canary"


def test_the_later_of_two_members_counts(target: Path):
    run(
        archive(
            folder("d"),
            member("d/x"),
            link("d", "/etc"),
            folder("d"),
            member("d/y"),
            member("f"),
            member("f", data=b"2"),
        ),
        target,
    )
    assert sorted(path.name for path in (target / "d").iterdir()) == ["y"]
    assert (target / "f").read_text() == "2"


def test_a_folder_swapped_for_a_link_is_not_used_any_more(target: Path):
    run(archive(folder("d"), member("d/x"), folder("e"), link("d", "e"), member("d/y")), target)
    assert (target / "e/y").read_text() == "x"


def test_modes_owners_times_and_hard_links_are_as_the_archive_says(target: Path):
    times = [("a", 5.0), ("b", -1.0), ("c", float(2**40))]
    files = [member(name, mtime=time, pax_headers={"mtime": str(time)}) for name, time in times]
    run(archive(*files, member("su", mode=0o4755, uid=3, gid=4), hard("su2", "/su"), folder("d", mode=0o1777)), target)
    info = (target / "su").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_nlink) == (0o4755, 3, 4, 2)
    assert [(target / name).stat().st_mtime for name in "abc"] == [5, 0, 1 << 33]
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o1777


def test_a_fifo_is_one(target: Path):
    run(archive(member("f", tarfile.FIFOTYPE)), target)
    assert stat.S_ISFIFO((target / "f").stat().st_mode)


def test_overlay_s_own_attributes_are_stripped(target: Path):
    attributes = {
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "x",
        "SCHILY.xattr.user.mine": "yes",
    }
    run(archive(folder("d", pax_headers=attributes)), target)
    names = os.listxattr(target / "d")
    assert "user.mine" in names
    assert not [name for name in names if "overlay" in name]


def test_whiteouts_become_overlay_s(target: Path, tmp_path: Path):
    run(
        archive(
            folder("d"),
            member("d/.wh.gone", data=b""),
            folder("o"),
            member("o/.wh..wh..opq", data=b""),
            member("o/new"),
        ),
        target,
    )
    info = (target / "d/gone").lstat()
    assert stat.S_ISCHR(info.st_mode)
    assert info.st_rdev == 0
    assert os.getxattr(target / "o", "trusted.overlay.opaque") == b"y"
    below = tmp_path / "inside/root/../root/.below"
    for name in ("d/gone", "d/stays", "o/old"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text("x")
    merged = Merged((str(target), str(below)))
    assert merged.find("/d/gone") is None
    assert merged.find("/o/old") is None
    assert merged.find("/d/stays")
    assert merged.find("/o/new")


def test_a_folder_in_the_place_of_a_whiteout_hides_what_was_below(target: Path):
    run(archive(member(".wh.d", data=b""), folder("d"), member("e/x"), member(".wh.e", data=b"")), target)
    assert os.getxattr(target / "d", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(target / "e", "trusted.overlay.opaque") == b"y"


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(members=2), archive(member("a"), member("b"), member("c"))),
        (Limits(bytes=4096), archive(member("a", data=bytes(8192)))),
        (Limits(ratio=1, ratio_floor=0), archive(member("a", data=bytes(8192))) + bytes(1)),
    ],
)
def test_limits_hold(limits: Limits, data: bytes, target: Path):
    stream = io.BytesIO(data)
    with pytest.raises(HostileTar):
        unpack(stream.read, target, 1000, limits)


def test_real_archives_unpack_as_tar_does(target: Path, tmp_path: Path):
    import subprocess

    data = subprocess.run(["tar", "-C", "/usr/share/doc", "-cf", "-", "."], stdout=subprocess.PIPE, check=True).stdout
    run(data, target)
    done = subprocess.run(["tar", "-C", target, "-df", "-"], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[:2000]
