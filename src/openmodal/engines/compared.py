"""What differs between a sandbox and its image, for engines that cannot see a sandbox's upper
folder: its agent compares the files with a list that another sandbox of the image has made
(native/changes.c).

Root in the sandbox can make its agent tell anything.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import IO, Literal

from openmodal._agent import Agent
from openmodal._command import Command, Feed
from openmodal._spec import Change, ExecSpec, Network, OutputGap, Root, SandboxSpec
from openmodal._wire import Flag
from openmodal.engines.contract import Created, Engine
from openmodal.errors import OTHER_TEMPORARY, EngineError, ProtocolError, disk_full_named

LIST_SECONDS = 600.0
"""How long the list of an image may take."""

_MOST = 64 << 30  # bytes of what an agent tells
_MOST_TO_HOLD = 256 << 20  # ... where it is held in memory, as native/diff.c
_TYPES: dict[str, Literal["file", "directory", "symlink"]] = {"f": "file", "d": "directory", "l": "symlink"}
_SAME = slice(0, 4)  # of a path's facts: kind, mode, owner, group
_SIZE, _DEVICE = 4, 6

# Facts and target by path, as `changes list` and `changes facts` say.
Told = dict[str, tuple[str, str]]


class Compared(Engine):
    """The verb of an engine for it."""

    _program: str
    """The agent's program inside of a sandbox."""

    _quickest = Network()
    """The network of sandboxes that need none, with which one is there soonest."""

    async def _image(self, id: str) -> Root:
        """What a running sandbox was made of.

        Raises:
            ConnectionError: it has ended.
        """
        raise NotImplementedError

    async def diff(self, id: str) -> Sequence[Change]:
        root = await self._image(id)
        with tempfile.TemporaryFile() as before, tempfile.TemporaryFile() as now:
            async with self._pristine(root) as image, self._agent(id) as sandbox:
                await self._told(image, "list", b"", before)
                before.seek(0)
                await self._told(sandbox, "facts", before, now)
                was, told = _read(before), _read(now)
                asked = [path for path, is_now in told.items() if _may_be_same(was.get(path), is_now)]
                one, other = [await self._digests(agent, asked) for agent in (image, sandbox)]
        same = {path for path, digest in one.items() if digest != "-" and digest == other[path]}
        return sorted(_changes(was, told, same), key=lambda change: change.path)

    @contextlib.asynccontextmanager
    async def _pristine(self, root: Root) -> AsyncIterator[Agent]:
        """The agent of a new sandbox of an image, in which nothing runs."""
        spec = SandboxSpec(
            app="list", timeout=LIST_SECONDS, lease=LIST_SECONDS / 2, hidden=True, workdir="/", network=self._quickest
        )
        made = await self.create(spec, root)
        try:
            async with self._agent(made) as agent:
                yield agent
        finally:
            await self.stop(made.id if isinstance(made, Created) else made)

    @contextlib.asynccontextmanager
    async def _agent(self, made: str | Created) -> AsyncIterator[Agent]:
        id = made if isinstance(made, str) else made.id

        async def why(error: Exception) -> None:
            if (await self.inspect(id)).ended:
                raise ConnectionResetError(f"the sandbox {id} has ended") from error

        async def wake() -> None:
            await self.resume(id)

        agent = Agent(lambda: self.connect(id), why, None if isinstance(made, str) else made.first, wake)
        try:
            yield agent
        finally:
            agent.close()

    async def _digests(self, agent: Agent, paths: list[str]) -> dict[str, str]:
        if not paths:
            return {}
        with tempfile.TemporaryFile() as answer:
            await self._told(agent, "digest", os.fsencode("".join(f"{path}\0" for path in paths)), answer)
            answer.seek(0)
            digests = answer.read().decode("ascii", "replace").split()
        if len(digests) != len(paths):
            raise ProtocolError("the agent of the sandbox does not tell the digests that it was asked for")
        return dict(zip(paths, digests, strict=True))

    async def _told(
        self, agent: Agent, what: str, stdin: bytes | IO[bytes], target: IO[bytes] | None, timeout: float | None = None
    ) -> None:
        """What `openmodal-agent changes` says.

        Raises:
            TimeoutError: it has not ended in time.
        """
        spec = ExecSpec((self._program, "changes", what), user="0", workdir="/", timeout=timeout, flags=Flag.STDIN)
        with tempfile.TemporaryFile() as said:
            sinks = {1: _File(target), 2: _File(said)}
            _, record = await Command(agent, os.urandom(16)).run(spec, Feed(stdin), sinks)
            if record.timed_out:
                raise TimeoutError("the snapshot was not taken in time")
            if record.code or record.signaled:
                said.seek(0)
                text = said.read(1000).decode(errors="replace").strip() or f"its agent ends with {record.returncode}"
                raise EngineError(f"the sandbox's files cannot be compared with the image: {text}")


class _File:
    """Takes a stream's bytes into a file."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._size = 0

    def skip(self, gap: OutputGap) -> None:
        raise EngineError("a part of what has changed is lost; ask again")

    def write(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > _MOST:
            raise EngineError(f"the sandbox has more than {_MOST >> 30} GiB of changed files; use a volume for them")
        if self._file:
            with disk_full_named(tempfile.gettempdir(), OTHER_TEMPORARY):
                self._file.write(data)


def topmost(gone: Sequence[str], no_folders: set[str]) -> list[str]:
    """Without those below another one, or below what is no folder any more."""
    above = {*gone, *no_folders}
    return [path for path in gone if not any(path[:at] in above for at in slashes(path))]


def slashes(path: str) -> list[int]:
    """Where a path has them: what is before each is a folder that leads there."""
    return [at for at, letter in enumerate(path) if letter == "/"]


def _read(file: IO[bytes]) -> Told:
    """What an agent has told.

    Raises:
        ProtocolError: this is not what an agent tells.
        EngineError: it is too much.
    """
    file.seek(0)
    data = file.read(_MOST_TO_HOLD + 1)
    if len(data) > _MOST_TO_HOLD:
        raise EngineError("more files differ than can be told; look at parts of them with commands")
    words = iter(os.fsdecode(data).split("\0")[:-1])
    found = {path: (facts, "" if facts == "D" else next(words, "")) for path, facts in zip(words, words, strict=False)}
    if any(facts != "D" and len(facts.split(" ")) != _DEVICE + 1 for facts, _ in found.values()):
        raise ProtocolError("the agent of the sandbox does not tell what has changed")
    return found


def _may_be_same(was: tuple[str, str] | None, now: tuple[str, str]) -> bool:
    """Whether it is a file that has changed at most its content and times."""
    if not was or not now[0].startswith("f "):
        return False
    return _lasting(was)[:2] == _lasting(now)[:2]


def _lasting(told: tuple[str, str]) -> tuple[object, ...]:
    """What makes a path differ, without the content of a file."""
    facts = told[0].split(" ")
    size = facts[_SIZE] if facts[0] == "f" else ""
    return facts[_SAME], size, told[1], facts[_DEVICE]


def _changes(was: Told, now: Told, same: set[str]) -> Iterator[Change]:
    gone = [path for path, (facts, _) in now.items() if facts == "D" and path in was]
    no_folders = {path for path, (facts, _) in now.items() if facts[0] not in "dD"}
    for path in topmost(gone, no_folders):
        yield Change(f"/{path}", "deleted", _type(was[path][0]), 0)
    for path, told in now.items():
        if told[0] == "D" or path in same:
            continue
        kind = told[0][0]
        if path not in was or kind == "f" or _lasting(told) != _lasting(was[path]):
            size = int(told[0].split(" ")[_SIZE]) if kind == "f" else 0
            yield Change(f"/{path}", "changed" if path in was else "added", _type(told[0]), size)


def _type(facts: str) -> Literal["file", "directory", "symlink", "other"]:
    return _TYPES.get(facts[0], "other")
