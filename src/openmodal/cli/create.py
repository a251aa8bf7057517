"""`openmodal sandbox create`: a sandbox that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from openmodal.cli._session import Session, build_options, engine_options, pass_session
from openmodal.cli._types import DURATION, MEBIBYTES
from openmodal.cli.image import image_option, named
from openmodal.cli.sandbox import assignments, env_option, words

F = TypeVar("F", bound=Callable[..., Any])


def sandbox_options(function: F) -> F:
    """What a new sandbox is asked for, as keywords of `Sandbox.create`; `image` is for `named`."""
    for option in reversed(
        (
            image_option,
            click.option("--cpu", type=float, metavar="CORES", help="How many cores it may use."),
            click.option("--memory", type=MEBIBYTES, metavar="SIZE", help="How much memory it may use: 512, 2g."),
            click.option("--workdir", "-w", metavar="PATH", help="Where commands start."),
            click.option("--block-network", is_flag=True, help="No network."),
            click.option("--network", metavar="NAME", help="A network that sandboxes share."),
            click.option("--network-alias", multiple=True, metavar="NAME", help="Its name there; repeatable."),
            env_option,
        )
    ):
        function = option(function)
    return function


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", help="A name for it, unique in its app.")
@click.option("--app", default="cli", show_default=True, help="What it belongs to.")
@click.option("--timeout", type=DURATION, default=300.0, metavar="TIME", help="Its longest life: 90, 1h30m; 5 minutes.")
@click.option("--idle-timeout", type=DURATION, metavar="TIME", help="End it if nothing uses it for so long.")
@click.option("--disk", type=MEBIBYTES, metavar="SIZE", help="How much disk it may use: 512, 10g.")
@click.option("--port", "-p", "ports", type=int, multiple=True, help="A port that this machine reaches; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", callback=assignments, help="A label; repeatable.")
@sandbox_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@build_options
@engine_options
@pass_session
def create(session: Session, /, app: str, image: str | None, command: tuple[str, ...], **options: Any) -> None:
    """Create a sandbox that stays until its timeout or `stop`, and print its id.

    COMMAND is its main command, at whose end it ends.
    """
    from openmodal import App, Sandbox

    chosen = named(image, session.engine)
    click.echo(Sandbox.create(*words(command), app=App(app), image=chosen, engine=session.engine, **options).id)
