"""The server name in a TLS ClientHello (RFC 8446, RFC 6066). Pure. What is odd is denied.

An encrypted ClientHello counts by its outer name, that of the server that the connection goes to.
"""

from __future__ import annotations

from collections.abc import Iterator

from openmodal._gate.policy import Denied, normal

LIMIT = 32 << 10
"""A ClientHello with several post-quantum keys has less than 8 KiB."""

_MOST_RECORDS = 16  # each call begins anew: many small ones would cost time
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0

ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
"""The alert that tells a client why."""


class _Reader:
    """Takes bytes off the front; a Denied when there are not enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise Denied("malformed TLS")
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        """What is behind a length of `size` bytes."""
        return _Reader(self.take(self.number(size)))

    @property
    def empty(self) -> bool:
        return self._at == len(self._data)


def server_name(data: bytes) -> str | None:
    """The normal name that the client wants, or None: more bytes are needed.

    Raises:
        Denied: it is no ClientHello, or it names no host, or several.
    """
    message = _first_message(data)
    if message is None:
        return None
    hello = _Reader(message)
    hello.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session, ciphers, compressions
        hello.vector(size)
    if hello.empty:
        raise Denied("no server name")
    extensions = hello.vector(2)
    if not hello.empty:
        raise Denied("malformed TLS")
    return _name_of(extensions)


def _first_message(data: bytes) -> bytes | None:
    """The ClientHello's body, put together from its records; None: it is not whole."""
    if data[:1] not in (b"", bytes([_HANDSHAKE])):
        raise Denied("not TLS")
    message = b"".join(_records(data))
    length = int.from_bytes(message[1:4].ljust(3, b"\0"), "big")
    if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
        raise Denied("not TLS")
    if length > LIMIT:
        raise Denied("too large a ClientHello")
    return message[4 : 4 + length] if 4 + length <= len(message) else None


def _records(data: bytes) -> Iterator[bytes]:
    """What is there of the bodies of the records that make up the first message."""
    at = 0
    for _ in range(_MOST_RECORDS):
        if len(data) - at < 5:
            return
        kind, major, size = data[at], data[at + 1], int.from_bytes(data[at + 3 : at + 5], "big")
        if kind != _HANDSHAKE or major != 3 or not 0 < size <= 1 << 14:
            if at:
                return  # it belongs to what comes after
            raise Denied("not TLS")
        yield data[at + 5 : at + 5 + size]
        at += 5 + size
    raise Denied("too large a ClientHello")


def _name_of(extensions: _Reader) -> str:
    found: list[str] = []
    while not extensions.empty:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind != _SERVER_NAME:
            continue
        names = body.vector(2)
        while not names.empty:
            if names.number(1) != _HOST_NAME:
                raise Denied("malformed TLS")
            name = names.vector(2)
            found.append(_text(name))
        if not body.empty:
            raise Denied("malformed TLS")
    if len(found) != 1:
        raise Denied("several server names" if found else "no server name")
    return normal(found[0])


def _text(reader: _Reader) -> str:
    raw = b""
    while not reader.empty:
        raw += reader.take(1)
    return raw.decode("latin-1")
