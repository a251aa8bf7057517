"""What a door counts, in Prometheus' text format."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from grpclib.const import Handler
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """Counts of calls, by name and by what became of them, and how long they took."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, str]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()

    def measured(self, table: dict[str, Handler]) -> dict[str, Handler]:
        """The handlers, each of which is counted."""
        return {
            path: handler._replace(func=self._counted(path.rpartition("/")[2], handler.func))
            for path, handler in table.items()
        }

    def text(self, sandboxes: int) -> str:
        """All that was counted."""
        lines = [
            "# HELP openmodal_sandboxes Sandboxes that run.",
            "# TYPE openmodal_sandboxes gauge",
            f"openmodal_sandboxes {sandboxes}",
            "# HELP openmodal_calls_total Calls, by name and status.",
            "# TYPE openmodal_calls_total counter",
        ]
        for (name, status), count in sorted(self._calls.items()):
            lines.append(f'openmodal_calls_total{{call="{name}",status="{status}"}} {count}')
        lines += [
            "# HELP openmodal_call_seconds How long calls took.",
            "# TYPE openmodal_call_seconds histogram",
        ]
        for name in sorted({name for name, _ in self._calls}):
            count = sum(times for (other, _), times in self._calls.items() if other == name)
            for most in _BUCKETS:
                lines.append(f'openmodal_call_seconds_bucket{{call="{name}",le="{most}"}} {self._within[name, most]}')
            lines.append(f'openmodal_call_seconds_bucket{{call="{name}",le="+Inf"}} {count}')
            lines.append(f'openmodal_call_seconds_sum{{call="{name}"}} {self._seconds[name]:.6f}')
            lines.append(f'openmodal_call_seconds_count{{call="{name}"}} {count}')
        return "\n".join(lines) + "\n"

    def _counted(
        self, name: str, serve: Callable[[Stream[Any, Any]], Awaitable[None]]
    ) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def counted(stream: Stream[Any, Any]) -> None:
            began, status = time.monotonic(), "CANCELLED"
            try:
                await serve(stream)
                status = "OK"
            except GRPCError as error:
                status = error.status.name
                raise
            finally:
                seconds = time.monotonic() - began
                self._calls[name, status] += 1
                self._seconds[name] += seconds  # type: ignore[assignment]
                for most in _BUCKETS:
                    self._within[name, most] += seconds <= most

        return counted


__all__ = ["Metrics"]
