"""What a step prints: passed on as text, with the last of it kept for the error."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

_KEPT = 16 * 1024
_LINES = 40
_WIDTH = 300

# How compilers, package managers and Python begin a line about an error, or end one.
_ERROR = re.compile(
    r"^\W*(E|ERROR|error|Error|fatal|\S*(Error|Exception)):|: (fatal )?error:|: not found$|: No such file"
)
# Package managers say this once, and end with what they have not found.
_UNREACHED = re.compile(
    r"name resolution|Could not resolve|failure resolving|Name or service not known|NameResolutionError"
    r"|Connection (refused|reset|timed out)|(connect|read) timeout|Network is unreachable"
    r"|certificate verify failed|Cannot connect to proxy|EAI_AGAIN|ECONNREFUSED",
    re.IGNORECASE,
)


class Tail:
    """Takes bytes as they come, in pieces that may cut characters."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def write(self, data: bytes) -> None:
        """More output."""
        self._add(self._decoder.decode(data))

    def close(self) -> None:
        """The end of the output."""
        self._add(self._decoder.decode(b"", final=True))

    def _add(self, text: str) -> None:
        if text:
            self._kept = (self._kept + text)[-_KEPT:]
            self._tell(text)

    @property
    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._kept.splitlines()[-_LINES:])

    @property
    def last(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self._kept.splitlines()) if line.strip()), "")

    @property
    def why(self) -> str:
        """The lines that tell most about a failure, for its sentence; "" if nothing was printed."""
        lines = [line.strip()[:_WIDTH] for line in self._kept.splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.search(line)]
        unreached = [line for line in lines if _UNREACHED.search(line)]
        told = (errors or lines)[-1:]
        if unreached and unreached[-1] not in told:
            return f"it printed: {unreached[-1]}, and at the end: {told[0]}"
        return "" if not told else f"it last printed: {told[0]}" if told == lines[-1:] else f"it printed: {told[0]}"
