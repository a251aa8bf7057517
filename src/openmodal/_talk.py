"""A talk with a program that stays: what is said to it, and its answers, each up to a mark.

A mark is the character 1E, a random name, a colon, some text, and 1E again. The name is made for
one answer, so output that was written before cannot hold it.
"""

from __future__ import annotations

import contextlib
import re
import secrets

from openmodal._command import Command
from openmodal._sources import Live
from openmodal._spec import ExitRecord
from openmodal._wire import Want
from openmodal.errors import NotFoundError, SandboxNotRunningError
from openmodal.process import StreamWriter

HELD = 1 << 16
"""How many of the newest bytes a pattern is looked for in."""

_BORDER = b"\x1e"


def new_name() -> str:
    """A name for a mark that nobody can guess."""
    return secrets.token_hex(8)


class Answer:
    """What came before a mark: the first and the newest bytes, half of `most` each.

    Attributes:
        omitted: how many bytes between them are left out.
    """

    def __init__(self, most: int) -> None:
        self.omitted = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._head_most, self._tail_most = most - most // 2, most // 2

    def add(self, data: bytes) -> None:
        room = self._head_most - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if (over := len(self._tail) - self._tail_most) > 0:
            self.omitted += over
            del self._tail[:over]

    def text(self) -> str:
        """The whole, with a line that says where bytes are left out."""
        between = f"\n[… {self.omitted} bytes left out …]\n".encode() if self.omitted else b""
        return (self._head + between + self._tail).decode("utf-8", "replace")


class Talk:
    """The two directions of a command, or of a connection. One call at a time."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._source = Live(command, 1)
        self._writer = StreamWriter(command)
        self._held = b""
        self._lost = 0

    async def send(self, data: bytes) -> None:
        """Send all of it, and return when it is taken.

        Raises:
            StdinClosedError: the program reads no more.
        """
        self._writer.write(data)
        await self._writer._drain()

    async def until(
        self, names: list[str], answer: Answer, pattern: re.Pattern[bytes] | None = None
    ) -> re.Match[bytes] | None:
        """Put what comes into `answer`, up to a mark, or up to the end of what `pattern` matches.

        Marks of all `names` are cut out, but only the last one's is waited for. If this is
        interrupted, nothing is lost: the next call goes on where this one was.

        Returns:
            The match of the mark (group 1 is its text) or of the pattern; None: the program ended.
        """
        any_mark = re.compile(_BORDER + b"(?:%s):([^\x1e]*)\x1e" % b"|".join(name.encode() for name in names))
        begin_of_last = _BORDER + names[-1].encode() + b":"
        while True:
            mark, found = any_mark.search(self._held), pattern.search(self._held) if pattern else None
            if found and not (mark and mark.start() < found.start()):
                self._pass(found.end(), answer)
                return found
            if mark:
                self._pass(mark.start(), answer)
                self._held = self._held[mark.end() - mark.start() :]
                if mark.group().startswith(begin_of_last):
                    return mark
                continue
            self._pass(self._sure(pattern), answer)
            if not (data := await self._source.chunk()):
                self._pass(len(self._held), answer)
                return None
            self._note_loss(answer)
            self._held += data

    def _sure(self, pattern: re.Pattern[bytes] | None) -> int:
        """How many held bytes are part neither of a mark nor of what the pattern may match."""
        if pattern:
            return max(len(self._held) - HELD, 0)
        # A mark is shorter than what is held for a pattern; a lone 1E is some program's output.
        begin = self._held.find(_BORDER, max(len(self._held) - HELD, 0))
        return len(self._held) if begin < 0 else begin

    def _pass(self, size: int, answer: Answer) -> None:
        answer.add(self._held[:size])
        self._held = self._held[size:]

    def _note_loss(self, answer: Answer) -> None:
        """Count what the agent did not keep, because nobody read while it came."""
        lost = sum(gap.size for gap in self._source.gaps)
        answer.omitted += lost - self._lost
        self._lost = lost

    async def end(self) -> ExitRecord | None:
        """Wait for the program's end and tell how it ended; None: that is not known."""
        return (await self.command.io(Want.EXIT, [0, 0, 0], {})).record

    async def kill(self) -> None:
        """Kill the program with all its descendants. Does nothing if it has ended."""
        with contextlib.suppress(NotFoundError, SandboxNotRunningError):
            await self.command.end()


__all__ = ["HELD", "Answer", "Talk", "new_name"]
