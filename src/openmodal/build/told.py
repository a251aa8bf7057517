"""Progress of another builder, translated into progress of the user's steps.

The builder is BuildKit (protocol buffers of dockerd, JSON of buildctl), Docker's older one, or
Podman's (lines). Few fields of `moby.buildkit.v1.StatusResponse` (control.proto) are needed, so
they are read here, and not by a library of a megabyte.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from openmodal.build import RunRequest
from openmodal.build.output import Tail
from openmodal.build.steps import Builder
from openmodal.errors import ImageBuildError

_BUILDKIT = re.compile(r"\[(?:[^\]]* )?(\d+)/(\d+)\] (.*)", re.DOTALL)
_OLDER = re.compile(r"(?:Step|STEP) (\d+)/(\d+) ?: (.*)")
_PLAIN = re.compile(r"(?:Step #\d+: )?#(\d+) (.*)")
_SECONDS = re.compile(r"\d+\.\d+ ")
_CODE = re.compile(r"(?:exit code|non-zero code|exit status):? ?(\d+)|returned a non-zero code: (\d+)")
_FLAGS = {4: "cached", 5: "started", 6: "completed"}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class News(NamedTuple):
    """`event`: "start", "output", "done", "cached" or "failed"; `name`: the instruction."""

    event: str
    number: int
    name: str
    text: str = ""


class Listener:
    """Turns the daemon's objects into news of numbered instructions, and an image's id."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell
        self._vertices: dict[str, tuple[int, str]] = {}
        self._begun: set[str] = set()
        self._over: set[str] = set()
        self._names: dict[str, str] = {}
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

    def solved(self, status: Mapping[str, Any]) -> None:
        """One object of `buildctl --progress=rawjson`."""
        for item in status.get("vertexes") or ():
            digest, name, error = (str(item.get(key, "")) for key in ("digest", "name", "error"))
            flags = frozenset(key for key in ("started", "completed", "cached") if item.get(key))
            self._vertex(digest, name, error, flags)
        for log in status.get("logs") or ():
            text = base64.b64decode(log.get("data") or "").decode("utf-8", "replace")
            self._say("output", str(log.get("vertex", "")), text)

    def plain(self, line: str) -> None:
        """One line of `docker build --progress=plain`."""
        if not (found := _PLAIN.match(line)):
            return
        digest, text = found[1], _COLOURS.sub("", found[2])
        name = self._names.setdefault(digest, text)
        if text == name:
            self._vertex(digest, name, "", frozenset({"started"}))
        elif text.startswith(("DONE ", "CACHED", "ERROR")):
            flags = frozenset({"started", "completed", *(("cached",) if text == "CACHED" else ())})
            self._vertex(digest, name, text.partition("ERROR: ")[2], flags)
        # "..." means that more follows below; older builders print the image's name.
        elif text != "..." and not text.startswith("sha256:"):
            self._say("output", digest, f"{_SECONDS.sub('', text)}\n")

    def _trace(self, record: bytes) -> None:
        for field, value in _fields(record):
            if field == 1:
                vertex = dict(_fields(value))
                digest, name, error = (_string(vertex.get(number)) for number in (1, 3, 7))
                self._vertex(digest, name, error, frozenset(_FLAGS[number] for number in _FLAGS.keys() & vertex))
            elif field == 3:
                log = dict(_fields(value))
                self._say("output", _string(log.get(1)), _string(log.get(4)))

    def _vertex(self, digest: str, name: str, error: str, flags: frozenset[str]) -> None:
        found = _BUILDKIT.fullmatch(name)
        if not found:
            return
        self._vertices[digest] = (int(found[1]), found[3])
        if "started" in flags and digest not in self._begun:
            self._begun.add(digest)
            self._say("start", digest)
        if "completed" in flags and digest not in self._over:
            self._over.add(digest)
            self._say("failed" if error else "cached" if "cached" in flags else "done", digest, error)

    def _say(self, event: str, digest: str, text: str = "") -> None:
        if digest in self._vertices:
            self._tell(News(event, *self._vertices[digest], text))


class Told:
    """News of a build, as the steps that the user wrote."""

    def __init__(self, builder: Builder, titles: tuple[str, ...]) -> None:
        self._builder = builder
        self._titles = titles
        self._failed = ""
        self._last = ""
        self._tails: dict[int, Tail] = {}

    def hear(self, news: News) -> None:
        """One piece of news."""
        if news.number == 1 and self._titles:
            return  # the image that it stands on
        text = self._title(news)
        match news.event:
            case "start":
                self._last = text
                self._tails[news.number] = Tail(self._builder.prints)
                self._builder.starts(text)
            case "output":
                self._tails.setdefault(news.number, Tail(self._builder.prints)).write(news.text.encode())
            case "failed":
                self._failed = text
            case event:
                self._builder.ends(text, cached=event == "cached")

    def _title(self, news: News) -> str:
        number = news.number - 2
        return self._titles[number] if 0 <= number < len(self._titles) else " ".join(news.name.split())

    def failure(self, error: str) -> ImageBuildError:
        """The exception for a build that failed."""
        step = self._failed or self._last or "the build"
        tail = next((t for t in reversed(self._tails.values()) if t.text), Tail(lambda text: None))
        if code := _CODE.search(error):
            return self._builder.failure(int(code[1] or code[2]), step, tail)
        return ImageBuildError(
            f"{step} failed: {' '.join(error.split()) or 'the builder did not say why'}", step=step, output=tail.text
        )


def runs_nothing(request: RunRequest, /) -> int:
    """The runner of a `Builder` that only tells of steps."""
    raise AssertionError(f"{request.argv} is run elsewhere")


def _string(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _fields(record: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message, by number. Integers are bytes, too: their presence counts."""
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
