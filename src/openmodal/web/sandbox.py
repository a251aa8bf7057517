"""One sandbox, for the view static/sandbox.mjs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

if TYPE_CHECKING:
    from openmodal.web.feed import Feed
    from openmodal.web.server import Page


class OneSandbox:
    """The calls below /api/PLACE/sandboxes/{id}/."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Nothing but the list's calls yet."""
        return ()

    @property
    def feeds(self) -> Mapping[str, Feed]:
        return {}


__all__ = ["OneSandbox"]
