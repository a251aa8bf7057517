"""Whether what runs in a sandbox is ready: asked by who waits for it."""

from __future__ import annotations

import time

from openmodal import _args, connection
from openmodal._dual import Sleep, dual
from openmodal._spec import Readiness
from openmodal.errors import ExecTimeoutError, InvalidError, SandboxConnectionRefusedError
from openmodal.probe import Probe
from openmodal.process import StreamType
from openmodal.sandbox.commands import Commands
from openmodal.sandbox.handle import ended


class Ready(Commands):
    """Waiting for a service."""

    @dual
    async def wait_until_ready(self, timeout: float = 300.0) -> None:
        """Return when the sandbox's `readiness_probe` succeeds.

        Args:
            timeout: seconds to wait; the sandbox goes on afterwards.

        Raises:
            InvalidError: it was created without a probe.
            TimeoutError: it is not ready after `timeout`.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        timeout = _args.seconds("timeout", timeout)
        status = await self._look()
        if status.ended:
            raise ended(self._id, status.ended)
        probe = status.readiness
        if not probe:
            raise InvalidError(
                f"sandbox {self._id} has no readiness probe; create it with readiness_probe=Probe.with_tcp(port)"
            )
        ready = await (self._listens(probe, timeout) if probe.port else self._succeeds(probe, timeout))
        if not ready:
            raise TimeoutError(f"sandbox {self._id} is not ready after {timeout:g} s: {_question(probe)}")

    async def _listens(self, probe: Readiness, timeout: float) -> bool:
        try:
            opened = await connection.connect(self._new_command(), probe.port, timeout)
        except SandboxConnectionRefusedError:
            return False
        await opened._close()
        return True

    async def _succeeds(self, probe: Readiness, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            try:
                done = await self._exec_unnoted(
                    *probe.argv, timeout=left, stdout=StreamType.DEVNULL, stderr=StreamType.DEVNULL
                )
            except ExecTimeoutError:
                return False
            if done.returncode == 0:
                return True
            await Sleep(min(probe.interval_ms / 1000, max(0.0, until - time.monotonic())))
        return False


def _question(probe: Readiness) -> str:
    if probe.port:
        return f"nothing listens on port {probe.port}"
    return f"{' '.join(probe.argv)!r} does not exit with 0"


def asked(probe: Probe | None) -> Readiness | None:
    """How a sandbox is asked whether it is ready."""
    if probe is not None and not isinstance(probe, Probe):
        raise InvalidError(
            f"readiness_probe must be an openmodal.Probe, not {type(probe).__name__}; use Probe.with_tcp(port)"
        )
    return probe.asked if probe else None
