"""What can be changed, and looked at, while a sandbox runs."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from openmodal import _args
from openmodal._dual import dual
from openmodal._spec import Change, Usage
from openmodal.engines import require
from openmodal.errors import NotFoundError
from openmodal.sandbox.handle import Handle, ended

T = TypeVar("T")


class Live(Handle):
    """What can be changed, and looked at, while it runs."""

    @dual
    async def set_timeout(self, timeout: float) -> None:
        """Let it end `timeout` seconds from now, earlier or later than it was to end.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        seconds = _args.seconds("timeout", timeout)
        await self._change(
            "set_timeout", "deadline", lambda: self._engine.set_timeout(self._id, seconds), f"{seconds:g} s"
        )

    @dual
    async def pause(self) -> None:
        """Stop everything in it, and return when nothing runs. It keeps its memory, and its
        lifetime goes on. Does nothing if it is paused.

        It goes on with `resume`, or with any other call that needs it.

        Raises:
            EngineError: a process does not stop; the text names it, and everything goes on.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        await self._change("pause", "pause", lambda: self._engine.pause(self._id))

    @dual
    async def resume(self) -> None:
        """Let it go on after `pause`. Does nothing if it runs.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        await self._change("resume", "pause", lambda: self._engine.resume(self._id))
        if end := (await self._look()).ended:
            raise ended(self._id, end)

    @dual
    async def set_network(
        self,
        *,
        block_network: bool = False,
        outbound_cidr_allowlist: Sequence[str] | None = None,
        outbound_domain_allowlist: Sequence[str] | None = None,
    ) -> None:
        """Change its network to what `Sandbox.create` gives for these arguments: `block_network`,
        `outbound_cidr_allowlist`, `outbound_domain_allowlist`; none of them: the whole internet.

        Connections to what it may no longer reach end.

        One that was created with an allow list can get other lists, or be blocked, but not the
        whole network; another one cannot get an allow list.

        Raises:
            UnsupportedError: it cannot get that network; it keeps the one that it has.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        network = _args.network(block_network, outbound_cidr_allowlist, outbound_domain_allowlist)
        await self._change("set_network", "network_change", lambda: self._engine.set_network(self._id, network))

    @dual
    async def usage(self) -> Usage:
        """Tell what it has used: CPU time, memory, processes, disk and network.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        return await self._ask("usage", lambda: self._engine.usage(self._id))

    @dual
    async def diff(self) -> builtins.list[Change]:
        """Tell which files and folders differ from its image, sorted by path.

        What was only looked at, or opened for writing and left as it was, does not differ. Of a
        folder that was deleted, what was in it is not told.

        Raises:
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        return [*await self._ask("diff", lambda: self._engine.diff(self._id))]

    async def _change(
        self, call: str, promise: str, verb: Callable[[], Coroutine[Any, Any, None]], detail: str = ""
    ) -> None:
        with self._journal.call(call, detail=detail):
            await self._ask(promise, verb)

    async def _ask(self, promise: str, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        require(self._engine, promise)
        try:
            return await verb()
        except (ConnectionError, NotFoundError) as error:
            await self._why(error)
            raise
