"""The verbs of the Docker engine that keep a container's files: snapshots, checkpoints, names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, TypeVar

from openmodal._dual import Blocking, Sleep
from openmodal._spec import Made, Network, Referenced, Root
from openmodal.build.layers import Layers
from openmodal.build.locks import Lock, lock_folder
from openmodal.engines import asked, checkpoints
from openmodal.engines.book import Book
from openmodal.engines.compared import Compared
from openmodal.engines.docker import generations, links
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.host import Host
from openmodal.errors import UnsupportedError

T = TypeVar("T")


class Stateful(Compared):
    """What a container's files were."""

    _book: Book
    _layers: Layers
    _daemon: Daemon
    _program = links.AGENT
    _quickest = Network(block=True)

    async def made(self, id: str) -> Made[Referenced]:
        if (await self.inspect(id)).ended:
            raise ConnectionResetError(f"the sandbox {id} has ended")
        if found := self._book.made(id, Referenced):
            return found
        raise UnsupportedError(
            f"what {id} was made of is known only to the machine, and the version, that created it; create a new one"
        )

    async def _image(self, id: str) -> Referenced:
        return (await self.made(id)).root

    async def snapshot(self, id: str, expires: float, timeout: float | None = None) -> str:
        key, _ = await self._commit(id, expires, timeout)
        await Blocking(self._settle)
        return key

    async def import_files(self, files: IO[bytes], title: str, expires: float) -> str:
        key: str = await Blocking(self._asked, generations.unpacked, self._layers, files, expires)
        await Blocking(self._settle)
        return key

    def _settle(self) -> None:
        host = Host.lately(self._daemon)
        if host.is_here:
            generations.settle(str(host.info.get("DockerRootDir")))

    async def checkpoint(self, id: str) -> Referenced:
        key, root = await self._commit(id, (await self.inspect(id)).expires, None)
        checkpoints.note(self._book.folder(id), key)
        return root

    async def _commit(self, id: str, expires: float, timeout: float | None) -> tuple[str, Referenced]:
        root = await self._image(id)
        # While it is reset there is no container, or one that has not begun.
        with await self._alone(id):
            found: tuple[str, Referenced] = await Blocking(
                generations.commit, self._daemon, self._layers, id, root, expires, timeout
            )
        return found

    async def _mine(self, id: str, what: str) -> Lock:
        """Nobody resets the sandbox until the lock is closed.

        Raises:
            UnsupportedError: it was created by another machine.
            ConnectionError: it has ended.
        """
        if (await self.inspect(id)).ended:
            raise ConnectionResetError(f"the sandbox {id} has ended")
        if not self._book.folder(id).exists():
            raise UnsupportedError(f"{what} of {id} can be changed on the machine that created it only")
        return await self._alone(id)

    async def _alone(self, id: str) -> Lock:
        """Nobody else resets the sandbox until the lock is closed; and it counts as running, also
        while it has no container."""
        folder = self._book.folder(id)
        while not (held := lock_folder(folder)):
            if not folder.exists():
                raise ConnectionResetError(f"the sandbox {id} has ended")
            await Sleep(0.01)
        return held

    async def publish(self, name: str, root: Root) -> str:
        image = asked.prepared(root, Referenced)
        key: str = await Blocking(self._asked, generations.publish, self._layers, name, image)
        return key

    async def published(self) -> Mapping[str, str]:
        found: dict[str, str] = await Blocking(self._asked, generations.published)
        return found

    async def unpublish(self, name: str) -> bool:
        was: bool = await Blocking(self._asked, generations.unpublish, name)
        return was

    def _asked(self, function: Callable[..., T], *arguments: object) -> T:
        with self._daemon.open() as api:
            return function(api, *arguments)
