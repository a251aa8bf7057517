"""`openmodal config`: the configuration file."""

from __future__ import annotations

from typing import Any

import click

from openmodal import _config
from openmodal.cli import _configuration, _output
from openmodal.cli._session import json_option
from openmodal.engines import place


@click.command()
def path() -> None:
    """Print where the configuration file is, or would be."""
    click.echo(_config.config_file())


@click.command()
@json_option
def show(as_json: bool) -> None:
    """Show what the configuration file sets. Variables of the environment beat it."""
    found = dict(_flat(_config.settings()))
    if as_json:
        _output.emit(found)
        return
    rows = ((name, str(value)) for name, value in found.items())
    _output.table(("SETTING", "VALUE"), rows, empty=f"Nothing is set in {_config.config_file()}.")


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in table.items():
        pairs += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return pairs


@click.command("set")
@click.argument("name")
@click.argument("value")
def set_(name: str, value: str) -> None:
    """Set NAME, for example engine or kubernetes.namespace, to VALUE in the configuration file."""
    values: Any = value
    for part in reversed(name.split(".", 1)):  # names of [bases] have dots: bases.python:3.12
        values = {part: values}
    file = _config.config_file()
    text = _configuration.merged(file, values, {})
    if name == "engine":
        place(value)
    # A setting that no command would take is not written.
    parsed = _config.parse(file, text)
    if name.startswith("kubernetes."):
        from openmodal.engines.kubernetes import settings

        settings.checked(parsed["kubernetes"])
    _configuration.write(file, text)
