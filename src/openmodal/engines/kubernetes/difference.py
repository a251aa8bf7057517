"""What a sandbox's agent tells of the files that are not as in the image (native/changes.c), made
the tar of a layer.

Root in the sandbox can make it tell anything. So it is as little believed as an image of a
registry: its paths stay below the root, and what it says becomes files of that image only.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from openmodal.build.push import writing
from openmodal.engines.compared import slashes, topmost
from openmodal.errors import ProtocolError

_KINDS = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "p": tarfile.FIFOTYPE,
    "c": tarfile.CHRTYPE,
    "b": tarfile.BLKTYPE,
}
_WHITEOUT = ".wh."
_LONGEST = 1 << 20  # bytes of a field: a path, or all attributes
_DEEPEST = 512  # as native/changes.c
_MOST = 2 << 30  # bytes of memory for what is told, without what is in the files
_RECORD = 1500  # of them for each path, beside its text


class Told(NamedTuple):
    """A path; `facts` is "D" if it is gone. `inode` is one of several names' file, "" if it has one
    name; `at`: where in the file its bytes are. `changed`: it is not as in the image."""

    path: str
    facts: list[str]
    target: str = ""
    mtime: int = 0
    inode: str = ""
    changed: bool = True
    attributes: dict[str, str] = {}  # noqa: RUF012  (never changed)
    at: int = 0


def write(told: IO[bytes], output: IO[bytes]) -> None:
    """Write the tar of a layer: what was added and changed, with the folders that lead there, and
    whiteouts for what is gone.

    Raises:
        ProtocolError: this is not what an agent tells.
    """
    try:
        records = list(_records(told, told.seek(0, io.SEEK_END)))
    except (ValueError, IndexError) as error:
        raise ProtocolError(f"the agent of the sandbox does not tell what has changed: {error}") from error
    gone = topmost([each.path for each in records if each.facts == ["D"]], _no_folders(records))
    wanted = {each.path for each in records if each.facts != ["D"] and each.changed} | {*gone}
    leading = {path[:at] for path in wanted for at in slashes(path)}
    with writing(output) as tar:
        first: dict[str, str] = {}
        for each in records:
            if each.facts != ["D"] and (each.changed or each.path in leading) and not _is_whiteout(each.path):
                _add(tar, each, told, first)
        for path in gone:
            head, slash, tail = path.rpartition("/")
            tar.addfile(tarfile.TarInfo(f"{head}{slash}{_WHITEOUT}{tail}"))


def _records(told: IO[bytes], end: int) -> Iterator[Told]:
    told.seek(0)
    taken = 0
    while path := _field(told):
        depth = path.count("/")
        if depth > _DEEPEST or path.startswith("/") or {*path.split("/")} & {"", ".", ".."}:
            raise ValueError(f"the path {path[:80]!r}")
        taken += _RECORD + (depth + 1) * len(path)  # its folders are looked for by their paths
        if taken > _MOST:
            raise ValueError("too many files for a snapshot; use a volume for them")
        begin = told.tell()
        facts = _field(told).split()
        if facts == ["D"]:
            yield Told(path, facts)
            continue
        target = _field(told)
        changed, mtime, inode = _field(told).split()
        attributes = {name: bytes.fromhex(value) for name, _, value in (w.partition("=") for w in _field(told).split())}
        texts = {name: value.decode("utf-8", "surrogateescape") for name, value in attributes.items()}
        at = told.tell()
        size = _size(facts)
        if size > end - at or (facts[0] == "f" and changed != "1"):
            raise ValueError(f"the size {size} of {path[:80]!r}")
        taken += at - begin
        yield Told(path, facts, target, int(mtime), "" if inode == "0:0" else inode, changed == "1", texts, at)
        told.seek(at + size)


def _size(facts: list[str]) -> int:
    """How many bytes of a file follow its record.

    Raises:
        ValueError: no layer can have these facts.
    """
    kind, mode, uid, gid, size, _, device = facts
    major, _, minor = device.partition(":")
    numbers = (int(mode, 8) >> 12, int(uid) >> 32, int(gid) >> 32, int(major) >> 20, int(minor) >> 20)
    if kind not in _KINDS or any(numbers) or int(size) < 0:
        raise ValueError(f"the facts {facts}")
    return int(size) if kind == "f" else 0


def _field(told: IO[bytes]) -> str:
    """The bytes up to a NUL; "" at the end."""
    at, found = told.tell(), bytearray()
    while (end := found.find(0)) < 0 and len(found) < _LONGEST:
        if not (more := told.read(256)):
            break
        found += more
    if end < 0 and found:
        raise ValueError("a field has no end")
    told.seek(at + end + 1 if found else at)
    return found[: max(end, 0)].decode("utf-8", "surrogateescape")


def _no_folders(records: list[Told]) -> set[str]:
    return {each.path for each in records if each.facts[0] not in "dD"}


def _is_whiteout(path: str) -> bool:
    """Its name has a meaning of its own in a layer, so no layer can have it."""
    return path.rpartition("/")[2].startswith(_WHITEOUT)


def _add(tar: tarfile.TarFile, each: Told, told: IO[bytes], first: dict[str, str]) -> None:
    kind, mode, uid, gid, size, _, device = each.facts
    member = tarfile.TarInfo(each.path)
    member.type, member.mode, member.uid, member.gid = _KINDS[kind], int(mode, 8), int(uid), int(gid)
    member.mtime, member.linkname = each.mtime, each.target
    member.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in each.attributes.items()}
    major, _, minor = device.partition(":")
    member.devmajor, member.devminor = int(major), int(minor)
    if kind != "f":
        tar.addfile(member)
        return
    if each.inode and each.inode in first:
        member.type, member.linkname = tarfile.LNKTYPE, first[each.inode]
        tar.addfile(member)
        return
    if each.inode:
        first[each.inode] = each.path
    member.size = int(size)
    told.seek(each.at)
    tar.addfile(member, told)
