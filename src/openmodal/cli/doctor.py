"""`openmodal doctor`: what this machine can do, what is missing, and the command that adds it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from openmodal import __version__
from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session

if TYPE_CHECKING:
    from openmodal.engines.check import Check


@click.command()
@click.option(
    "--network", is_flag=True, help="Also try to reach registries, and whether a cluster keeps its policies (two pods)."
)
@json_option
@engine_options
@pass_session
def doctor(session: Session, network: bool, as_json: bool) -> int:
    """Tell what this machine can do, what is missing, and the command that adds it; and which
    frameworks are here, in versions that were tested or not.

    Exit code 1 if sandboxes cannot run on this machine (the embedded engine; Docker is reported,
    too).
    """
    from openmodal import housekeeping
    from openmodal.integrations import versions

    checks = [*housekeeping.doctor(network=network, engine=session.engine_name), *versions.checks()]
    works = all(check.ok for check in checks if check.required)
    if as_json:
        _output.emit({"version": __version__, "works": works, "checks": [_described(check) for check in checks]})
    else:
        for check in checks:
            _show(check)
        click.echo("Sandboxes can run on this machine." if works else "Sandboxes cannot run on this machine yet.")
    return 0 if works else 1


def _described(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "ok": check.ok,
        "required": check.required,
        "text": check.text,
        "remedy": (not check.ok and check.remedy) or None,
    }


def _show(check: Check) -> None:
    mark = "ok" if check.ok else "MISSING" if check.required else "note"
    if sys.stdout.isatty():
        mark = click.style(mark, fg="green" if check.ok else "red" if check.required else "yellow")
    click.echo(f"{mark}\t{check.name}: {_output.printable(check.text)}")
    if check.remedy and not check.ok:
        click.echo(f"\t  -> {check.remedy}")
