"""`openmodal gc`: remove what crashes and power cuts left behind."""

from __future__ import annotations

import click

from openmodal.cli import _embedded, _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session


@click.command()
@click.option("--check", is_flag=True, help="Only tell what would be removed; exit code 1 if there is something.")
@json_option
@engine_options
@pass_session
def gc(session: Session, check: bool, as_json: bool) -> int:
    """Remove what crashes and power cuts left behind. Running sandboxes are left alone."""
    embedded = _embedded.of(session)
    found = embedded.gc(check=check)
    if as_json:
        _output.emit({"left" if check else "removed": list(found)})
    elif not found:
        click.echo("Nothing is left behind.")
    for line in () if as_json else found:
        click.echo(f"{'left behind' if check else 'removed'}: {_output.printable(line)}")
    return 1 if check and found else 0
