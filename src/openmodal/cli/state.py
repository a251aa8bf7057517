"""`openmodal sandbox snapshot` and `fork`."""

from __future__ import annotations

from typing import Any

import click

from openmodal.cli._session import Session, engine_options, pass_session
from openmodal.cli._types import DURATION, SANDBOX


@click.command()
@click.argument("id", type=SANDBOX)
@click.argument("name")
@engine_options
@pass_session
def snapshot(session: Session, id: str, name: str) -> None:
    """Make an image of the files of the sandbox ID as they are now, and publish it as NAME.

    `--image NAME` of other commands, and Image.from_name(NAME) in Python, are that image.
    """
    from openmodal import _args

    checked = _args.name("NAME", name)  # before files are copied
    session.sandbox(id).snapshot_filesystem().publish(checked, engine=session.engine)


@click.command()
@click.option("-n", "n", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--name", help="A name for it; several get NAME-1, NAME-2, and so on.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Its longest life: 90, 1h30m; as long as the first's.")
@click.argument("id", type=SANDBOX)
@engine_options
@pass_session
def fork(session: Session, /, id: str, **options: Any) -> None:
    """Create sandboxes that go on from the files of the sandbox ID, and print their ids."""
    for made in session.sandbox(id).fork(**options):
        click.echo(made.id)
