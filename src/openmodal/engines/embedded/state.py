"""Images: of a running sandbox's files, and going back to them; names; which there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from openmodal import _args
from openmodal._dual import Blocking
from openmodal._spec import Built, BuiltStep, Layered, Made, Root
from openmodal.build.layers import Layers
from openmodal.engines import asked
from openmodal.engines.book import Book
from openmodal.engines.contract import Engine
from openmodal.engines.embedded.generations import Generations

if TYPE_CHECKING:
    from openmodal.build.prune import Pruned


class State(Engine):
    """The verbs of the embedded engine for it."""

    _book: Book
    _layers: Layers
    _generations: Generations

    async def made(self, id: str) -> Made[Layered]:
        return await self._generations.with_environment(id)

    async def snapshot(self, id: str, expires: float, timeout: float | None = None) -> str:
        return await self._generations.snapshot(id, expires, timeout)

    async def import_files(self, files: IO[bytes], title: str, expires: float) -> str:
        self._book.prepare()
        key: str = await Blocking(self._generations.unpacked, files, title, expires)
        return key

    async def checkpoint(self, id: str) -> Layered:
        return await self._generations.checkpoint(id, (await self.inspect(id)).expires)

    async def reset(self, id: str, to: Root | None) -> int:
        return await self._generations.reset(id, asked.prepared(to, Layered) if to else None)

    async def mount(self, id: str, path: str, root: Root) -> None:
        await self._generations.mount(id, path, asked.prepared(root, Layered))

    async def unmount(self, id: str, path: str) -> None:
        await self._generations.unmount(id, path)

    async def publish(self, name: str, root: Root) -> str:
        from openmodal.build import published

        await Blocking(published.publish, self._layers, name, asked.prepared(root, Layered))
        return root.key

    async def published(self) -> Mapping[str, str]:
        from openmodal.build import published

        return published.names(self._layers)

    async def unpublish(self, name: str) -> bool:
        from openmodal.build import published

        return published.delete(self._layers, name)

    def images(self) -> Sequence[Built]:
        """The images that are built."""
        from openmodal.build.prune import images

        return images(self._layers)

    def history(self, key: str) -> Sequence[BuiltStep]:
        """The steps of an image that is built, the last one first."""
        from openmodal.build.prune import history

        return history(self._layers, key)

    def prune(self, *, unused_for: float = 0.0, caches: bool = False) -> Pruned:
        """Remove images that were not used for so many seconds. What running sandboxes stand on stays."""
        from openmodal.build.prune import prune

        return prune(self._layers, unused_for=_args.age("unused_for", unused_for), caches=caches)
