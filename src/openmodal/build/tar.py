"""Reading a tar stream without trusting it: headers to members, nothing is written here.

Not `tarfile`: that reads names of any length into memory, and takes some broken headers for the end
of the archive. Knows ustar, PAX, and GNU's long names; refuses sparse files and several volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from openmodal.errors import ImageError

BLOCK = 512
MOST_ID = 65_535
"""The last user or group id of a sandbox. The kernel would show a higher one as nobody's."""

_LONGEST = 1 << 20  # bytes of a long name or of PAX records: paths have 4096
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "fifo",
}


class HostileTar(ImageError):
    """A member that must not be unpacked, or an archive that is none."""


class Member(NamedTuple):
    """One member. `name` and `link` are bytes, as file names are."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float
    link: bytes
    xattrs: dict[str, bytes]


class Reader:
    """Members in order. Read a member's data before the next; the rest of it is skipped."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0  # of the current member's data
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """All members, up to the end of the archive.

        Raises:
            HostileTar: the stream is no tar, is cut off, or has something in it that is refused.
        """
        pax: dict[str, bytes] = {}
        common: dict[str, bytes] = {}
        long: dict[str, bytes] = {}
        while header := self._header():
            kind = header[156:157]
            size = _number(header[124:136], "size")
            if kind in (b"x", b"X", b"g", b"L", b"K"):
                self._left, self._padding = size, -size % BLOCK
                data = self._extra(size)
                if kind in (b"L", b"K"):
                    long["path" if kind == b"L" else "linkpath"] = data.split(b"\0", 1)[0]
                elif kind == b"g":
                    common |= _records(data)
                else:
                    pax = _records(data)
                continue
            member = _member(header, size, common | pax, long)
            self._left, self._padding = member.size, -member.size % BLOCK
            pax, long = {}, {}
            yield member
            while self.data(1 << 18):
                pass

    def data(self, most: int) -> bytes:
        """The next bytes of the current member, b"" at its end."""
        if not self._left:
            self._exact(self._padding)
            self._padding = 0
            return b""
        data = self._read(min(most, self._left))
        if not data:
            raise HostileTar("the archive is cut off in the middle of a file")
        self._left -= len(data)
        return data

    def _extra(self, size: int) -> bytes:
        if size > _LONGEST:
            raise HostileTar(f"the archive has a header of {size} bytes; refused")
        data = self._exact(size)
        self._left = 0
        self._exact(self._padding)
        self._padding = 0
        return data

    def _header(self) -> bytes:
        header = self._exact(BLOCK, end=True)
        if not header or header == bytes(BLOCK):
            return b""
        stored = _number(header[148:156], "checksum")
        if stored != sum(header[:148]) + 256 + sum(header[156:]):
            raise HostileTar("the archive has a header whose checksum is wrong")
        return header

    def _exact(self, size: int, *, end: bool = False) -> bytes:
        parts: list[bytes] = []
        while size:
            data = self._read(size)
            if not data:
                if end and not parts:
                    return b""  # without the two empty blocks: seen in real images
                raise HostileTar("the archive is cut off")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _number(field: bytes, what: str) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            raise HostileTar(f"the archive has a negative {what}")
        return value
    text = field.split(b"\0", 1)[0].strip()
    if not all(c in b"01234567" for c in text):
        raise HostileTar(f"the archive has a {what} that is no number: {field!r}")
    return int(text or b"0", 8)


def _records(data: bytes) -> dict[str, bytes]:
    """PAX: "length key=value\\n", where length counts the whole record."""
    records: dict[str, bytes] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8:
            raise HostileTar("the archive has a PAX header that is broken")
        length = int(digits)
        record = data[len(digits) + 1 : length]
        if length > len(data) or length < len(digits) + 5 or record[-1:] != b"\n" or b"=" not in record:
            raise HostileTar("the archive has a PAX header that is broken")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value
        data = data[length:]
    return records


def _member(header: bytes, size: int, pax: dict[str, bytes], long: dict[str, bytes]) -> Member:
    name = pax.get("path", long.get("path", _name(header)))
    kind = _KINDS.get(header[156:157])
    if kind is None or any(key.startswith("GNU.sparse") for key in pax):
        raise HostileTar(f"{shown(name)}: a kind of member that no image needs ({header[156:157]!r})")
    if kind == "file" and name.endswith(b"/"):
        kind = "folder"  # as archives from before 1988 write it
    return Member(
        name=name,
        kind=kind,
        mode=_number(header[100:108], "mode") & 0o7777,
        uid=_decimal(pax, "uid", name) if "uid" in pax else _number(header[108:116], "owner"),
        gid=_decimal(pax, "gid", name) if "gid" in pax else _number(header[116:124], "group"),
        size=(_decimal(pax, "size", name) if "size" in pax else size) if kind == "file" else 0,
        mtime=_time(header, pax, name),
        link=pax.get("linkpath", long.get("linkpath", header[157:257].split(b"\0", 1)[0])),
        xattrs={key[13:]: value for key, value in pax.items() if key.startswith("SCHILY.xattr.")},
    )


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _decimal(pax: dict[str, bytes], key: str, name: bytes) -> int:
    if not pax[key].isdigit() or len(pax[key]) > 20:
        raise HostileTar(f"{shown(name)}: its {key} is {pax[key][:40]!r}")
    return int(pax[key])


def _time(header: bytes, pax: dict[str, bytes], name: bytes) -> float:
    if "mtime" not in pax:
        field = header[136:148]
        return 0.0 if field[0] & 0xC0 == 0xC0 else float(_number(field, "time"))
    try:
        return float(pax["mtime"])
    except ValueError as error:
        raise HostileTar(f"{shown(name)}: its time is {pax['mtime'][:40]!r}") from error


def shown(name: bytes) -> str:
    """A member's name for a message: short, and without anything that a terminal would obey."""
    return repr(name[:120].decode("utf-8", "backslashreplace"))
