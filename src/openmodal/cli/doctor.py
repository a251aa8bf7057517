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
    """Tell what this machine can do, what is missing, and the command that adds it.

    Exit code 1 if sandboxes cannot run on this machine (the embedded engine; Docker is reported, too).
    """
    from openmodal.engines.docker.doctor import examine as examine_docker
    from openmodal.engines.embedded.doctor import Machine, examine

    checks = [_settings(session), *examine(Machine.here(), network=network), *examine_docker()]
    works = all(check.ok for check in checks if check.required)
    checks += _cluster(session, network=network)
    if as_json:
        _output.emit({"version": __version__, "works": works, "checks": [_described(check) for check in checks]})
    else:
        for check in checks:
            _show(check)
        click.echo("Sandboxes can run on this machine." if works else "Sandboxes cannot run on this machine yet.")
    return 0 if works else 1


def _settings(session: Session) -> Check:
    """What environment, configuration and options say that every creation would refuse."""
    from openmodal import _args, _config
    from openmodal.engines import load
    from openmodal.engines.check import Check
    from openmodal.errors import Error

    try:
        _args.controls(_config.allow_degraded())
        load(session.engine_name or _config.engine() or "local")
    except Error as error:
        return Check("settings", False, str(error), "correct it in the environment or the configuration", required=True)
    return Check("settings", True, "understood")


def _cluster(session: Session, *, network: bool) -> list[Check]:
    """The cluster, if sandboxes are to run on one."""
    from openmodal import _config

    if (session.engine_name or _config.engine()) != "kubernetes":
        return []
    from openmodal.engines.kubernetes.admin.doctor import examine

    return [*examine(network=network)]


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
