"""Rows that change."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from openmodal.web.feed import Feed


def data(event: bytes) -> Any:
    return json.loads(event.partition(b"data: ")[2])


@pytest.mark.timeout(60)
def test_it_goes_on_after_all_have_left() -> None:
    """Whoever came after that spun for ever, and the page answered nobody any more."""
    rows = {"a": {"id": "a", "n": 1}}

    async def look() -> dict[str, dict[str, Any]]:
        return dict(rows)

    async def main() -> None:
        feed = Feed(look, 0.01)
        first = feed.watch()
        assert data(await anext(first))["all"] == [{"id": "a", "n": 1}]
        await first.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        second = feed.watch()
        await anext(second)
        waiting = asyncio.ensure_future(anext(second))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        rows["a"] = {"id": "a", "n": 2}
        assert data(await waiting)["changed"] == [{"id": "a", "n": 2}]
        await second.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
