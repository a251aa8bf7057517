"""`openmodal pool …`: sandboxes kept ready on a cluster."""

from __future__ import annotations

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, build_options, engine_options, json_option, pass_session
from openmodal.cli._types import MEBIBYTES
from openmodal.cli.image import named


@click.command()
@click.argument("name")
@click.option(
    "--image", metavar="NAME", required=True, help="An image of a registry, one that is published, or FILE.py::NAME."
)
@click.option("--size", type=int, required=True, metavar="N", help="How many sandboxes are kept ready.")
@click.option("--cpu", type=float, metavar="CORES", help="How many cores each may use.")
@click.option("--memory", type=MEBIBYTES, metavar="SIZE", help="How much memory each may use: 512, 2g.")
@click.option("--disk", type=MEBIBYTES, metavar="SIZE", help="How much disk each may use: 512, 10g.")
@build_options
@engine_options
@pass_session
def create(
    session: Session, name: str, image: str, size: int, cpu: float | None, memory: int | None, disk: int | None
) -> None:
    """Keep sandboxes of an image ready; Sandbox.create takes one where image and limits are the same."""
    from openmodal import Pool

    chosen = named(image, session.engine)
    assert chosen is not None, "--image is required"
    Pool.create(name, image=chosen, size=size, cpu=cpu, memory=memory, disk=disk, engine=session.engine)


@click.command("list")
@json_option
@engine_options
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Show the pools, and how many sandboxes are ready in each."""
    from openmodal import Pool

    found = list(Pool.list(engine=session.engine))
    if as_json:
        _output.emit([{"name": p.name, "image": p.image, "size": p.size, "ready": p.ready} for p in found])
        return
    _output.table(
        ("POOL", "READY", "SIZE", "IMAGE"),
        ((p.name, str(p.ready), str(p.size), p.image) for p in found),
        empty="There is no pool; `openmodal pool create` makes one.",
    )


@click.command()
@click.argument("name")
@engine_options
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete a pool. Sandboxes that came from it run on."""
    from openmodal import Pool

    Pool.of(name, engine=session.engine).delete()
