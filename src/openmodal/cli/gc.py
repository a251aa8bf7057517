"""`openmodal gc`: remove what crashes and power cuts left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import click

from openmodal import _config, _trash
from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.errors import UnsupportedError


@click.command()
@click.option("--check", is_flag=True, help="Only tell what would be removed; exit code 1 if there is something.")
@json_option
@engine_options
@pass_session
def gc(session: Session, check: bool, as_json: bool) -> int:
    """Remove what crashes and power cuts left behind. Running sandboxes are left alone.

    Of the engine that is named; else of all that this machine has.
    """
    found: list[str] = []
    failed: list[str] = []
    for engine in _engines(session):
        with _trash.going_on(failed):
            found += engine.gc(check=check)
    if as_json:
        _output.emit({"left" if check else "removed": found})
    elif not found and not failed:
        click.echo("Nothing is left behind.")
    for line in () if as_json else found:
        click.echo(f"{'left behind' if check else 'removed'}: {_output.printable(line)}")
    _trash.tell(failed)
    return 1 if check and found else 0


@runtime_checkable
class _Collects(Protocol):
    """An engine with leftovers of its own."""

    def gc(self, *, check: bool = False) -> Sequence[str]: ...


def _engines(session: Session) -> Sequence[_Collects]:
    from openmodal.engines import load
    from openmodal.engines.docker import daemon

    if session.engine_name in (None, "local") and _config.engine() in (None, "local"):
        engines = [load("embedded"), *([load("docker")] if daemon.is_here() else [])]
    else:
        engines = [session.engine]
    collecting = [engine for engine in engines if isinstance(engine, _Collects)]
    if not collecting:
        raise UnsupportedError(f"the {session.engine.name} engine has no `gc`")
    return collecting
