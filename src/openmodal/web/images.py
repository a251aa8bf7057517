"""Images and their layers, what stands on them, and what a prune would remove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from openmodal import housekeeping
from openmodal.errors import InvalidError
from openmodal.housekeeping import Built
from openmodal.sandbox import Sandbox
from openmodal.web.feed import Feed, Rows

if TYPE_CHECKING:
    from openmodal.web.server import Page

_PERIOD = 4.0


class Images:
    """The feed `images`, and prune."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._feed = Feed(self.look, _PERIOD)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """What would go (GET), and go (POST)."""
        return [Route("/images/prune", self._preview), Route("/images/prune", self._prune, methods=["POST"])]

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """The images, the newest use first."""
        return {"images": self._feed}

    async def look(self) -> Rows:
        """The rows. `own`: the bytes of layers that no other image has."""
        if "images" in self._page.lacks:
            return {}
        images, users = await self._found()
        shared = Counter(layer.key for image in images for layer in image.stack)
        return {image.key: _row(image, users.get(image.key, []), shared) for image in images}

    async def _found(self) -> tuple[list[Built], dict[str, list[str]]]:
        """The images, and the names of the running sandboxes of each."""
        images = await housekeeping.images.aio(engine=self._page.engine)
        users: dict[str, list[str]] = {}
        for sandbox in await Sandbox.list.aio(engine=self._page.engine):
            if status := sandbox.last_status:
                users.setdefault(status.image, []).append(status.name or status.id)
        return images, users

    async def _preview(self, request: Request) -> Response:
        found = await housekeeping.prunable.aio(unused_for=_seconds(request), engine=self._page.engine)
        return JSONResponse({"images": [image.key for image in found.images], "bytes": found.bytes})

    async def _prune(self, request: Request) -> Response:
        caches = request.query_params.get("caches") == "1"
        pruned = await housekeeping.prune.aio(unused_for=_seconds(request), caches=caches, engine=self._page.engine)
        self._feed.look_now()
        return JSONResponse(msgspec.to_builtins(pruned))


def _seconds(request: Request) -> float:
    try:
        return float(request.query_params.get("unused_for", ""))
    except ValueError as error:
        raise InvalidError("unused_for must be a number of seconds") from error


def _row(image: Built, users: Sequence[str], shared: Mapping[str, int]) -> dict[str, Any]:
    stack = [msgspec.to_builtins(layer) | {"images": shared[layer.key]} for layer in image.stack]
    return {
        "id": image.key,
        "size": image.size,
        "own": sum(layer["size"] for layer in stack if layer["images"] == 1) if stack else None,
        "layers": image.layers,
        "used": image.used,
        "step": image.step,
        "expires": image.expires,
        "names": list(image.names),
        "stack": stack,
        "users": list(users),
    }


__all__ = ["Images"]
