"""The state of a sandbox's files: snapshots, checkpoints, forks, resets."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Self

import msgspec
from msgspec.structs import replace

from openmodal import _args
from openmodal._dual import Together, dual
from openmodal._options import environment
from openmodal._spec import Root, SandboxSpec
from openmodal.engines import Created, require
from openmodal.engines.contract import FOREVER, MONTH
from openmodal.errors import InvalidError, NotFoundError, SandboxNotRunningError, file_error
from openmodal.image import Image, ready, snapshot
from openmodal.sandbox.handle import Handle
from openmodal.secret import Secret

_MOST_FORKS = 1000


class Checkpoint(msgspec.Struct, frozen=True):
    """The files of a sandbox as they were, for `reset` and as long as the sandbox lives."""

    sandbox_id: str
    root: Root


class State(Handle):
    """What a sandbox's files were, and going on from there. Files only: no processes, nothing in
    memory such as /dev/shm, no volumes."""

    @dual
    async def snapshot_filesystem(self, timeout: float | None = None, *, ttl: float | None = MONTH) -> Image:
        """Make an image of its files, for other sandboxes and as what other images begin with.

        When it returns the image is there, after a power cut, too. The sandbox goes on; if
        commands run in it, they are stopped while their files are copied, and the files are as a
        power cut would leave them.

        Args:
            timeout: seconds that it may take; None: any number.
            ttl: seconds until the image expires. None: never; then remove it with
                `openmodal image prune` after `Image.delete` of what it is published as.

        Raises:
            TimeoutError, DiskFullError: there is no image.
            SandboxNotRunningError: it has ended, perhaps meanwhile; there is no image.
            UnsupportedError: the engine takes no snapshots.
        """
        require(self._engine, "snapshot")
        expires = _expires(ttl)
        async with self._while_it_runs("snapshot_filesystem"):
            key = await self._engine.snapshot(self._id, expires, _args.optional_seconds("timeout", timeout))
        return snapshot(key)

    @dual
    async def snapshot_directory(self, path: str, *, ttl: float | None = MONTH) -> Image:
        """Make an image whose root is a folder of its files: for `mount_image`, or as what other
        images begin with. It has no settings, such as variables. What runs in the sandbox goes on
        meanwhile, and hard links become files of their own.

        Args:
            path: the folder.
            ttl: as in `snapshot_filesystem`.

        Raises:
            SandboxFilesystemError: it is no folder, or has more than 16 GiB.
            DiskFullError, SandboxNotRunningError, UnsupportedError: as `snapshot_filesystem`.
        """
        import tempfile

        from openmodal._packed import Packer
        from openmodal.filesystem import Filesystem

        require(self._engine, "snapshot")
        expires = _expires(ttl)
        files = Filesystem(self._agent)
        if not (await files._stat(path, follow=True)).is_dir:
            raise file_error(errno.ENOTDIR, path)
        with tempfile.TemporaryFile() as packed:
            await files._pull(path, lambda: Packer(packed, path))
            key = await self._engine.import_files(packed, f"{path} of {self._id}", expires)
        return snapshot(key)

    @dual
    async def checkpoint(self) -> Checkpoint:
        """Keep its files as they are now, to `reset` it to them. Costs little, and nothing if
        nothing was written since the last one.

        Raises:
            DiskFullError, SandboxNotRunningError, UnsupportedError: as `snapshot_filesystem`.
        """
        require(self._engine, "checkpoint")
        async with self._while_it_runs("checkpoint"):
            return Checkpoint(self._id, await self._engine.checkpoint(self._id))

    @dual
    async def fork(
        self,
        n: int = 1,
        *,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        timeout: float | None = None,
    ) -> list[Self]:
        """Create sandboxes that go on from its files, all or none of them.

        Each has its limits, network policy, environment and main command, but an id and processes
        of its own. Secrets are not passed on: give them here.

        Args:
            n: how many.
            name: a name for one, of which several get "<name>-1" and so on.
            tags: labels; None: its own.
            secrets: variables of every command.
            timeout: the lifetime of each in seconds; None: what it was created with.

        Raises:
            AlreadyExistsError: a name is taken; there is no fork.
            DiskFullError, SandboxNotRunningError, UnsupportedError: as `snapshot_filesystem`.
        """
        require(self._engine, "fork")
        n = _args.whole("n", n, 1, _MOST_FORKS)
        names = _names(None if name is None else _args.name("name", name), n)
        given, checked = environment(None, secrets), None if tags is None else _args.tags(tags)
        lifetime = _args.optional_seconds("timeout", timeout)
        async with self._while_it_runs("fork", detail=f"into {n}"):
            made = await self._engine.made(self._id)
            root = await self._engine.checkpoint(self._id)
        spec: SandboxSpec = made.spec
        own = [pair for pair in spec.env if pair not in root.env]
        spec = replace(
            spec,
            tags=(await self._look()).tags if checked is None else checked,
            # What it was created with beats the given, and both beat the image's.
            env=tuple({**dict(root.env), **dict(given), **dict(own)}.items()),
            secrets=tuple(name for name, _ in given),
            timeout=spec.timeout if lifetime is None else lifetime,
            snapshot_on_end="",  # the image of that name is its parent's
        )
        return await self._forks([replace(spec, name=each) for each in names], root)

    async def _forks(self, specs: list[SandboxSpec], root: Root) -> list[Self]:
        """Create them side by side; if one fails, or we are interrupted, end the others."""
        forks: dict[int, Self] = {}

        async def make(number: int) -> None:
            at = time.time()
            made = await self._engine.create(specs[number], root)
            first = made.first if isinstance(made, Created) else None
            forks[number] = type(self)(made.id if isinstance(made, Created) else made, self._engine, first)
            forks[number]._note_creation(at, specs[number], f"a fork of {self._id}")

        numbers = range(len(specs))
        try:
            for error in await Together(map(make, numbers)):
                if error:
                    raise error
        except BaseException:
            for fork in forks.values():
                await fork._close()
            raise
        return [forks[number] for number in numbers]

    @dual
    async def reset(self, to: Checkpoint | None = None) -> int:
        """Make it as it was created, or its files as they were at a checkpoint of its own.

        All processes end, and everything but its id, name, tags, deadline and limits is new; its
        main command begins again. Handles of earlier commands raise SandboxResetError. Returns
        the new generation, as `info` tells it.

        Args:
            to: what `checkpoint` returned; None: as it was created.

        Raises:
            InvalidError: the checkpoint is of another sandbox; nothing was done.
            NotFoundError: the checkpoint is not there any more; nothing was done.
            SandboxNotRunningError: it has ended.
            EngineError: it could not be started again, and has ended.
        """
        require(self._engine, "reset")
        if to is not None and (not isinstance(to, Checkpoint) or to.sandbox_id != self._id):
            raise InvalidError(f"reset() takes a checkpoint of sandbox {self._id}; make one with its checkpoint()")
        async with self._while_it_runs("reset", detail="to a checkpoint" if to else ""):
            generation = await self._engine.reset(self._id, to.root if to else None)
        self._renew()
        return generation

    @dual
    async def mount_image(self, path: str, image: Image) -> None:
        """Show an image's files in a folder of it while it runs, such as one of
        `snapshot_directory`. What is written there belongs to the mount, not to the image, and goes
        with it. Snapshots and forks do not have it, and a reset takes it away.

        Args:
            path: the folder, which is made if it is not there. It must not be mounted on already.
            image: the image; it is made if it is not there.

        Raises:
            InvalidError: an argument is wrong.
            EngineError: it cannot be mounted there; nothing was done.
            ImageError, SandboxNotRunningError, UnsupportedError: nothing was done.
        """
        require(self._engine, "mount_image")
        path = _args.absolute("path", path)
        if not isinstance(image, Image):
            raise InvalidError(f"image must be an openmodal.Image, not {type(image).__name__}")
        root = await ready(image, self._engine)
        async with self._while_it_runs("mount_image", path=path):
            await self._engine.mount(self._id, path, root)

    @dual
    async def unmount_image(self, path: str) -> None:
        """Take away what `mount_image` shows in the folder `path`, and what was written there.

        Raises:
            EngineError: nothing is mounted there, or another image in a folder of it.
            SandboxNotRunningError, UnsupportedError: as `mount_image`.
        """
        require(self._engine, "mount_image")
        path = _args.absolute("path", path)
        async with self._while_it_runs("unmount_image", path=path):
            await self._engine.unmount(self._id, path)

    @asynccontextmanager
    async def _while_it_runs(self, call: str, **what: str) -> AsyncIterator[None]:
        """Say why it has ended, if that is why something failed; note it as that call."""
        try:
            with self._journal.call(call, **what):
                yield
        except ConnectionError as error:
            await self._why(error)
            raise SandboxNotRunningError(f"sandbox {self._id} is just ending") from error
        except NotFoundError:
            await self._look()
            raise


def _expires(ttl: float | None) -> float:
    return FOREVER if ttl is None else time.time() + _args.seconds("ttl", ttl)


def _names(name: str | None, count: int) -> list[str]:
    if name is None:
        return [""] * count
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
