"""What an agent tells of changed files, made the tar of a layer. No cluster."""

from __future__ import annotations

import io
import tarfile

import pytest

from openmodal.engines.kubernetes import difference
from openmodal.errors import ProtocolError


def told(
    path: str, facts: str, behind: str = "1 7 0:0", attributes: str = "", target: str = "", data: str = ""
) -> bytes:
    return f"{path}\0{facts}\0{target}\0{behind}\0{attributes}\0{data}".encode()


def file(path: str, data: str = "", mode: str = "644", **more: str) -> bytes:
    return told(path, f"f {mode} 33 50 {len(data)} 7.000000000 0:0", data=data, **more)


def folder(path: str, *, changed: int = 0) -> bytes:
    return told(path, "d 1777 0 0 0 0.000000000 0:0", behind=f"{changed} 7 0:0")


def members(*records: bytes) -> dict[str, tarfile.TarInfo]:
    output = io.BytesIO()
    difference.write(io.BytesIO(b"".join(records)), output)
    output.seek(0)
    with tarfile.open(fileobj=output, errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def test_a_layer_has_what_has_changed_and_the_folders_that_lead_there() -> None:
    found = members(folder("a"), folder("a/b"), file("a/b/c", "text"), folder("other"), folder("empty", changed=1))
    assert list(found) == ["a", "a/b", "a/b/c", "empty"]
    assert (found["a"].mode, found["a/b/c"].uid, found["a/b/c"].gid, found["a/b/c"].size) == (0o1777, 33, 50, 4)


def test_of_what_is_gone_the_topmost_has_a_whiteout() -> None:
    gone = [told(path, "D")[: len(path) + 3] for path in ("was/in", "x", "x/y", "z/in")]
    found = members(folder("was"), file("z", "is a file now"), *gone)
    assert list(found) == ["was", "z", "was/.wh.in", ".wh.x"]


def test_hard_links_and_attributes_are_kept() -> None:
    shared = {"behind": "1 7 8:2a", "attributes": "security.capability=01ff user.a=62 "}
    found = members(file("one", "x", **shared), file("two", "x", **shared))
    assert found["two"].islnk()
    assert found["two"].linkname == "one"
    assert found["one"].pax_headers["SCHILY.xattr.user.a"] == "b"


def test_a_name_that_means_something_in_a_layer_is_left_out() -> None:
    assert not members(file(".wh.etc", "x"))


@pytest.mark.parametrize(
    "records",
    [
        file("../x"),
        file("/x"),
        file("a//b"),
        file("a/./b"),
        b"x\0f",
        b"x",
        told("x", "f 644 0 0 -1 7 0:0"),
        b"x\0q\0\0\0\0",
        told("x", "f 644 0 0 5 7 0:0", data="four"),
        told("x", "f 644 0 0 0 7 0:0", behind="0 7 0:0"),
        told("x", "f 10000 0 0 0 7 0:0"),
        told("x", "f 644 -1 0 0 7 0:0"),
        told("x", "f 644 0 0 0 7"),
        told("x", "c 644 0 0 0 7 9999999999:0"),
        told("a/" * 513 + "a", "f 644 0 0 0 7 0:0"),
    ],
)
def test_what_no_agent_tells_is_refused(records: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not tell"):
        members(records)


def test_how_much_it_can_make_us_remember_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [file(f"file{number}") for number in range(100)]
    assert len(members(*records)) == 100, "the control"
    monkeypatch.setattr(difference, "_MOST", 50_000)
    with pytest.raises(ProtocolError, match="too many files"):
        members(*records)
    gone = [f"gone{number}\0D\0".encode() for number in range(100)]
    with pytest.raises(ProtocolError, match="too many files"):
        members(*gone)
