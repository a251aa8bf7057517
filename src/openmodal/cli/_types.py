"""What people write on a command line: durations, sizes, sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from openmodal import _units
from openmodal.cli._session import Session

if TYPE_CHECKING:
    _Number = click.ParamType[float]
    _Whole = click.ParamType[int]
    _Word = click.ParamType[str]
else:  # before click 8.4 it takes no parameter
    _Number = _Whole = _Word = click.ParamType


class Duration(_Number):
    """Seconds, of "90", "5m", "1h30m", "2d"."""

    name = "duration"

    def __init__(self, unit: float = 1.0) -> None:
        """`unit`: how many seconds a bare number counts."""
        self._unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):  # a default
            return value
        try:
            return float(value) * self._unit
        except ValueError:
            found = _units.seconds(value)
        if found is None:
            self.fail(f"{value!r} is no duration; write 90, 30s, 5m, 1h30m or 2d", param, ctx)
        return found


class Mebibytes(_Whole):
    """Whole MiB, of "512", "512m", "2g"."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _units.mebibytes(str(value))
        if found is None:
            self.fail(f"{value!r} is no size; write MiB as a number, or 512m, 2g", param, ctx)
        return found


class SandboxWord(_Word):
    """An id, a name, or the first letters of an id; a shell completes them."""

    name = "sandbox"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from openmodal import Sandbox
        from openmodal.errors import Error

        try:
            running = Sandbox.list(engine=ctx.ensure_object(Session).engine)
        except (Error, OSError, click.UsageError):
            return []
        found = [each.last_status for each in running if each.last_status]
        return [
            CompletionItem(word, help=each.app)
            for each in found
            for word in filter(None, (each.id, each.name))
            if word.startswith(incomplete)
        ]


DURATION = Duration()
DAYS = Duration(86400.0)
MEBIBYTES = Mebibytes()
SANDBOX = SandboxWord()
