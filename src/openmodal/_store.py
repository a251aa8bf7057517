"""What runs where: one folder per sandbox, one small file per sandbox that ended. No database; renames and locks of the kernel.

    <state>/sandboxes/<id>/     0700, from create to end
        status.json             what it is (no secrets), written by the SDK
        lock                    locked by its supervisor for its life: a free lock means that it is dead
        agent.sock control.sock made by the supervisor, which also removes the folder
    <state>/ended/<id>          how it ended, for a day; <id>.status what it was; <id>.stdout, <id>.stderr of its main command

The folder itself is locked by the SDK while it creates the sandbox, so that `gc` in another process leaves it alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from openmodal import _trash
from openmodal._files import made
from openmodal._spec import EndRecord, Status
from openmodal.errors import DiskFullError, EngineError, NotFoundError, disk_full, no_room

KEEP_ENDED_SECONDS = 24 * 3600.0

_TRASH = ".trash"  # what a supervisor calls a folder while it removes it
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}")


class Store:
    """The sandboxes of one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.sandboxes = state / "sandboxes"
        self.ended = state / "ended"

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
            made(self.state)
            for folder in (self.sandboxes, self.ended):
                _make_private(folder)
            info = os.stat(self.state)
        except OSError as error:
            raise EngineError(
                f"the state folder {self.state} cannot be made: {error.strerror}; set OPENMODAL_HOME to a folder of yours"
            ) from error
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
        if not _ID.fullmatch(id):
            raise NotFoundError(f"there is no sandbox {id!r}; an id looks like my-app-758f3413")
        return self.sandboxes / id

    @contextmanager
    def new(self, status: Status) -> Iterator[Path]:
        """Make the folder of a new sandbox, locked for the block. It is removed if the block fails.

        It gets its name when it is locked and whole: what has a name and no lock is dead.
        """
        folder = self.folder(status.id)
        unnamed, fd = self._unnamed(status.id)
        try:
            (unnamed / "status.json").write_bytes(msgspec.json.encode(status))
            if folder.exists():
                raise FileExistsError(errno.EEXIST, "a sandbox has this id", os.fspath(folder))
            unnamed.rename(folder)
        except BaseException:
            os.close(fd)  # first: removing needs descriptors, and they may be what is lacking
            self.remove(unnamed)
            raise
        try:
            yield folder
        except BaseException:
            self.remove(folder)
            raise
        finally:
            os.close(fd)

    def _unnamed(self, id: str) -> tuple[Path, int]:
        """Make a folder and lock it. If `sweep` was faster than the lock, make it again."""
        path = self.sandboxes / f".{id}"
        while True:
            path.mkdir(mode=0o700)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:  # too many open files
                path.rmdir()
                raise
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)

    @contextmanager
    def names(self) -> Iterator[None]:
        """Nobody else creates a named sandbox during the block."""
        fd = os.open(self.state / "names.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def write_status(self, status: Status) -> None:
        """Replace status.json at once."""
        if not _write(self.folder(status.id) / "status.json", msgspec.json.encode(status)):
            raise disk_full(self.state)

    def status(self, id: str) -> Status | None:
        """What a sandbox is, or was; None if nothing (whole) is known of it."""
        folder = self.folder(id)
        for path in (folder / "status.json", self.ended / f"{folder.name}.status"):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Status)
            except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
                continue
        return None

    def ids(self) -> list[str]:
        """The ids of all folders, of dead sandboxes too."""
        try:
            names = os.listdir(self.sandboxes)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _ID.fullmatch(name) and not name.endswith(_TRASH))

    def alive(self, id: str) -> bool:
        """Whether a supervisor holds the sandbox, or an SDK is just creating it."""
        folder = self.folder(id)
        return _locked(folder / "lock") or _locked(folder)

    def end(self, id: str) -> EndRecord | None:
        """How a sandbox ended, if it is known."""
        try:
            return parse_record((self.ended / self.folder(id).name).read_text("utf-8", "replace"))
        except FileNotFoundError:
            return None

    def write_end(self, id: str, end: EndRecord) -> bool:
        """Note how a sandbox ended, unless its supervisor has; False if the disk is full."""
        stdout, stderr = end.written
        text = (
            f"reason={end.reason}\nreturncode={end.returncode}\nwritten={stdout} {stderr}\nended={end.ended}\n"
            f"text={end.text}\n"
        )
        new = self.ended / f".{id}.{os.urandom(8).hex()}"  # threads of one process may do the same
        try:
            new.write_text(text, "utf-8")
            os.link(new, self.ended / id)
        except FileExistsError:
            pass
        except OSError as error:
            if not no_room(error):
                raise
            return False
        finally:
            new.unlink(missing_ok=True)
        return True

    def write_outputs(self, id: str, stdout: bytes, stderr: bytes) -> bool:
        """Keep what the main command of an ended sandbox said; False if the disk is full."""
        outputs = {"stdout": stdout, "stderr": stderr}
        return all(_write(self.ended / f"{id}.{name}", data) for name, data in outputs.items() if data)

    def write_ended(self, status: Status, end: EndRecord, stdout: bytes = b"", stderr: bytes = b"") -> bool:
        """Note all that is to be known of a sandbox that has no folder here and has ended; the first who does it is right.

        False if the disk is full: then at most a part is noted.
        """
        whole = self.write_outputs(status.id, stdout, stderr)
        whole &= _write(self.ended / f"{status.id}.status", msgspec.json.encode(status))
        return self.write_end(status.id, end) and whole

    def not_noted(self, id: str) -> DiskFullError:
        """What is raised when a sandbox was terminated and the disk has no room to say so."""
        return DiskFullError(
            f"sandbox {id} was terminated, but the disk of {self.state} is too full to note that; make room"
        )

    def main_output(self, id: str, stream: int) -> bytes:
        """What was kept of the main command's stdout (1) or stderr (2)."""
        name = {1: "stdout", 2: "stderr"}[stream]
        try:
            return (self.ended / f"{self.folder(id).name}.{name}").read_bytes()
        except FileNotFoundError:
            return b""

    def sweep(self, failed: list[str]) -> None:
        """Remove folders whose makers died before they had a name, and whose supervisors died while they removed them.

        What cannot be removed is noted in `failed`.
        """
        for path in (*self.sandboxes.glob(".*"), *self.sandboxes.glob(f"*{_TRASH}")):
            with _trash.going_on(failed), contextlib.suppress(FileNotFoundError, BlockingIOError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not _locked(path / "lock"):
                        self.remove(path)
                finally:
                    os.close(fd)

    def prune_ended(self) -> None:
        """Forget sandboxes that ended long ago."""
        oldest = time.time() - KEEP_ENDED_SECONDS
        with os.scandir(self.ended) as found:
            for entry in found:
                try:
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)
                except FileNotFoundError:  # another process does the same
                    pass

    def forget(self, id: str) -> None:
        """Forget how something ended that is no sandbox of the user's."""
        for name in (id, f"{id}.status"):
            (self.ended / name).unlink(missing_ok=True)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove a sandbox's folder, whatever is in it; others may be doing the same, and its box may still be writing into it."""
        _trash.remove(folder)


def _write(file: Path, data: bytes) -> bool:
    """Replace a file at once: old or new, never torn; False, with nothing left beside it, if the disk is full."""
    new = file.with_name(f".{file.name}.{os.urandom(8).hex()}")  # threads of one process may do the same
    try:
        new.write_bytes(data)
        new.rename(file)
    except OSError as error:
        if not no_room(error):
            raise
        return False
    finally:
        new.unlink(missing_ok=True)
    return True


def _parents(folder: Path) -> list[str]:
    """Every folder on the way to this one, with those that links lead through."""
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
    if os.stat(made(folder)).st_mode & 0o077:
        folder.chmod(0o700)


def parse_record(text: str) -> EndRecord:
    """A record as supervisors write it (docs/protocol.md, section 3)."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        return EndRecord(
            reason=fields["reason"],
            returncode=int(fields["returncode"]),
            ended=float(fields.get("ended", 0)),
            text=fields.get("text", ""),
            written=_pair(fields.get("written", "0 0")),
        )
    except (KeyError, ValueError):
        return EndRecord(reason="lost", returncode=137, text="its supervisor left a record that cannot be read")


def _pair(text: str) -> tuple[int, int]:
    first, second = map(int, text.split())
    return first, second


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
