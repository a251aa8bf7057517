"""What runs where: one folder per sandbox, one small file per sandbox that ended. No database; renames and locks of the kernel.

    <state>/sandboxes/<id>/     0700, from create to end; for root <brief><id>/ (`_config.brief`)
        status.json             what it is (no secrets), written by the SDK
        made.json               what it was made of (no secrets), for forks and resets
        lock                    locked by its supervisor for its life: a free lock means that it is dead
        agent.sock control.sock made by the supervisor, which also removes the folder
    <state>/ended/<id>          how it ended and what it was, for a day
    <state>/ended/<id>.stdout   what is kept of its main command; <id>.stderr
    <state>/ended/<id>.journal  a line for each call to it (_journal.py), from its creation to a day
                                after its end or, if it has no folder here, after the last call
    <state>/ended/<id>.made     made.json of one that has no folder here, as on a cluster

The folder itself is locked by the SDK while it creates the sandbox, so that `gc` in another process leaves it alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from openmodal import _config, _ends, _memory, _trash
from openmodal._files import stat_of_made, text, within, write
from openmodal._spec import EndRecord, Made, Root, Status
from openmodal.errors import DiskFullError, EngineError, NotFoundError, disk_full, no_room, no_state

KEEP_ENDED_SECONDS = 24 * 3600.0
MOST_ENDED = 10_000
"""Files of sandboxes that ended: the newest of them are kept."""
MOST_OUTPUT = 2 << 30
"""Bytes of those files. Beyond them the older large ones go: each sandbox may leave 16 MiB."""
_LARGE = 64 << 10
_SOME = 1000  # files that one creation looks at

R = TypeVar("R", bound=Root)

_TRASH = ".trash"  # what a supervisor calls a folder while it removes it
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}")


class Store:
    """The sandboxes of one state folder."""

    def __init__(self, state: Path, *, brief: bool = False) -> None:
        """`brief`: the folders of sandboxes are in memory, where this machine has room for them."""
        self.state = state
        self.sandboxes = within(state, "sandboxes")
        self.ended = within(state, "ended")
        self._is_brief = brief
        self._brief = ""
        self._has_room = False

    def prepare(self) -> None:
        """Make the folders, private to this user.

        Raises:
            EngineError: they cannot be made, belong to somebody else, or others may put their own in their place.
        """
        for parent in _parents(self.state):
            if reason := _open_to_others(parent):
                raise EngineError(
                    f"the state folder {self.state} is not safe, because {parent} {reason}: whoever may write there can replace it; "
                    "set OPENMODAL_HOME to a folder that only you and root can reach"
                )
        try:
            info = stat_of_made(self.state)
            for folder in (self.sandboxes, self.ended):
                _make_private(folder)
            self._has_room = _has_room(self.brief)
        except OSError as error:
            raise no_state(self.state, error) from error
        if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EngineError(
                f"the state folder {self.state} is not yours alone to write (owner {info.st_uid}, mode "
                f"{stat.S_IMODE(info.st_mode):o}); set OPENMODAL_HOME to a folder of yours, or `chmod go-w` it"
            )

    def folder(self, id: str) -> Path:
        """The folder of a sandbox that may exist.

        Raises:
            NotFoundError: this cannot be an id.
        """
        beside = f"{self.sandboxes}/{_checked(id)}"
        if not self.brief:
            return Path(beside)
        # If there was no room, or an earlier version made it, a sandbox is in the state folder.
        folder = f"{self.brief}{id}"
        return Path(folder if os.path.exists(folder) or not os.path.exists(beside) else beside)

    def has(self, id: str, name: str) -> bool:
        """Whether a sandbox's folder has a file of that name. Each call to its agent asks that, so
        nothing else is looked at."""
        beside = f"{self.sandboxes}/{_checked(id)}/{name}"
        brief = self.brief
        return (bool(brief) and os.access(f"{brief}{id}/{name}", os.F_OK)) or os.access(beside, os.F_OK)

    @property
    def brief(self) -> str:
        """What the folders of sandboxes begin with that are in memory; "" if none are."""
        if self._is_brief and not self._brief:
            self._brief = _config.brief(self.state)
        return self._brief

    @contextmanager
    def new(self, status: Status, made: Made[R] | None = None) -> Iterator[Path]:
        """Make the folder of a new sandbox, locked for the block. It is removed if the block fails.

        It gets its name when it is locked and whole: what has a name and no lock is dead.
        """
        folder = self.folder(status.id)
        if not self._has_room:
            folder = self.sandboxes / status.id
        unnamed, fd = _unnamed(folder)
        try:
            write(f"{unnamed}/status.json", msgspec.json.encode(status))
            if made:
                write(f"{unnamed}/made.json", msgspec.json.encode(made))
            if os.path.exists(folder):
                raise FileExistsError(errno.EEXIST, "a sandbox has this id", os.fspath(folder))
            os.rename(unnamed, folder)
        except BaseException:
            os.close(fd)  # first: removing needs descriptors, and they may be what is lacking
            self.remove(Path(unnamed))
            raise
        try:
            yield folder
        except BaseException:
            self.remove(folder)
            raise
        finally:
            os.close(fd)

    def write_status(self, status: Status) -> None:
        """Replace status.json at once."""
        if not _put(self.folder(status.id) / "status.json", msgspec.json.encode(status)):
            raise disk_full(self.state)

    def write_made(self, id: str, made: Made[R]) -> None:
        """Replace made.json at once, if the sandbox still has a folder."""
        with contextlib.suppress(FileNotFoundError):
            if not _put(self.folder(id) / "made.json", msgspec.json.encode(made)):
                raise disk_full(self.state)

    def keep_made(self, id: str, made: Made[R], until: float) -> None:
        """Note until a day after that time what a sandbox was made of that has no folder here. On a
        full disk it is not noted."""
        file = self.log(id, "made")
        if _put(file, msgspec.json.encode(made)):
            os.utime(file, (until, until))

    def status(self, id: str) -> Status | None:
        """What a sandbox is, or was; None if nothing (whole) is known of it."""
        folder = self.folder(id)
        found = text(f"{folder}/status.json") or _ends.fields(text(self.log(id))).get("status")
        with contextlib.suppress(msgspec.DecodeError):
            # What a version before this one has kept is in a file of its own.
            return msgspec.json.decode(found or text(self.log(id, "status")), type=Status)
        return None

    def made(self, id: str, kind: type[R]) -> Made[R] | None:
        """What a sandbox was made of; None if this machine does not know."""
        said = text(f"{self.folder(id)}/made.json") or text(self.log(id, "made"))
        with contextlib.suppress(msgspec.DecodeError):
            found = msgspec.json.decode(said, type=Made[msgspec.Raw])
            return Made(found.spec, msgspec.json.decode(found.root, type=kind))
        return None

    def ids(self) -> list[str]:
        """The ids of all folders, of dead sandboxes too."""
        names = {name for path in self._folders() if _ID.fullmatch(name := self._id_of(path))}
        return sorted(name for name in names if not name.endswith(_TRASH))

    def _folders(self, *, of_all: bool = False) -> list[str]:
        """The paths of all folders of sandboxes, also of those without a name yet.

        `of_all`: also those in memory that belong to other state folders.
        """
        places = {str(self.sandboxes): "", os.path.dirname(self.brief): os.path.basename(self.brief)}
        found: list[str] = []
        for place, begin in places.items():
            with contextlib.suppress(FileNotFoundError):
                names = os.listdir(place) if place else ()
                found += [f"{place}/{name}" for name in names if of_all or name.lstrip(".").startswith(begin)]
        return found

    def _id_of(self, path: str) -> str:
        folder, name = os.path.split(path)
        return name if folder == str(self.sandboxes) else name.removeprefix(os.path.basename(self.brief))

    def alive(self, id: str) -> bool:
        """Whether a supervisor holds the sandbox, or an SDK is just creating it."""
        folder = self.folder(id)
        return _locked(folder / "lock") or _locked(folder)

    def end(self, id: str) -> EndRecord | None:
        """How a sandbox ended, if it is known."""
        try:
            return _ends.decode(self.log(id).read_text("utf-8", "replace"))
        except FileNotFoundError:
            return None

    def write_end(self, id: str, end: EndRecord, status: Status | None = None) -> bool:
        """Note how a sandbox ended, and what it was, unless its supervisor has.

        False if the disk is full.
        """
        status = status or self.status(id)
        record = _ends.encode(end, msgspec.json.encode(status).decode() if status else "")
        with contextlib.suppress(FileExistsError):
            return _put(self.ended / id, record.encode("utf-8", "replace"), os.link)
        return True

    def write_outputs(self, id: str, stdout: bytes, stderr: bytes) -> bool:
        """Keep what the main command of an ended sandbox said; False if the disk is full."""
        outputs = {"stdout": stdout, "stderr": stderr}
        return all(_put(self.ended / f"{id}.{name}", data) for name, data in outputs.items() if data)

    def write_ended(self, status: Status, end: EndRecord, stdout: bytes = b"", stderr: bytes = b"") -> bool:
        """Note all that is to be known of a sandbox that has no folder here and has ended; the first who does it is right.

        False if the disk is full: then at most a part is noted.
        """
        whole = self.write_outputs(status.id, stdout, stderr)
        return self.write_end(status.id, end, status) and whole

    def not_noted(self, id: str) -> DiskFullError:
        """What is raised when a sandbox was terminated and the disk has no room to say so."""
        return DiskFullError(
            f"sandbox {id} was terminated, but the disk of {self.state} is too full to note that; make room"
        )

    def log(self, id: str, name: str = "") -> Path:
        """A file that is kept for a while after a sandbox's end: of that name, or the record."""
        return self.ended / (f"{_checked(id)}.{name}" if name else _checked(id))

    def main_output(self, id: str, stream: int) -> bytes:
        """What was kept of the main command's stdout (1) or stderr (2)."""
        name = {1: "stdout", 2: "stderr"}[stream]
        try:
            return self.log(id, name).read_bytes()
        except FileNotFoundError:
            return b""

    def sweep(self, failed: list[str]) -> None:
        """Remove folders whose makers died before they had a name, and whose supervisors died while they removed them.

        What cannot be removed is noted in `failed`.
        """
        # Of all: nobody would ever look again for those of a state folder that is gone.
        for path in map(Path, self._folders(of_all=True)):
            if not path.name.startswith(".") and not path.name.endswith(_TRASH):
                continue
            with _trash.going_on(failed), contextlib.suppress(FileNotFoundError, BlockingIOError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not _locked(path / "lock"):
                        self.remove(path)
                finally:
                    os.close(fd)

    def prune_ended(self, *, some: bool = False) -> None:
        """Forget sandboxes that ended long ago, or before many others. `some`: of many files only
        some are looked at; all of ten thousand take as long as fifty creations."""
        oldest = time.time() - KEEP_ENDED_SECONDS
        ages: list[tuple[float, int, str]] = []
        with os.scandir(self.ended) as found:
            files = list(found)
        count = len(files)
        if some and _SOME < count < MOST_ENDED * 5 // 4:
            first = int.from_bytes(os.urandom(4), "little") % (count - _SOME + 1)
            files = files[first : first + _SOME]
        for entry in files:
            with contextlib.suppress(FileNotFoundError):  # another process does the same
                seen = entry.stat(follow_symlinks=False)
                ages.append((seen.st_mtime, seen.st_size, entry.path))
        newest, left = sorted(ages, reverse=True), MOST_OUTPUT * len(files) // max(count, 1)
        for number, (age, size, path) in enumerate(newest):
            left -= size
            is_too_much = left < 0 and size > _LARGE
            if (number >= MOST_ENDED or age < oldest or is_too_much) and not self._is_of_a_living(path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _is_of_a_living(self, path: str) -> bool:
        """Whether a file is the journal of a sandbox that has a folder."""
        id, journal, _ = os.path.basename(path).rpartition(".journal")
        return bool(journal) and self.folder(id).exists()

    def ended_ids(self) -> list[str]:
        """Whose end is known here."""
        try:
            names = os.listdir(self.ended)
        except FileNotFoundError:  # nothing was ever created here
            return []
        # An app's name may have dots. What is behind the last hyphen, or a chosen id, has none.
        return sorted(name for name in names if "." not in name.rpartition("-")[2] and _ID.fullmatch(name))

    def forget(self, id: str) -> None:
        """Forget how something ended that is no sandbox of the user's."""
        for name in (id, f"{id}.status"):
            (self.ended / name).unlink(missing_ok=True)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove a sandbox's folder, whatever is in it; others may be doing the same, and its box may still be writing into it."""
        _trash.remove(folder)


def _unnamed(folder: Path) -> tuple[str, int]:
    """Make what will be that folder, and lock it; again if `sweep` was faster than the lock."""
    place, name = os.path.split(folder)
    # No other's: a maker that was killed here may have left one of the same id.
    path = f"{place}/.{name}.{os.urandom(4).hex()}"
    while True:
        try:
            os.mkdir(path, mode=0o700)
        except FileNotFoundError:  # another creation is just moving the folder into memory
            stat_of_made(Path(place))
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:  # too many open files
            os.rmdir(path)
            raise
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _has_room(brief: str) -> bool:
    """Whether folders whose paths begin so can be made, and some thousands of them fit."""
    with contextlib.suppress(OSError):
        if folder := os.path.dirname(brief):
            for path in (os.path.dirname(folder), folder):
                _make_private(Path(path))
            return _memory.has_room(folder)
    return False


def _put(file: Path, data: bytes, place: Callable[[Path, Path], None] = os.replace) -> bool:
    """Write a file whole and then give it its place, so that readers see the old one or the new.

    False, with nothing left beside it, if the disk is full.
    """
    new = file.with_name(f".{file.name}.{os.urandom(8).hex()}")  # threads of one process may do the same
    try:
        new.write_bytes(data)
        place(new, file)
    except OSError as error:
        if not no_room(error):
            raise
        return False
    finally:
        new.unlink(missing_ok=True)
    return True


@functools.lru_cache(maxsize=16)
def _parents(folder: Path) -> list[str]:
    """Every folder on the way to this one, with those that links lead through.

    Looked for once: as long as none of them is open to others, which each creation looks at, only
    this user and root can lead a link elsewhere.
    """
    found: set[str] = set()
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        while path != (parent := os.path.dirname(path)):
            path = parent
            found.add(path)
    return sorted(found)


def _open_to_others(folder: str) -> str:
    """Why others than this user and root may rename what is in a folder, as sshd's StrictModes has it.

    "" if they may not, or if the folder is not there.
    """
    try:
        info = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    # Asked last: every creation comes here, and most folders are root's or the user's.
    if info.st_uid not in (0, os.geteuid()) and info.st_uid != _root_seen_from_inside():
        return f"belongs to user {info.st_uid}"
    if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
        return f"may be written by everybody (mode {stat.S_IMODE(info.st_mode):o})"
    return ""


def _root_seen_from_inside() -> int:
    """As whom the machine's root appears in a user namespace without that id, as in a rootless container; else 0 (user_namespaces(7))."""
    maps = Path("/proc/self/uid_map").read_text("ascii").split()
    return 0 if maps == ["0", "0", str(2**32 - 1)] else int(Path("/proc/sys/kernel/overflowuid").read_text("ascii"))


def make_folder(folder: Path, mode: int = 0o755) -> Path:
    """Make a folder of exactly that mode: what is seen in images and sandboxes must not depend on the caller's umask."""
    folder.mkdir(mode=mode)
    folder.chmod(mode)
    return folder


def _make_private(folder: Path) -> None:
    """Make a folder for this user only, or make it so: whoever reaches a socket in it can run commands."""
    if stat_of_made(folder).st_mode & 0o077:
        folder.chmod(0o700)


def _checked(id: str) -> str:
    """The id.

    Raises:
        NotFoundError: it cannot be one.
    """
    if not _ID.fullmatch(id):
        raise NotFoundError(f"there is no sandbox {id!r}; an id looks like my-app-758f3413")
    return id


def _locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file or folder."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)
