"""The catalogue is whole: each row has a test, or is named in docs/security.md with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

from tests.rows import ROWS, rows_of

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    path.read_text() for path in (*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "src/openmodal/testing").glob("*.py"))
]
PAGE = (ROOT / "docs" / "security.md").read_text()


def with_tests() -> set[str]:
    """What docstrings and names of cases begin with."""
    begins = [begin for text in TEXTS for begin in re.findall(r'"((?:[A-KR]\d+, )*[A-KR]\d+(?::| ))', text)]
    return {row for begin in begins for row in rows_of(begin)}


def test_every_row_is_tried_or_named_with_a_reason() -> None:
    named = set(re.findall(r"^\| ([A-K]\d+) \|", PAGE, re.MULTILINE))
    assert named <= ROWS
    assert named & with_tests() == set()
    assert ROWS - named - with_tests() == set()


def test_every_promise_links_to_tests_that_are_there() -> None:
    paths = re.findall(r"\]\(\.\./(\S+?)\)", PAGE)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    texts = "".join(TEXTS)
    assert [name for name in re.findall(r"`(test_\w+)`", PAGE) if f"def {name}(" not in texts] == []
