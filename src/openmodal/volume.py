"""Volume: a folder that outlives sandboxes and that many of them share; HostDirectory: a folder of
this machine.

The methods for files never open a volume here, for hostile code wrote what is in it: they ask the
agent of a short-lived box that has nothing but the volume.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from openmodal import _args, _config, _planted
from openmodal._dual import DualContext, DualIterator, dual, run_async, run_sync
from openmodal._spec import Mount, VolumeInfo
from openmodal._store import Store
from openmodal._volumebox import PLACE, Pieces, box, inside, is_folder, listed, put, read_into
from openmodal.engines import Engine, choose, ephemeral, require
from openmodal.errors import InvalidError, NotFoundError, SandboxPathAlreadyExistsError
from openmodal.filesystem import COPY_MOST, FileInfo, Filesystem


class Volume:
    """A folder with a name, that sandboxes mount (`volumes=`) and that outlives them.

    What one sandbox has written, others see at the latest after its `commit`, or its end, and their
    `reload`; of two who write one file, the last one wins. Devices and set-user-ID programs in it
    do nothing. No snapshot has it, and no limit `disk` counts it.
    """

    def __init__(
        self,
        name: str,
        engine: str | Engine | None = None,
        *,
        create_if_missing: bool = False,
        read_only: bool = False,
        sub_path: str = "",
    ) -> None:
        self.name = name
        self._engine = engine
        self._create = create_if_missing
        self._read_only = read_only
        self._sub_path = sub_path

    # ------------------------------------------------------------------------------ make and find

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False, engine: str | Engine | None = None) -> Volume:
        """The volume of that name. That there is one is found out when it is used.

        Args:
            name: unique among your volumes of the engine.
            create_if_missing: its first use makes it.
            engine: as in `Sandbox.create`. A sandbox mounts the volume of that name of its own
                engine, and refuses one of another.
        """
        if _args.name("name", name).startswith(ephemeral.PREFIX):
            raise InvalidError(f"the volume's name cannot begin with {ephemeral.PREFIX!r}; choose another")
        return Volume(name, engine, create_if_missing=create_if_missing)

    @classmethod
    def ephemeral(cls, *, engine: str | Engine | None = None) -> EphemeralVolume:
        """A volume for a `with` block: it is made at its begin and deleted at its end.

        Sandboxes that still have it mounted at the end of the block are a VolumeInUseError. If this
        process is killed, `openmodal gc` deletes it.
        """
        return EphemeralVolume(engine)

    @dual
    @classmethod
    async def list(cls, *, engine: str | Engine | None = None) -> builtins.list[VolumeInfo]:
        """Return the volumes, by name; ephemeral ones are not among them."""
        chosen = _keeping(engine)
        return [found for found in await chosen.volumes() if not found.name.startswith(ephemeral.PREFIX)]

    @dual
    @classmethod
    async def delete(cls, name: str, *, engine: str | Engine | None = None) -> None:
        """Delete a volume and all that is in it.

        Raises:
            NotFoundError: there is none of that name.
            VolumeInUseError: a running sandbox has it mounted.
        """
        await _keeping(engine).delete_volume(_args.name("name", name))

    @dual
    @classmethod
    async def rename(cls, old_name: str, new_name: str, *, engine: str | Engine | None = None) -> None:
        """Give the volume `old_name` the name `new_name`.

        Raises:
            NotFoundError, VolumeInUseError: as `delete`.
            AlreadyExistsError: there is one of the new name.
        """
        chosen = _keeping(engine)
        require(chosen, "volume_rename")
        new = Volume.from_name(new_name).name
        await chosen.rename_volume(_args.name("old_name", old_name), new)

    # --------------------------------------------------------------------------- how it is mounted

    def read_only(self) -> Volume:
        """The same volume, which sandboxes cannot write to."""
        return self.with_mount_options(read_only=True)

    def with_mount_options(self, *, read_only: bool | None = None, sub_path: str | None = None) -> Volume:
        """The same volume, mounted in another way.

        Args:
            read_only: whether sandboxes cannot write to it.
            sub_path: the folder in it that they see, instead of all; made if it is missing and may
                be written to. Neither ".." nor a link leads out of it. The methods for files do not
                heed it.
        """
        return Volume(
            self.name,
            self._engine,
            create_if_missing=self._create,
            read_only=self._read_only if read_only is None else bool(read_only),
            sub_path=self._sub_path if sub_path is None else _sub_path(sub_path),
        )

    def mount(self, target: str) -> Mount:
        """What a sandbox is asked for that mounts it."""
        return Mount(target, volume=self.name, sub_path=self._sub_path, read_only=self._read_only, create=self._create)

    @dual
    async def commit(self) -> None:
        """Return when what was written to it is seen by all who `reload`, and is on the disk.

        Raises:
            NotFoundError: there is no such volume.
        """
        await (await self._found()).commit_volume(self.name)

    @dual
    async def reload(self) -> None:
        """See what others have committed; with the engines of this package all see it at once.

        Raises:
            NotFoundError: there is no such volume.
        """
        chosen = await self._found()
        if not any(found.name == self.name for found in await chosen.volumes()):
            raise NotFoundError(f"there is no volume {self.name!r}; `openmodal volume list` shows which there are")

    # ---------------------------------------------------------------------------------------- files

    @dual
    async def listdir(self, path: str = "/", *, recursive: bool = False) -> builtins.list[FileInfo]:
        """Return what is in a folder of it, sorted by path, with `recursive` also below; of a file:
        itself.

        Raises:
            SandboxFileTooLargeError: there are more than 500,000 entries.
        """
        async with self._files() as files:
            return await listed(files, inside(path), recursive=recursive)

    def iterdir(self, path: str = "/", *, recursive: bool = True) -> Entries:
        """What is in a folder of it, with `recursive` also below, one by one: `for`, or
        `async for`."""
        return Entries(self, path, recursive=recursive)

    def read_file(self, path: str, *, max_bytes: int | None = COPY_MOST) -> Pieces:
        """The bytes of a file, in pieces: `b"".join(volume.read_file("a"))`, or `async for`.

        All of it is kept in a temporary file until you have read it; holes stay holes there.

        Args:
            path: the file.
            max_bytes: as much as is read here at most, holes counted; by default 16 GiB. None:
                whatever there is.

        Raises:
            SandboxFileTooLargeError: it has more than `max_bytes`; nothing is left of it.
            DiskFullError: the disk that temporary files are on is full.
        """
        return Pieces(self._files, inside(path), _args.optional_count("max_bytes", max_bytes))

    @dual
    async def read_file_into_fileobj(self, path: str, fileobj: IO[bytes], *, max_bytes: int | None = COPY_MOST) -> int:
        """Write the bytes of a file into `fileobj`, a file of yours; return how many there were.

        Args:
            path: the file.
            fileobj: what is written to, from where it stands.
            max_bytes: as `read_file`.

        Raises:
            SandboxFileTooLargeError: it has more than `max_bytes`; nothing was written, unless it
                grew meanwhile.
        """
        async with self._files() as files:
            return await read_into(files, inside(path), fileobj.write, _args.optional_count("max_bytes", max_bytes))

    @dual
    async def copy_to_local(
        self, path: str, local: str | os.PathLike[str], *, max_bytes: int | None = COPY_MOST
    ) -> None:
        """Copy a file or folder of it to this machine, as `Filesystem.copy_to_local` does, with
        `max_bytes` as there."""
        async with self._files() as files:
            await files.copy_to_local.core(inside(path), local, max_bytes=max_bytes)

    @dual
    async def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file or an empty folder; `recursive`: also what is in a folder."""
        async with self._files(writing=True) as files:
            await files.remove.core(inside(path), recursive=recursive)

    @dual
    async def copy_files(self, src_paths: Sequence[str], dst_path: str, recursive: bool = False) -> None:
        """Copy files within it, as `cp` does: into a folder that is there, else as that name.

        Args:
            src_paths: files; with `recursive`, also folders.
            dst_path: a folder if there are several.
            recursive: whether folders are copied, with what is in them.
        """
        if isinstance(src_paths, str):
            raise InvalidError(f"src_paths must be a list of paths, not a string; put {src_paths!r} into [ ]")
        sources, target = [inside(path) for path in src_paths], inside(dst_path)
        async with self._files(writing=True) as files:
            into = await is_folder(files, target)
            if len(sources) > 1 and not into:
                raise InvalidError(f"{dst_path!r} is no folder of the volume, so only one file can be copied to it")
            for source in sources:
                if not recursive and await is_folder(files, source):
                    raise InvalidError(f"{source!r} is a folder; say recursive=True to copy what is in it")
                await files._duplicate(source, posixpath.join(target, posixpath.basename(source)) if into else target)

    def batch_upload(self, force: bool = False) -> VolumeUpload:
        """A `with` block in which files of this machine are named; at its end all are copied.

        Args:
            force: whether over files that are there.
        """
        return VolumeUpload(self, force=force)

    @contextlib.asynccontextmanager
    async def _files(self, *, writing: bool = False) -> AsyncIterator[Filesystem]:
        """Its files, in a box that has nothing else. Paths are relative to it."""
        if writing and self._read_only:
            raise InvalidError(f"this is the volume {self.name!r} as read_only() gives it; take the volume itself")
        chosen = await self._found()
        mount = Mount(PLACE, volume=self.name, read_only=not writing)
        async with box(chosen, mount) as files:
            yield files

    async def _found(self) -> Engine:
        """The engine that has it; made there, if that was asked for."""
        chosen = _keeping(self._engine)
        if self._create:
            await chosen.make_volume(self.name)
        return chosen

    def __repr__(self) -> str:
        options = (", read_only" if self._read_only else "") + (f", {self._sub_path}" if self._sub_path else "")
        return f"<Volume {self.name}{options}>"


def _state(engine: Engine) -> Path:
    """Where that engine's `gc` looks whether an ephemeral volume is in use."""
    store = getattr(engine, "store", None)
    return store.state if isinstance(store, Store) else _config.state()


class EphemeralVolume(Volume, DualContext):
    """A volume for a `with` block (`Volume.ephemeral`)."""

    def __init__(self, engine: str | Engine | None) -> None:
        super().__init__(ephemeral.new_name(), engine)
        self._held: Any = None

    async def _open(self) -> None:
        chosen = _keeping(self._engine)
        self._held = ephemeral.hold(_state(chosen), self.name)
        try:
            await chosen.make_volume(self.name)
        except BaseException:
            ephemeral.release(_state(chosen), self.name, self._held)
            raise

    async def _close(self) -> None:
        chosen = _keeping(self._engine)
        with contextlib.suppress(NotFoundError):
            await chosen.delete_volume(self.name)
        ephemeral.release(_state(chosen), self.name, self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied it is the same volume; the block stays here."""
        return Volume, (self.name, self._engine)


class HostDirectory:
    """A folder of this machine, that a sandbox sees (`volumes={"/src": HostDirectory("./src")}`).

    In the sandbox its owner is root, who alone may change what is in it. What is mounted below it
    is not shown.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = True, *, owner: str | None = None) -> None:
        """
        Args:
            path: the folder. A link is followed now, unless a sandbox made it.
            read_only: whether the sandbox cannot write to it.
            owner: "root", if root's own folder is to be written to: what runs in the sandbox can
                then leave set-user-ID programs of root's in it.
        """
        if owner not in (None, "root"):
            raise InvalidError(f"owner can be 'root' only, for a folder of root's, not {owner!r}; leave it out")
        named = _args.string("path", os.fspath(path))
        _planted.refuse(Path(named))
        self.path = os.path.realpath(named)
        self._read_only = bool(read_only)
        self._owner = owner or ""

    def mount(self, target: str) -> Mount:
        """What a sandbox is asked for that sees it."""
        if not self._read_only:
            _planted.note(self.path)
        return Mount(target, host=no_tab("path", self.path), read_only=self._read_only, owner=self._owner)

    def __repr__(self) -> str:
        return f"<HostDirectory {self.path}{', read_only' if self._read_only else ''}>"


class VolumeUpload:
    """What is copied to a volume at the end of the `with` block; nothing, if the block fails."""

    def __init__(self, volume: Volume, *, force: bool) -> None:
        self._volume = volume
        self._force = force
        self._queue: list[tuple[Path | IO[bytes], str, int | None]] = []

    def put_file(
        self, local_file: str | os.PathLike[str] | IO[bytes], remote_path: str, mode: int | None = None
    ) -> None:
        """Copy `local_file`, a path or an open file, to `remote_path`. `mode`: its permission bits."""
        if isinstance(local_file, str | os.PathLike):
            if not os.path.isfile(local_file):
                raise InvalidError(f"{os.fspath(local_file)!r} is no file; put_directory copies folders")
            self._queue.append((Path(local_file), inside(remote_path), mode))
        elif hasattr(local_file, "read"):
            self._queue.append((local_file, inside(remote_path), mode))
        else:
            raise InvalidError(f"local_file must be a path or an open file, not {type(local_file).__name__}")

    def put_directory(self, local_path: str | os.PathLike[str], remote_path: str, recursive: bool = True) -> None:
        """Copy what is in the folder `local_path` to `remote_path`; `recursive=False`: its files only."""
        folder = Path(local_path)
        if not folder.is_dir():
            raise InvalidError(f"{os.fspath(folder)!r} is no folder; put_file copies files")
        if recursive:
            self._queue.append((folder, inside(remote_path), None))
            return
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.is_symlink():
                self.put_file(file, f"{remote_path}/{file.name}")

    async def _copy(self) -> None:
        if not self._queue:
            return
        async with self._volume._files(writing=True) as files:
            for source, target, _ in () if self._force else self._queue:
                if not (isinstance(source, Path) and source.is_dir()) and await files.exists.core(target):
                    raise SandboxPathAlreadyExistsError(
                        errno.EEXIST, "there is a file of that name in the volume; say batch_upload(force=True)", target
                    )
            for source, target, mode in self._queue:
                await put(files, source, target, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            run_sync(self._copy())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await run_async(self._copy())


class Entries(DualIterator[FileInfo]):
    """Files and folders of a volume, one by one."""

    def __init__(self, volume: Volume, path: str, *, recursive: bool) -> None:
        self._volume, self._path, self._recursive = volume, path, recursive
        self._left: list[FileInfo] | None = None

    async def _next(self) -> FileInfo:
        if self._left is None:
            found = await self._volume.listdir.core(self._path, recursive=self._recursive)
            self._left = found[::-1]
        if not self._left:
            raise EOFError
        return self._left.pop()


# ------------------------------------------------------------------------------------- arguments


def _keeping(engine: str | Engine | None) -> Engine:
    chosen = choose(engine)
    require(chosen, "volumes")
    return chosen


def _sub_path(value: object) -> str:
    """A folder in a volume, in its canonical form."""
    text = no_tab("sub_path", _args.path("sub_path", value))
    if ".." in text.split("/"):
        raise InvalidError(f"sub_path cannot be {text!r}; write a path in the volume, without '..'")
    return posixpath.normpath(f"/{text.lstrip('/')}")[1:]


def no_tab(argument: str, text: str) -> str:
    """A path without the character that a plan has between two."""
    if "\t" in text:
        raise InvalidError(f"{argument} {text!r} has a tab in it, which no mount can; give the folder another name")
    return text


__all__ = ["EphemeralVolume", "HostDirectory", "Volume", "VolumeUpload"]
