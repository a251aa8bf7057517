"""OPENMODAL_MUST_WORK turns skips into failures: in CI nothing is silently not tested."""

from __future__ import annotations

import pytest

from tests import conftest


def report(outcome: str) -> pytest.TestReport:
    place = ("tests/x.py", 1, "Skipped: no kernel")
    return pytest.TestReport("tests/x.py::test", ("tests/x.py", 1, "test"), {}, outcome, place, "call")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("must_work", "features", "outcome", "expected"),
    [
        ("embedded", {"embedded", "slow"}, "skipped", "failed"),
        ("docker, embedded", {"embedded"}, "skipped", "failed"),
        ("embedded", {"docker"}, "skipped", "skipped"),
        ("embedded", set(), "skipped", "skipped"),
        ("", {"embedded"}, "skipped", "skipped"),
        ("embedded", {"embedded"}, "passed", "passed"),
    ],
)
def test_a_skip_of_what_must_work_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, must_work: str, features: set[str], outcome: str, expected: str
) -> None:
    monkeypatch.setenv("OPENMODAL_MUST_WORK", must_work)
    result = report(outcome)
    conftest._fail_if_skipped(result, features)
    assert result.outcome == expected
    if expected == "failed":
        assert "no kernel" in str(result.longrepr)
