"""Durations and sizes as people write them: "5m", "1h30m", "512m", "2g"."""

from __future__ import annotations

import re

_NUMBER = r"(\d+(?:\.\d+)?)"
_PART = _NUMBER + "(ms|s|m|h|d|w)"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MEBIBYTES = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0**2}


def number(text: str) -> float | None:
    """A number alone; None: the text is none."""
    return float(text) if re.fullmatch(_NUMBER, text.strip()) else None


def seconds(text: str) -> float | None:
    """A duration, of "90", "5m", "1h30m", "2d"; None: the text is none."""
    text = text.strip().lower()
    if re.fullmatch(f"(?:{_PART})+", text):
        return sum(float(count) * _SECONDS[unit] for count, unit in re.findall(_PART, text))
    return number(text)


def mebibytes(text: str) -> int | None:
    """Whole MiB, of "512", "512m", "2g", "1GB"; None: the text is no size."""
    found = re.fullmatch(_NUMBER + "(?:([kmgt])i?b?)?", text.strip().lower())
    return int(float(found[1]) * _MEBIBYTES[found[2] or "m"]) if found else None
