"""The volumes of the embedded engine: folders, mounted into sandboxes with the ids of each.

    <state>/volumes/            0700: what a sandbox's root leaves in one is for no other user
    <state>/volumes/<name>/     locked, shared, by the supervisor of each sandbox that sees it
    <state>/volumes/<name>/data what sandboxes see

What is in `data` was written by hostile hands: nothing here opens it. Names that begin with a dot
are volumes that are being made or removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from openmodal import _trash
from openmodal._files import made, within
from openmodal._spec import Mount, VolumeInfo
from openmodal._store import make_folder
from openmodal.build.layers import sync_file_system
from openmodal.build.locks import lock_folder
from openmodal.engines import ephemeral, folders
from openmodal.engines.embedded import plan
from openmodal.errors import AlreadyExistsError, NotFoundError, VolumeInUseError

_PATIENCE = 1.0  # seconds that what serves a sandbox may outlive it


class Volumes:
    """Those of one state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path = within(state, "volumes")

    def make(self, name: str) -> None:
        """Make a volume, if there is none of that name."""
        folder = self._made() / name
        if folder.is_dir():
            return
        new = folder.with_name(f".{name}.{os.urandom(8).hex()}")
        new.mkdir(mode=0o700)
        make_folder(new / "data")
        try:
            new.rename(folder)
        except OSError as error:  # somebody else was faster
            _trash.remove(new)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def all(self) -> Sequence[VolumeInfo]:
        """All of them, by name."""
        found: list[VolumeInfo] = []
        for name in sorted(self._names()):
            with contextlib.suppress(FileNotFoundError):
                found.append(VolumeInfo(name, os.stat(self._path / name).st_mtime))
        return found

    def delete(self, name: str) -> None:
        """Delete one; what cannot be removed at once is no volume any more, and is `sweep`'s."""
        with self._locked(name):
            away = self._path / f".{name}.{os.urandom(8).hex()}"
            os.rename(self._path / name, away)
            _trash.remove(away)

    def rename(self, name: str, new: str) -> None:
        """Give one another name."""
        with self._locked(name):
            try:
                os.rename(self._path / name, self._path / new)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                text = f"there is a volume {new!r} already; choose another name, or delete that one"
                raise AlreadyExistsError(text) from error

    def sync(self, name: str) -> None:
        """Wait until the volume's file system is on its disk."""
        sync_file_system(self.require(name))

    def sweep(self, failed: list[str], *, check: bool) -> list[str]:
        """Remove ephemeral ones whose programs were killed, and what is half made; tell which."""
        abandoned = [name for name in self._names() if ephemeral.is_abandoned(self._state, name)]
        removed = [name for name in abandoned if self._is_removed(name, failed, check=check)]
        for name in () if check else self._names(unfinished=True):
            with _trash.going_on(failed):
                if _is_old(self._path / name) and (held := lock_folder(self._path / name)):
                    with held:
                        _trash.remove(self._path / name)
        if not check:
            ephemeral.sweep(self._state)
        return removed

    def _is_removed(self, name: str, failed: list[str], *, check: bool) -> bool:
        """Remove an ephemeral one that no sandbox has; `check`: only whether that could be."""
        with _trash.going_on(failed), contextlib.suppress(NotFoundError, VolumeInUseError):
            if check:
                with self._locked(name):
                    return True
            self.delete(name)
            return True
        return False

    def require(self, name: str) -> Path:
        """The folder of a volume.

        Raises:
            NotFoundError: there is none of that name.
        """
        folder = self._path / name
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no volume {name!r}; make it with Volume.from_name({name!r}, create_if_missing=True), "
                f"or `openmodal volume create {name}`"
            )
        return folder

    def check(self, mounts: Iterable[Mount]) -> None:
        """Refuse mounts that cannot be made.

        Raises:
            NotFoundError, InvalidError: a volume or folder is not there, or must not be written to.
        """
        for mount in mounts:
            if mount.host:
                _owner(mount)
            elif not mount.create:
                self.require(mount.volume)

    def lines(self, mounts: Iterable[Mount]) -> plan.Lines:
        """What a plan says of mounts: outer ones first."""
        return [line for mount in sorted(mounts, key=lambda mount: mount.target) for line in self._lines(mount)]

    def _lines(self, mount: Mount) -> Iterator[tuple[str, str]]:
        source, owner = mount.host, "-"
        if mount.volume:
            folder = self.require(mount.volume)
            source = os.path.realpath(folder / "data")
            yield "lock", str(folder)
        elif os.geteuid() == 0:
            owner = _owner(mount)
        mode = "ro" if mount.read_only else "rw"
        yield "volume", "\t".join((source, mount.sub_path or ".", mount.target, mode, owner))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a volume that nobody uses, so that nobody can begin to.

        Raises:
            NotFoundError, VolumeInUseError: there is none; a sandbox uses it.
        """
        folder, deadline = self.require(name), time.monotonic() + _PATIENCE
        while not (held := lock_folder(folder)):
            self.require(name)
            if time.monotonic() > deadline:
                raise VolumeInUseError(
                    f"the volume {name!r} is mounted in a running sandbox; terminate that first (`openmodal sandbox list`)"
                )
            time.sleep(0.01)
        with held:
            yield

    def _made(self) -> Path:
        made(self._path)
        if self._path.stat().st_mode & 0o077:
            self._path.chmod(0o700)
        return self._path

    def _names(self, *, unfinished: bool = False) -> list[str]:
        try:
            return [name for name in os.listdir(self._path) if name.startswith(".") == unfinished]
        except FileNotFoundError:
            return []


def _is_old(folder: Path) -> bool:
    """Whether it was not made just now: then its maker is still at work."""
    try:
        return time.time() - folder.stat().st_ctime > 60
    except FileNotFoundError:
        return False


def _owner(mount: Mount) -> str:
    """Who owns a folder of this machine, as "uid:gid".

    Raises:
        InvalidError: it is no folder, or it is root's and must not be written to.
    """
    info = folders.look(mount)
    if 0 in (info.st_uid, info.st_gid) and os.geteuid() == 0:
        folders.refuse_writing(mount, "belongs to root")
    return f"{info.st_uid}:{info.st_gid}"


__all__ = ["Volumes"]
