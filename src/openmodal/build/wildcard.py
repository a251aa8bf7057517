"""Wildcards of COPY, as Go's filepath.Match has them: `*`, `?`, `[a-z]`, `[^a-z]`, backslash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from openmodal.errors import InvalidError

Listing = Callable[[str], Iterable[tuple[str, bool]]]
"""The names in a folder, sorted, and whether each is a folder itself (a link to one is none)."""

_CHARACTER = re.compile(r"\\.|[^\\\]-]", re.DOTALL)


def is_pattern(path: str) -> bool:
    """Whether there is a wildcard in it."""
    return any(character in re.sub(r"\\.", "", path) for character in "*?[")


def expand(path: str, listing: Listing) -> list[str]:
    """The paths that match, sorted. Links are followed only before the first wildcard."""
    parts = path.split("/")
    start = next(number for number, part in enumerate(parts) if is_pattern(part))
    found = [("/".join(parts[:start]), True)]
    for part in parts[start:]:
        matches = re.compile(_regex(part)).fullmatch
        found = [
            (f"{folder}/{name}" if folder else name, is_folder)
            for folder, may_be_entered in found
            if may_be_entered
            for name, is_folder in listing(folder)
            if matches(name)
        ]
    return [name for name, _ in found]


def _regex(pattern: str) -> str:
    result, at = "", 0
    while at < len(pattern):
        match pattern[at]:
            case "*" | "?" as wildcard:
                result, at = result + ("(?s:.*)" if wildcard == "*" else "(?s:.)"), at + 1
            case "[":
                one, at = _one_of(pattern, at + 1)
                result += one
            case "\\" if at + 1 == len(pattern):
                raise _malformed(pattern)
            case "\\":
                result, at = result + re.escape(pattern[at + 1]), at + 2
            case ordinary:
                result, at = result + re.escape(ordinary), at + 1
    return result


def _one_of(pattern: str, at: int) -> tuple[str, int]:
    """The expression for what is between brackets, and where it ends."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges = ""
    while not (ranges and pattern.startswith("]", at)):
        low, at = _character(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _character(pattern, at + 1)
        # Nothing is between b and a; Python would not compile it.
        ranges += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
        if not ranges and pattern.startswith("]", at):
            return ("(?s:.)" if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{ranges}]", at + 1


def _character(pattern: str, at: int) -> tuple[str, int]:
    found = _CHARACTER.match(pattern, at)
    if not found:
        raise _malformed(pattern)
    return found[0][-1], found.end()


def _malformed(pattern: str) -> InvalidError:
    return InvalidError(
        rf"{pattern!r} is no pattern: a '[' or '\' in it has no end; write '\[' for the character itself"
    )
