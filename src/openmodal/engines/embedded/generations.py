"""What becomes of a running sandbox's files: layers that it has frozen, and going back to them.

A sandbox's files are a stack: its image's layers, then layers of its own, and on top the folder
that is written to. Its supervisor knows its own layers, and does what changes them
(docs/protocol.md, section 3); here is what it is asked for, and what becomes of a layer afterwards.

A layer is in the store before anything stands on it, and its lock is held. So whoever is killed at
any moment leaves a layer that no image has, which `expire` removes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import replace

from openmodal._dual import Blocking, Sleep
from openmodal._spec import Layered, Made
from openmodal._store import make_folder
from openmodal.build.layers import Layers, Meta, size_of
from openmodal.build.locks import Lock, try_lock
from openmodal.engines import asked, checkpoints
from openmodal.engines.book import Book
from openmodal.engines.embedded import launch
from openmodal.engines.embedded.uppers import Uppers
from openmodal.errors import EngineError, InvalidError, NotFoundError, UnsupportedError

MOST_OWN = 32
"""Own layers of a sandbox: each costs every look-up of a missing name about 1 µs."""

_BUSY, _UNSUPPORTED = "busy", "unsupported"


class Now(msgspec.Struct, frozen=True):
    """How a sandbox's files are: the keys of its own layers, the newest first."""

    generation: int
    own: tuple[str, ...]


class Generations:
    """Those of the sandboxes of one store."""

    def __init__(self, book: Book, layers: Layers, uppers: Uppers) -> None:
        self._book = book
        self._layers = layers
        self._uppers = uppers

    def made(self, id: str) -> Made[Layered]:
        """What a sandbox was made of.

        Raises:
            ConnectionError: it is not there any more.
            UnsupportedError: an earlier version has made it.
        """
        if found := self._book.made(id, Layered):
            return found
        if not self._book.alive(id):
            raise ConnectionResetError(f"the sandbox {id} has ended")
        raise UnsupportedError(f"sandbox {id} was created by a version that knows no snapshots; create a new one")

    async def with_environment(self, id: str) -> Made[Layered]:
        """As `made`, with the environment, which only its supervisor knows."""
        found = self.made(id)
        fd = os.memfd_create("environment", os.MFD_CLOEXEC)
        with os.fdopen(fd, "r+b") as file:
            await launch.request(self._book.folder(id), "environment", (fd,))
            file.seek(0)
            entries = file.read().decode("utf-8", "surrogateescape").split("\0")[:-1]
        pairs = ((name, value) for name, _, value in (entry.partition("=") for entry in entries))
        return Made(replace(found.spec, env=asked.without_secrets(found.spec, pairs)), found.root)

    async def now(self, id: str) -> Now:
        """How a sandbox's files are."""
        try:
            said = await launch.request(self._book.folder(id), "layers")
        except EngineError as error:
            if error.aspect != _UNSUPPORTED:
                raise
            return Now(0, ())  # an earlier version's supervisor: it freezes nothing in place
        generation, *paths = said.split("\t")
        return Now(int(generation), tuple(Path(path).parent.name for path in paths))

    # ------------------------------------------------------------------------------------ to freeze

    async def snapshot(self, id: str, expires: float, timeout: float | None) -> str:
        """Make an image of a sandbox's files, which is kept until it expires; its key. Durable."""
        async with self._frozen(id, f"snapshot of {id}", expires, timeout) as root:
            await Blocking(self._settle, root)
        return root.key

    async def checkpoint(self, id: str, expires: float) -> Layered:
        """Freeze a sandbox's files for itself and its forks. Free, if nothing was written since."""
        if self._is_unchanged(id):
            made, now = self.made(id), await self.now(id)
            # What it stands on may be a snapshot, which is kept for a time of its own.
            if not now.own or now.own[0] in checkpoints.of(self._book.folder(id)):
                return _on(made.root, now.own, made.root.key)
        from openmodal.build.names import of_snapshot

        async with self._frozen(id, f"checkpoint of {id}", expires, None) as root:
            self._layers.remember(of_snapshot(root.key, self._layers), root)
            checkpoints.note(self._book.folder(id), root.key)
        return root

    def keep(self, id: str, expires: float) -> None:
        """Keep a sandbox's checkpoints until then at least: its end has moved."""
        keys = checkpoints.of(self._book.folder(id))
        with self._layers.guard("prune") if keys else contextlib.nullcontext():
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    meta = self._layers.meta(key)
                    self._layers.set_meta(key, replace(meta, expires=max(meta.expires, expires)))

    def _is_unchanged(self, id: str) -> bool:
        """Whether nothing was written since the files were frozen."""
        try:
            return not os.listdir(self._uppers.folder(id) / "upper")
        except FileNotFoundError:
            raise ConnectionResetError(f"the sandbox {id} has ended") from None

    @asynccontextmanager
    async def _frozen(self, id: str, title: str, expires: float, timeout: float | None) -> AsyncIterator[Layered]:
        """The files as an image, whose layer is held until the block has given it a name."""
        made, key = self.made(id), os.urandom(32).hex()
        with self._layers.using(key) as held:
            async with self._alone(id) as folder, self._flat(folder, made, await self.now(id)) as own:
                below = (*own, *made.root.layers)
                meta = Meta(below[0], title, expires=expires)
                if not await self._switch(folder, key, meta, own, held):
                    await self._copy(folder, key, meta, timeout)
            yield replace(made.root, key=key, layers=(key, *below))

    async def _switch(self, folder: Path, key: str, meta: Meta, own: Sequence[str], held: Lock) -> bool:
        """Have the written folder become the layer; False if commands run, or it cannot be."""
        with self._layers.scratch() as scratch:
            place = self._layers.place(key)
            self._layers.describe(scratch, meta)
            os.rename(scratch, place)
            try:
                with self._listed(own) as listed:
                    await launch.request(folder, f"switch {place}/root", (listed, held.fd))
            # If we are interrupted, the sandbox may stand on it already: it is left to `expire`.
            except (EngineError, ConnectionError) as error:
                os.rename(place, scratch)
                if isinstance(error, EngineError) and error.aspect in (_BUSY, _UNSUPPORTED):
                    return False
                raise
        return True

    async def _copy(self, folder: Path, key: str, meta: Meta, timeout: float | None) -> None:
        with self._layers.scratch() as scratch:
            await _repeated(folder, f"copy {scratch}/upper", timeout)
            await Blocking(self._layers.publish, scratch / "upper", key, meta)

    @asynccontextmanager
    async def _flat(self, folder: Path, made: Made[Layered], now: Now) -> AsyncIterator[Sequence[str]]:
        """The sandbox's own layers: if they are too many, one that they are copied into. Until the
        next switch, the sandbox stands on the many."""
        if len(now.own) < MOST_OWN:
            yield now.own
            return
        key = os.urandom(32).hex()
        meta = Meta(made.root.layers[0], f"{len(now.own)} checkpoints", expires=time.time())
        with self._layers.using(key), self._layers.scratch() as scratch:
            with self._listed(now.own) as listed:
                await launch.request(folder, f"merge {scratch}/merged", (listed,))
            await Blocking(self._layers.publish, scratch / "merged", key, meta)
            yield (key,)

    def _settle(self, root: Layered) -> None:
        """Give a snapshot its size and its name. It is there after a power cut, too."""
        from openmodal.build.names import of_snapshot

        meta = self._layers.meta(root.key)
        if not meta.size:
            size = size_of(self._layers.folder(root.key))
            self._layers.set_meta(root.key, replace(meta, size=size))
            self._layers.sync()
        name = of_snapshot(root.key, self._layers)
        self._layers.remember(name, root)
        self._layers.sync_names(name)

    def unpacked(self, files: IO[bytes], title: str, expires: float) -> str:
        """Make an image of a tar file; its key. Durable."""
        from openmodal.build.unpack import unpack

        key = os.urandom(32).hex()
        with self._layers.using(key), self._layers.scratch() as scratch:
            upper = make_folder(scratch / "upper")
            unpack(files.read, upper, os.fstat(files.fileno()).st_size)
            self._layers.publish(upper, key, Meta("", title, expires=expires))
            self._settle(Layered(key, layers=(key,)))
        return key

    # ----------------------------------------------------------------------------------- to go back

    async def reset(self, id: str, to: Layered | None) -> int:
        """Start a sandbox anew on its image's layers, or on those of a checkpoint of its own;
        return the generation that begins.

        Raises:
            InvalidError: the checkpoint is of another sandbox.
            NotFoundError: the checkpoint is not there any more.
        """
        made = self.made(id)
        own = _own(made.root, to) if to else ()
        async with self._alone(id) as folder:
            with contextlib.ExitStack() as stack:
                fds = [stack.enter_context(self._listed(own))]
                if own and to:
                    fds.append(stack.enter_context(self._hold(to)).fd)
                await _repeated(folder, "reset", None, fds)
            return (await self.now(id)).generation

    async def mount(self, id: str, path: str, image: Layered) -> None:
        """Show an image's files in a folder of a running sandbox, which can write there."""
        async with self._alone(id) as folder:
            with self._listed(image.layers) as listed, self._hold(image) as held:
                await _repeated(folder, f"mount {path}", None, (listed, held.fd))

    async def unmount(self, id: str, path: str) -> None:
        """Take away what `mount` has shown there, and what was written to it."""
        async with self._alone(id) as folder:
            await _repeated(folder, f"unmount {path}", None)

    # ----------------------------------------------------------------------------------- in the end

    def drop(self, keys: Sequence[str]) -> None:
        """Remove the checkpoints of a sandbox that has ended, but for those that forks stand on."""
        from openmodal.build import prune

        prune.drop(self._layers, keys)

    # --------------------------------------------------------------------------------------- inside

    def _hold(self, root: Layered) -> Lock:
        if held := self._layers.hold(root):
            return held
        raise NotFoundError("these files are not kept any more: they have expired, or were removed")

    @contextmanager
    def _listed(self, keys: Iterable[str]) -> Iterator[int]:
        """A descriptor that tells the supervisor of layers."""
        fd = os.memfd_create("layers", os.MFD_CLOEXEC)
        try:
            os.write(fd, b"".join(os.fsencode(self._layers.root(key)) + b"\0" for key in keys))
            os.lseek(fd, 0, os.SEEK_SET)
            yield fd
        finally:
            os.close(fd)

    @asynccontextmanager
    async def _alone(self, id: str) -> AsyncIterator[Path]:
        """Nobody else changes the sandbox's layers meanwhile. Another task of this thread may be
        the one that does, so the lock is not waited for in the kernel."""
        folder = self._book.folder(id)
        try:
            while not (held := try_lock(folder / "changes")):
                await Sleep(0.002)
        except FileNotFoundError:
            raise ConnectionResetError(f"the sandbox {id} has ended") from None
        with held:
            yield folder


def _on(root: Layered, own: Sequence[str], key: str) -> Layered:
    """An image with a sandbox's own layers on top."""
    return replace(root, key=own[0] if own else key, layers=(*own, *root.layers))


def _own(base: Layered, to: Layered) -> tuple[str, ...]:
    """The layers that a checkpoint has on top of its sandbox's image."""
    count = len(to.layers) - len(base.layers)
    if count < 0 or to.layers[count:] != base.layers:
        raise InvalidError("this checkpoint is of another sandbox; reset(to=…) takes one of the sandbox's own")
    return to.layers[:count]


async def _repeated(folder: Path, line: str, timeout: float | None, fds: Sequence[int] = ()) -> str:
    """Ask a supervisor, and again while it still does what a killed process has asked it for."""
    while True:
        try:
            return await launch.request(folder, line, fds, timeout)
        except EngineError as error:
            if error.aspect != _BUSY:
                raise
        await Sleep(0.01)
