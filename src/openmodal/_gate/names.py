"""Just enough DNS (RFC 1035) for questions and answers, of the sandbox and of a resolver. Pure."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from openmodal._gate.policy import Denied

A, IN = 1, 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 1, 2, 3
MOST_ADDRESSES = 12  # with the longest name, what 512 bytes hold

_HEADER = struct.Struct("!6H")
_QUERY, _RESPONSE, _TRUNCATED, _DESIRED, _AVAILABLE = 0, 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE, _RCODE = 0x7800, 0x000F


@dataclass(frozen=True)
class Question:
    """One question; `raw` is its section as it came: some clients check the answer's case."""

    id: int
    name: str
    kind: int
    raw: bytes


@dataclass(frozen=True)
class Answer:
    """What a resolver said: addresses, and for how many seconds they hold."""

    rcode: int
    addresses: tuple[str, ...] = ()
    seconds: int = 0
    truncated: bool = False


def parse_question(data: bytes) -> Question:
    """The question of a client. What follows it (EDNS) is nothing to us.

    Raises:
        Denied: it is none, or more than one.
    """
    if len(data) < _HEADER.size:
        raise Denied("malformed DNS")
    id, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & (_RESPONSE | _OPCODE) or questions != 1:
        raise Denied("not one DNS question")
    name, end = _read_name(data, _HEADER.size)
    if len(data) < end + 4:
        raise Denied("malformed DNS", name)
    kind, family = struct.unpack_from("!2H", data, end)
    if family != IN:
        raise Denied("not a question about the internet", name)
    return Question(id, name, kind, data[_HEADER.size : end + 4])


def make_answer(question: Question, answer: Answer) -> bytes:
    """The answer to a client."""
    addresses = answer.addresses[:MOST_ADDRESSES] if question.kind == A else ()
    flags = _RESPONSE | _DESIRED | _AVAILABLE | answer.rcode
    records = b"".join(
        struct.pack("!3HIH4s", 0xC000 | _HEADER.size, A, IN, answer.seconds, 4, socket.inet_aton(address))
        for address in addresses
    )
    return _HEADER.pack(question.id, flags, 1, len(addresses), 0, 0) + question.raw + records


def make_error(data: bytes) -> bytes:
    """The answer to what is no question."""
    return data[:2].ljust(2, b"\0") + _HEADER.pack(0, _RESPONSE | FORMAT_ERROR, 0, 0, 0, 0)[2:]


def make_question(id: int, name: str) -> Question:
    """A question for the addresses of a normal name."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return Question(id, name, A, labels + b"\0" + struct.pack("!2H", A, IN))


def encode(question: Question) -> bytes:
    """What is sent to a resolver."""
    return _HEADER.pack(question.id, _QUERY | _DESIRED, 1, 0, 0, 0) + question.raw


def parse_answer(data: bytes, question: Question) -> Answer | None:
    """A resolver's answer; None if it answers something else.

    Raises:
        Denied: it is malformed.
    """
    if len(data) < _HEADER.size:
        return None
    id, flags, questions, records, *_ = _HEADER.unpack_from(data)
    end = _HEADER.size + len(question.raw)
    if id != question.id or not flags & _RESPONSE or questions != 1 or data[_HEADER.size : end] != question.raw:
        return None
    if flags & _TRUNCATED:
        return Answer(SERVER_FAILURE, truncated=True)
    addresses, seconds = _read_records(data, end, records)
    return Answer(flags & _RCODE, addresses, seconds)


def _read_records(data: bytes, at: int, count: int) -> tuple[tuple[str, ...], int]:
    """The addresses and the shortest TTL. Aliases do not matter: the resolver followed them."""
    addresses: list[str] = []
    shortest = 1 << 31
    for _ in range(count):
        _, at = _read_name(data, at)
        if len(data) < at + 10:
            raise Denied("malformed DNS")
        kind, family, seconds, size = struct.unpack_from("!2HIH", data, at)
        body = data[at + 10 : at + 10 + size]
        at += 10 + size
        if len(body) < size:
            raise Denied("malformed DNS")
        shortest = min(shortest, seconds)
        if (kind, family, size) == (A, IN, 4):
            addresses.append(socket.inet_ntoa(body))
    return tuple(addresses), shortest if addresses else 0


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """The name at a position, and where the name ends. Pointers lead only backwards, so they end."""
    labels: list[str] = []
    end = 0
    limit = at
    while True:
        length = data[at] if at < len(data) else 0xFF
        if length >= 0xC0 and at + 1 < len(data):
            end = end or at + 2
            at = (length & 0x3F) << 8 | data[at + 1]
            if not _HEADER.size <= at < limit:
                raise Denied("malformed DNS")
            limit = at
            continue
        if length > 63 or at + 1 + length > len(data):
            raise Denied("malformed DNS")
        if not length:
            return ".".join(labels), end or at + 1
        labels.append(data[at + 1 : at + 1 + length].decode("latin-1"))
        if "." in labels[-1]:  # as text it would be two labels
            raise Denied("malformed DNS")
        if sum(map(len, labels)) + len(labels) > 254:
            raise Denied("malformed DNS")
        at += 1 + length
