"""What a step prints: passed on as text, with the last of it kept for the error."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable

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


_SHORTEST = 4
"""Characters of a secret that is masked: a shorter one is in many words that tell nothing."""
_MASK = "***"


class Tail:
    """Takes bytes as they come, in pieces that may cut characters. Each line of `secrets` that
    comes is told as `***`."""

    def __init__(self, tell: Callable[[str], None], secrets: Iterable[str] = ()) -> None:
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""
        words = {line for secret in secrets for line in secret.splitlines() if len(line) >= _SHORTEST}
        self._secrets = sorted(words, key=len, reverse=True)  # one may be part of another
        self._any_secret = re.compile("|".join(map(re.escape, self._secrets)))
        self._held = ""  # that may be a secret's beginning

    def write(self, data: bytes) -> None:
        """More output."""
        self._add(self._decoder.decode(data))

    def close(self) -> None:
        """The end of the output."""
        self._add(self._decoder.decode(b"", final=True), last=True)

    def _add(self, text: str, *, last: bool = False) -> None:
        if self._secrets:
            text = self._masked(text, last=last)
        if text:
            self._kept = (self._kept + text)[-_KEPT:]
            self._tell(text)

    def _masked(self, text: str, *, last: bool) -> str:
        """What can be told: all but what may be the beginning of a secret."""
        text = self._held + text
        cut = len(text) if last else len(text) - max(_beginning(text, secret) for secret in self._secrets)
        crossing = (found.start() for found in self._any_secret.finditer(text) if found.start() < cut < found.end())
        cut = min(crossing, default=cut)
        self._held = text[cut:]
        return self._any_secret.sub(_MASK, text[:cut])

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


def _beginning(text: str, secret: str) -> int:
    """How many characters at the end of a text a secret begins with, but is not yet whole."""
    longest = min(len(secret) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(secret[:size])), 0)
