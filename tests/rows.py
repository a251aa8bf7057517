"""A table of the catalogue of attacks: which rows have tests, and how they went. A plugin: `pytest
-p tests.rows`.

A row is a letter and a number. A test's docstring begins with the rows that it is about ("C1: …",
"F10, F11: …"); where a test has many cases, a case's name does. What is not tried, and why, is in
docs/security.md.
"""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

CATALOGUE = {
    "A": "0 1 2 4 5 7 8 10 11 13 14",
    "B": "1 2 4 5 7 8 10 11 13 14 16 17",
    "C": "1 2 4 5 7 8 10 11 13 14 16 17 19 20 22 23 25 26 28 29 31 32 34",
    "D": "1 2 4 5",
    "E": "1 2 4",
    "F": "1 2 4 5 7 8 10 11 13 14 16 17",
    "G": "1 2 4 5 7 8 10 11 13 14 16 17 19 20",
    "H": "1 2 4 5 7 8 10 11 13 14 16 17 19 20",
    "I": "1 2 4 5 7 8 10 11 13 14 16 17 19 20 22 23 24 25 26 31 32 34",
    "J": "1 2 4 5 7 8 10 11 13 14 16 17 19 20 22",
    "K": "1 2 4 5 7 8 10 11 13",
}
"""What an attacker may try: A identity, B /proc and /sys, C system calls, D devices, E control
groups, F files and neighbours, G network, H files and images from hostile hands, I exhaustion, J
lifecycle, K state and local users."""

ROWS = frozenset(f"{letter}{number}" for letter, numbers in CATALOGUE.items() for number in numbers.split())

_BEGINNING = re.compile(r"((?:[A-KR]\d+, )*[A-KR]\d+)(?::| )")


def rows_of(text: str) -> tuple[str, ...]:
    """The rows that a docstring or the name of a case begins with."""
    found = _BEGINNING.match(text)
    return tuple(found[1].split(", ")) if found else ()


def pytest_itemcollected(item: pytest.Item) -> None:
    case = getattr(getattr(item, "callspec", None), "id", "")
    function = getattr(item, "function", None)
    rows = rows_of(case) or rows_of(getattr(function, "__doc__", None) or "")
    item.user_properties.append(("rows", rows))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes: dict[str, set[str]] = defaultdict(set)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome != "passed" or report.when == "call":
                for row in dict(getattr(report, "user_properties", ())).get("rows", ()):
                    outcomes[row].add(outcome)
    if not outcomes:
        return
    terminalreporter.section("rows of the catalogue of attacks")
    for letter in (*CATALOGUE, "R"):
        _line(terminalreporter, letter, outcomes)


def _line(terminalreporter: pytest.TerminalReporter, letter: str, outcomes: dict[str, set[str]]) -> None:
    wanted = sorted((row for row in ROWS | set(outcomes) if row[0] == letter), key=lambda row: int(row[1:]))
    passed = [row for row in wanted if outcomes.get(row) == {"passed"}]
    failed = [row for row in wanted if outcomes.get(row, set()) & {"failed", "error"}]
    rest = [row for row in wanted if row not in passed and row not in failed]
    text = f"{letter}: {len(passed)} of {len(wanted)} rows passed"
    text += f"; FAILED: {' '.join(failed)}" if failed else ""
    text += f"; not tried: {' '.join(rest)}" if rest else ""
    terminalreporter.write_line(text)
