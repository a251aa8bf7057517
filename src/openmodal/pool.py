"""Pool: sandboxes kept ready, so that one is there at once."""

from __future__ import annotations

from collections.abc import Iterable

from openmodal import _args
from openmodal._dual import dual
from openmodal._spec import PoolStatus, Resources
from openmodal.engines import Engine, choose, require
from openmodal.errors import NotFoundError
from openmodal.image import Image, ready


class Pool:
    """So many sandboxes of one image kept ready on a cluster.

    `Sandbox.create` takes one where image, cpu, memory and disk are the same, and the cluster makes
    another in its place. A sandbox that came from a pool is like any other.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self._engine = engine

    @dual
    @classmethod
    async def create(
        cls,
        name: str,
        *,
        image: Image,
        size: int,
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        engine: str | Engine | None = None,
    ) -> Pool:
        """Create a pool; it fills by itself.

        Args:
            name: unique among your pools.
            image: of its sandboxes.
            size: how many are kept ready.
            cpu, memory, disk: limits, as in `Sandbox.create`.
            engine: as in `Sandbox.create`.

        Raises:
            AlreadyExistsError: there is a pool of that name.
            UnsupportedError: the engine keeps no pools; Kubernetes does.
        """
        size = _args.whole("size", size, 1, 10_000)
        pooling = _pooling(engine)
        name = _args.name("name", name)
        resources = Resources(
            cpu=_args.cores(cpu),
            memory=_args.mebibytes("memory", memory, 16),
            disk=_args.mebibytes("disk", disk, 16),
        )
        root = await ready(image, pooling)
        await pooling.create_pool(name, root, resources, size)
        return cls(name, pooling)

    @dual
    @classmethod
    async def list(cls, *, engine: str | Engine | None = None) -> Iterable[PoolStatus]:
        """Tell of every pool: its name, image, size, and how many sandboxes are ready."""
        return await _pooling(engine).pools()

    @dual
    async def status(self) -> PoolStatus:
        """Tell how it is.

        Raises:
            NotFoundError: it was deleted.
        """
        for status in await self._engine.pools():
            if status.name == self.name:
                return status
        raise NotFoundError(f"there is no pool {self.name!r}; `openmodal pool list` shows which there are")

    @dual
    async def delete(self) -> None:
        """Delete it. Sandboxes that came from it run on.

        Raises:
            NotFoundError: it was deleted already.
        """
        await self._engine.delete_pool(self.name)

    @classmethod
    def of(cls, name: str, *, engine: str | Engine | None = None) -> Pool:
        """The pool of that name; that there is one is found out when it is used."""
        return cls(_args.name("name", name), _pooling(engine))

    def __repr__(self) -> str:
        return f"<Pool {self.name} ({self._engine.name})>"


def _pooling(engine: str | Engine | None) -> Engine:
    chosen = choose(engine)
    require(chosen, "pools")
    return chosen


__all__ = ["Pool"]
