"""What the global options say, and helpers that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from openmodal import Sandbox
    from openmodal.engines import Engine

F = TypeVar("F", bound=Callable[..., Any])

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Session:
    """The global options. `engine_name` is None where nobody said one: then configuration decides."""

    def __init__(self) -> None:
        self.debug = False
        self.engine_name: str | None = None

    def choose(self, *, local: bool, engine: str | None) -> None:
        """Take over --local and --engine."""
        if local and engine not in (None, "local"):
            raise click.UsageError("--local and --engine exclude each other; leave one out")
        self.engine_name = "local" if local else engine or self.engine_name

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that commands talk to: as the options say, else as configured, else this machine's."""
        from openmodal.engines import choose
        from openmodal.errors import InvalidError

        try:
            return choose(self.engine_name)
        except InvalidError as error:
            raise click.UsageError(str(error)) from error

    def sandbox(self, word: str) -> Sandbox:
        """The sandbox that is meant: by its id, its name, or the first letters of its id.

        Raises:
            NotFoundError: none is.
            InvalidError: several are.
        """
        from openmodal import Sandbox
        from openmodal.errors import InvalidError, NotFoundError

        try:
            return Sandbox.from_id(word, engine=self.engine)
        except NotFoundError:
            meant = _meant(word, Sandbox.list(engine=self.engine))
            # One that has ended says better what became of it than that there is none.
            meant = meant or _meant(word, Sandbox.list(ended=True, engine=self.engine), newest=True)
            if not meant:
                raise
        if len(meant) > 1:
            ids = ", ".join(sandbox.id for sandbox in meant[:5])
            raise InvalidError(f"{word!r} may be {ids}; write more of the id of the one you mean")
        return meant[0]


def _meant(word: str, sandboxes: Sequence[Sandbox], *, newest: bool = False) -> Sequence[Sandbox]:
    """Those with that name, or the newest of them; else those whose ids begin so."""
    named = {
        status.created: sandbox
        for sandbox in sandboxes
        if (status := sandbox.last_status) and status.name == word != ""
    }
    if named:
        return [named[max(named)]] if newest else [*named.values()]
    return [sandbox for sandbox in sandboxes if word and sandbox.id.startswith(word)]


pass_session = click.make_pass_decorator(Session, ensure=True)


def engine_options(function: F) -> F:
    """--local and --engine once more, for those who write them behind the command's name."""
    for option in (
        click.option("--local", is_flag=True, expose_value=False, callback=_local, hidden=True),
        click.option("--engine", metavar="NAME", expose_value=False, callback=_engine, hidden=True),
    ):
        function = option(function)
    return function


def build_options(function: F) -> F:
    """--quiet and --progress, of commands that may build an image."""
    for option in (
        click.option(
            "--progress",
            type=click.Choice(("auto", "live", "plain")),
            expose_value=False,
            callback=_progress,
            help="How builds of images are shown: live in a terminal, else plain.",
        ),
        click.option(
            "--quiet", "-q", is_flag=True, expose_value=False, callback=_quiet, help="Show nothing of builds."
        ),
    ):
        function = option(function)
    return function


def _progress(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """For the program that is run, too, and what it starts."""
    if value:
        os.environ["OPENMODAL_PROGRESS"] = value


def _quiet(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        _progress(ctx, parameter, "quiet")


def _local(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).choose(local=True, engine=None)


def _engine(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Session).choose(local=False, engine=value)
