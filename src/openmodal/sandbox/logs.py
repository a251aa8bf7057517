"""What the main command of a sandbox wrote, looked at without taking it."""

from __future__ import annotations

from openmodal import _args, _wire
from openmodal._command import Command, Spool
from openmodal._dual import dual
from openmodal._measured import LogPiece
from openmodal._wire import State, Want
from openmodal.errors import InvalidError, NotFoundError, SandboxNotRunningError
from openmodal.sandbox.handle import Handle

_STREAMS = {1: (Want.STDOUT, State.STDOUT_END), 2: (Want.STDERR, State.STDERR_END)}


class Logs(Handle):
    """Looking at output."""

    @dual
    async def logs(self, stream: int = 1, offset: int = 0, *, timeout: float = 0.0) -> LogPiece:
        """Return the next piece of what its main command wrote to stdout (1) or stderr (2).

        Nothing is taken: whoever reads `stdout` gets it, too, and what has been read there is not
        here any more. Of what nobody reads the newest 8 MiB are kept, for a day after the end (on
        Kubernetes 3 MiB). Looking does not count as use of the sandbox: idle time goes on.

        Args:
            stream: 1 or 2.
            offset: where to begin, in bytes from the stream's start; what is not there is skipped.
            timeout: seconds to wait for something to come; then `data` is empty.

        Raises:
            InvalidError: it has no main command.
        """
        stream, offset = _args.whole("stream", stream, 1, 2), _args.optional_count("offset", offset) or 0
        wait = int(1000 * _args.seconds("timeout", timeout)) if timeout else 0
        (want, end), offsets, spool = _STREAMS[stream], [0, 0, 0], Spool()
        offsets[stream] = offset
        try:
            main = Command(self._observer, _wire.MAIN)
            progress = await main.io(want | Want.PEEK, offsets, {stream: spool}, wait=wait)
        except SandboxNotRunningError:
            return await self._logged(stream, offset)
        except NotFoundError:
            raise InvalidError("this sandbox has no main command; read the streams of exec() or spawn()") from None
        data = spool.read(0, spool.size)
        return LogPiece(offsets[stream] - len(data), data, bool(progress.state & end))

    async def _logged(self, stream: int, offset: int) -> LogPiece:
        """What is kept after the sandbox's end."""
        kept = await self._engine.main_output(self._id, stream)
        written = self._end.written[stream - 1] if self._end else 0
        begin = max(written - len(kept), 0)
        at = max(offset, begin)
        return LogPiece(at, kept[at - begin :], True)
