"""The process of this machine that a container's sandbox ends with.

A child of the native program waits for both (native/own.c). The file `owner` in the sandbox's
folder names the process; when that has ended, the child calls the file `owner-ended`, and tells the
agent to end.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from openmodal import _binary, _ends
from openmodal._dual import Blocking
from openmodal._files import text, write
from openmodal._spec import EndRecord, Made, Referenced
from openmodal.engines.contract import Door
from openmodal.engines.docker.daemon import Api, ConflictError, MissingError
from openmodal.engines.docker.host import no_later_owner, no_owner
from openmodal.engines.docker.stateful import Stateful
from openmodal.errors import InvalidError

_OWNER = "owner"
_ENDED = "owner-ended"


class Owned(Stateful):
    """The verb of the Docker engine for it."""

    async def own(self, id: str, owner: int) -> None:
        with await self._mine(id, "the owner"):
            await self._give(id, identity(owner))
            if made := self._book.made(id, Referenced):  # for its forks
                self._book.write_made(id, Made(replace(made.spec, owner=owner), made.root))

    async def _give(self, id: str, who: str, *, begins: bool = False) -> None:
        """Let the sandbox end with that process; "" with none. `begins`: its agent does not listen
        yet."""
        before = text(self._book.folder(id) / _OWNER)
        if not who:
            self._note_owner(id, "")
            return
        door = await self.door(id)
        if not door:
            made = self._book.made(id, Referenced)
            raise no_later_owner() if made and made.spec.resources.disk else no_owner()
        self._note_owner(id, who)
        try:
            await Blocking(_start, door, who, _binary.find(self._layers.path), begins)
        except BaseException:
            self._note_owner(id, before)
            raise

    def _note_owner(self, id: str, who: str) -> None:
        note = self._book.folder(id) / _OWNER
        if who:
            write(str(note), who.encode())
        else:
            note.unlink(missing_ok=True)

    async def _give_again(self, id: str) -> None:
        """As `_give` with the owner that is noted, to the agent of a container that begins."""
        if who := text(self._book.folder(id) / _OWNER):
            if identity(int(who.split()[0])) != who:
                self._book.write_end(id, _ends.ended("owner", 137, time.time()))
                raise ConnectionResetError(f"the owner of sandbox {id} has ended")
            await self._give(id, who, begins=True)

    def _lost_owner(self, id: str) -> bool:
        return (self._book.folder(id) / _ENDED).exists()

    def _end_unowned(self, api: Api, id: str) -> None:
        """End a sandbox whose owner has ended, if the child that waited for both was killed."""
        note = self._book.folder(id) / _OWNER
        who = text(note)
        if who and identity(int(who.split()[0])) != who:
            with contextlib.suppress(FileNotFoundError, MissingError, ConflictError):  # it is done
                note.rename(note.with_name(_ENDED))
                api.post(f"/containers/{id}/kill")

    def _with_owner(self, id: str, end: EndRecord) -> EndRecord:
        """The record, if it says no more than that somebody ended the sandbox."""
        if end.reason in ("terminated", "lost") and self._lost_owner(id):
            return _ends.ended("owner", end.returncode, end.ended, written=end.written)
        return end


def identity(pid: int) -> str:
    """What tells a process from a later one of its number: when it began (proc(5)); "" for none."""
    if not pid:
        return ""
    said = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return f"{pid} {said[19]}" if said and said[0] not in "ZX" else f"{pid} gone"


def _start(door: Door, who: str, program: str, begins: bool) -> None:
    """Start the child.

    Raises:
        InvalidError: that process has ended.
        ConnectionError: the sandbox has.
    """
    pid = int(who.split(maxsplit=1)[0])
    with contextlib.ExitStack() as stack:
        try:
            owner = os.pidfd_open(pid)
            stack.callback(os.close, owner)
        except ProcessLookupError:
            owner = -1
        if owner < 0 or identity(pid) != who:
            raise InvalidError(f"owner is {pid}, and there is no such process; use one that runs")
        words = ["own", str(door.agent), who, *(["begins"] if begins else [])]
        if start_beside(program, door, words, owner):
            raise ConnectionResetError(f"the agent in {Path(door.folder).parent.name} does not answer")


def start_beside(program: str, door: Door, words: Sequence[str], held: int = -1) -> int:
    """Start a child of the native program that stays beside a sandbox; the exit status of what has
    started it."""
    with contextlib.ExitStack() as stack:
        folder = os.open(door.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, nothing)
        child = _binary.start(program, words, folder, nothing, held)
        # The user's program may ignore SIGCHLD.
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 0
