"""The host in the head of an HTTP/1 request (RFC 9112). Pure. What is ambiguous is denied."""

from __future__ import annotations

import re

from openmodal._gate.policy import Denied, normal

LIMIT = 32 << 10

_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_ABSOLUTE = re.compile(rb"http://([^/?#]+)(?:[/?#].*)?", re.IGNORECASE)
_METHODS = 16


def refusal(reason: str, asked: str) -> bytes:
    """An answer that tells why."""
    text = f"openmodal: this sandbox may not reach {asked or 'that'}: {reason}\n"
    return f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode("ascii")


def host(data: bytes, port: int = 80) -> str | None:
    """The normal name that the client wants, or None: more bytes are needed.

    Raises:
        Denied: it is no such request, or it names no host, or several.
    """
    end = data.find(b"\r\n\r\n")
    lines = data[: end if end >= 0 else len(data)].split(b"\r\n")
    if end < 0 and (len(lines) == 1 and not _may_begin(data)):
        raise Denied("not HTTP/1")
    if end < 0:
        return None
    target = _target(lines[0])
    hosts = [value for name, value in map(_field, lines[1:]) if name == b"host"]
    if len(hosts) != 1:
        raise Denied("several Host fields" if hosts else "no Host field")
    name = _name(hosts[0], port)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute and _name(absolute[1], port) != name:
        raise Denied("the target is another host than the Host field", name)
    if not absolute and not target.startswith(b"/") and target != b"*":
        raise Denied("an odd request target", name)
    return name


def _may_begin(data: bytes) -> bool:
    """Whether a request line may begin so."""
    method = data.partition(b" ")[0]
    return len(method) <= _METHODS and (not method or (method.isalpha() and method.isupper()))


def _target(line: bytes) -> bytes:
    found = _LINE.fullmatch(line)
    if not found or len(found[1]) > _METHODS:
        raise Denied("not HTTP/1")
    if found[1] == b"CONNECT":
        raise Denied("a request to be a proxy")
    return found[2]


def _field(line: bytes) -> tuple[bytes, bytes]:
    """A name in lower case and its value; no name for a continued line or a bare CR or LF."""
    found = _FIELD.fullmatch(line)
    if not found:
        raise Denied("malformed HTTP")
    return found[1].lower(), found[2]


def _name(authority: bytes, port: int) -> str:
    text = authority.decode("latin-1")
    name, colon, digits = text.partition(":")
    if colon and digits != str(port):
        raise Denied("another port than the connection's", normal(name) if name else "")
    return normal(name)
