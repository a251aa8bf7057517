"""Leases and owners: a sandbox ends when nobody calls it any more, or when a process does."""

from __future__ import annotations

import contextlib
import math
import time

from openmodal import _args, _wire
from openmodal._dual import dual
from openmodal._spec import EndRecord
from openmodal._wire import Kind
from openmodal.engines import require
from openmodal.errors import SandboxNotRunningError, SandboxTerminatedError, SandboxTimeoutError
from openmodal.sandbox.handle import Handle, ended


class Leases(Handle):
    """Whom a sandbox ends with."""

    @dual
    async def renew(self) -> None:
        """Renew its `lease`. Every call to it does so, and this one does nothing else.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        await self._ping()

    @dual
    async def set_owner(self, owner: int | str | None) -> None:
        """Give it another owner, as `owner` of `create`; None: it ends with no process any more.

        Raises:
            InvalidError: there is no such process.
            UnsupportedError: the engine does not see processes of this machine.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        require(self._engine, "owner")
        try:
            await self._engine.own(self._id, _args.owner(owner))
        except ConnectionError as error:
            await self._why(error)
            raise

    @dual
    async def wait(self, raise_on_termination: bool = True, *, timeout: float | None = None) -> int:
        """Wait until it has ended; return the exit code of its main command.

        Args:
            raise_on_termination: raise when it was terminated, instead of returning 137.
            timeout: seconds to wait; it goes on afterwards.

        Raises:
            SandboxTimeoutError: its lifetime was over.
            SandboxTerminatedError: it was terminated.
            TimeoutError: it still runs after `timeout`.
        """
        seconds = _args.optional_seconds("timeout", timeout)
        end = self._end or await self._until_end(seconds)
        error = ended(self._id, end)
        if isinstance(error, SandboxTimeoutError) or (
            isinstance(error, SandboxTerminatedError) and raise_on_termination
        ):
            raise error
        return end.returncode

    async def _until_end(self, timeout: float | None) -> EndRecord:
        """Wait for the end. To wait is to call: a lease is renewed."""
        lease = (self._status or await self._look()).lease
        renewed_every = lease / 3 if lease else math.inf
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            pause = min(left, renewed_every)
            try:
                self._end = await self._engine.wait(self._id, None if pause == math.inf else max(0.0, pause))
                return self._end
            except TimeoutError:
                if left <= renewed_every:
                    raise
            with contextlib.suppress(SandboxNotRunningError):
                await self._ping()

    async def _ping(self) -> None:
        await self._new_command().ask(_wire.frame(Kind.PING))
