"""One sandbox, for the view static/sandbox.mjs: what was done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from openmodal._journal import fields
from openmodal.sandbox import Sandbox

if TYPE_CHECKING:
    from openmodal.web.feed import Feed
    from openmodal.web.server import Page


class OneSandbox:
    """The calls below /api/PLACE/sandboxes/{id}/."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The timeline."""
        return [Route("/sandboxes/{id}/timeline", self._timeline)]

    @property
    def feeds(self) -> Mapping[str, Feed]:
        return {}

    async def _timeline(self, request: Request) -> Response:
        sandbox = await Sandbox.from_id.aio(request.path_params["id"], engine=self._page.engine)
        return JSONResponse([fields(event) for event in await sandbox.timeline.aio()])


__all__ = ["OneSandbox"]
