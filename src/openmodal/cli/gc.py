"""`openmodal gc`: remove what crashes and power cuts left behind."""

from __future__ import annotations

import click

from openmodal import _trash
from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session


@click.command()
@click.option("--check", is_flag=True, help="Only tell what would be removed; exit code 1 if there is something.")
@json_option
@engine_options
@pass_session
def gc(session: Session, check: bool, as_json: bool) -> int:
    """Remove what crashes and power cuts left behind. Running sandboxes are left alone.

    Of the engine that is named; else of all that this machine has.
    """
    from openmodal import housekeeping

    collected = housekeeping.gc(check=check, engine=session.engine_name)
    if as_json:
        _output.emit({"left" if check else "removed": collected.removed})
    elif not collected.removed and not collected.failed:
        click.echo("Nothing is left behind.")
    for line in () if as_json else collected.removed:
        click.echo(f"{'left behind' if check else 'removed'}: {_output.printable(line)}")
    _trash.tell([*collected.failed])
    return 1 if check and collected.removed else 0
