"""What a step prints: passed on as text, with the last of it kept for the error."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_KEPT = 16 * 1024
_LINES = 40


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
