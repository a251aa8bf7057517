"""The folders that sandboxes write to. One sandbox after the other uses them, because file systems
take longest for making folders.

    <state>/uppers/<id>/     upper, work and disk.img of a sandbox, which holds a shared lock on it
    <state>/uppers/.<n>/     of one that ended: as new, for the next one; n is the lowest free one
    <state>/uppers/boot      the boot of this machine since which what earlier ones left is gone

Only a supervisor that was killed leaves a folder without a dot and without a lock. A rename takes a
folder and gives it back, so each has one user.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmodal import _trash
from openmodal._files import made, text, within
from openmodal._store import make_folder
from openmodal.build.locks import Lock, lock_folder

MOST_UNUSED = 64
"""So many folders wait for a sandbox, as native/upper.c names them: nobody needs a list."""

_TRIED = (0, 1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63)
"""Those that a sandbox looks for. Of many that begin, the first take the lowest, and what is left
lies together."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Uppers:
    """Those of one state folder."""

    def __init__(self, state: Path) -> None:
        self._path = within(state, "uppers")

    def folder(self, id: str) -> Path:
        """That of a sandbox."""
        return self._path / id

    @contextmanager
    def taken(self, id: str) -> Iterator[Path]:
        """The folder of a new sandbox, locked for the block. It is removed if the block fails."""
        _clear_once(made(self._path))
        folder = self.folder(id)
        with self._taken(folder):
            try:
                yield folder
            except BaseException:
                _remove(folder)
                raise

    def remove(self, id: str) -> None:
        """Remove that of a sandbox whose supervisor is dead."""
        _remove(self.folder(id))

    def sweep(self, failed: list[str]) -> None:
        """Remove what killed supervisors left, and more unused folders than are kept.

        What cannot be removed is noted in `failed`.
        """
        _sweep(self._path, failed)
        for name in {*self._unused()} - {f".{number}" for number in range(MOST_UNUSED)}:
            with _trash.going_on(failed):  # of an earlier version
                _remove(self._path / name)

    def _unused(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._path) if name[0] == "."]
        except FileNotFoundError:
            return []

    def _taken(self, folder: Path) -> Lock:
        for number in _TRIED:
            # Before it has a name that `sweep` looks at, it is locked.
            if held := _shared(path := f"{self._path}/.{number}"):
                try:
                    os.rename(path, folder)
                except FileNotFoundError:  # another sandbox was faster
                    held.close()
                    continue
                # Another may have got that name since it was locked.
                if os.fstat(held.fd).st_ino == os.stat(folder).st_ino:
                    return held
                held.close()
                if held := _shared(folder):
                    return held
        return _new(folder)


def _remove(folder: Path) -> None:
    """Remove a folder if it is there, first by another name: so neither does its supervisor give it
    back meanwhile, nor does a sandbox take it."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, away := folder.with_name(f"{folder.name.lstrip('.')}.trash"))
        _trash.remove(away)


def _new(folder: Path) -> Lock:
    """Make a folder and lock it. If `sweep` was faster than the lock, make it again."""
    while True:
        folder.mkdir(mode=0o700)
        if held := _shared(folder):
            try:
                for name in ("upper", "work"):
                    make_folder(folder / name)
            except BaseException:  # a full disk
                _remove(folder)
                held.close()
                raise
            return held


def _shared(folder: str | Path) -> Lock | None:
    """A shared lock of a folder; None if it is gone."""
    try:
        fd = os.open(folder, _OPEN)
    except FileNotFoundError:
        return None
    held = Lock(fd)
    held.share()
    if os.fstat(fd).st_nlink:
        return held
    held.close()
    return None


@functools.lru_cache(maxsize=64)
def _clear_once(path: Path) -> None:
    """Remove what was left when the machine was stopped: nobody else may know of it any more."""
    note, boot = path / "boot", text("/proc/sys/kernel/random/boot_id")
    if text(note) != boot:
        _sweep(path, [])
        note.write_text(boot)


def _sweep(path: Path, failed: list[str]) -> None:
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".") and name != "boot"]
    except FileNotFoundError:
        return
    for name in names:
        with _trash.going_on(failed):
            if held := lock_folder(path / name):
                with held:
                    _trash.remove(path / name)
