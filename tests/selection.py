"""Which of the collected tests are not run."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def leave_out(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]) -> None:
    """Take the unwanted ones out of the items, and have pytest count them as deselected."""
    out = {item for item in items if unwanted(item)}
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]
