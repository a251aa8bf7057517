"""What a build of the daemon tells: BuildKit's trace (protocol buffers in JSON), or the lines of the older builder and of Podman's.

BuildKit's records are `moby.buildkit.v1.StatusResponse` of its control.proto; of those few fields are needed, so they are read here
instead of by a library of a megabyte.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_BUILDKIT = re.compile(r"\[(?:[^\]]* )?(\d+)/(\d+)\] (.*)", re.DOTALL)
_OLDER = re.compile(r"(?:Step|STEP) (\d+)/(\d+) ?: (.*)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class News(NamedTuple):
    """`event`: "start", "output", "done", "cached" or "failed" (`text` is the cause). `name` is the instruction as the builder shows it."""

    event: str
    number: int
    name: str
    text: str = ""


class Listener:
    """Takes the objects that the daemon sends, and tells news of numbered instructions. `image` is the id of the image, at the end."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell
        self._vertices: dict[str, tuple[int, str]] = {}
        self._begun: set[str] = set()
        self._over: set[str] = set()
        self._older = (0, "")
        self.image = ""
        self.error = ""

    def hear(self, message: Mapping[str, Any]) -> None:
        """One object."""
        aux = message.get("aux")
        if message.get("id") == "moby.buildkit.trace" and isinstance(aux, str):
            self._trace(base64.b64decode(aux))
        elif isinstance(aux, dict) and "ID" in aux:
            self.image = str(aux["ID"])
        elif "stream" in message:
            self._line(str(message["stream"]))
        elif "error" in message:
            self.error = str((message.get("errorDetail") or {}).get("message") or message["error"])

    def _line(self, text: str) -> None:
        if found := _OLDER.match(text.strip()):
            self._older = (int(found[1]), found[3])
            self._tell(News("start", *self._older))
        elif self._older[0] and not text.startswith((" --->", "Removing intermediate", "--> ", "Successfully")):
            self._tell(News("output", *self._older, _COLOURS.sub("", text)))

    def _trace(self, record: bytes) -> None:
        for field, value in _fields(record):
            if field == 1:
                self._vertex(dict(_fields(value)))
            elif field == 3:
                log = dict(_fields(value))
                self._say("output", _string(log.get(1)), _string(log.get(4)))

    def _vertex(self, vertex: Mapping[int, bytes]) -> None:
        digest = _string(vertex.get(1))
        found = _BUILDKIT.fullmatch(_string(vertex.get(3)))
        if not found:
            return
        self._vertices[digest] = (int(found[1]), found[3])
        if 5 in vertex and digest not in self._begun:
            self._begun.add(digest)
            self._say("start", digest)
        if 6 in vertex and digest not in self._over:
            self._over.add(digest)
            error = _string(vertex.get(7))
            self._say("failed" if error else "cached" if 4 in vertex else "done", digest, error)

    def _say(self, event: str, digest: str, text: str = "") -> None:
        if digest in self._vertices:
            self._tell(News(event, *self._vertices[digest], text))


def _string(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _fields(record: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message: number and bytes; numbers come as bytes, too, for only whether they are there matters."""
    at = 0
    while at < len(record):
        key, at = _varint(record, at)
        size = 0
        if key & 7 == 0:
            _, end = _varint(record, at)
        else:
            size, at = _varint(record, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            end = at + size
        yield key >> 3, record[at:end]
        at = end


def _varint(record: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = record[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
