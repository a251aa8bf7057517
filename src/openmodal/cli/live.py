"""`openmodal sandbox pause`, `resume`, `usage` and `diff`."""

from __future__ import annotations

import click
import msgspec

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.cli._types import SANDBOX


@click.command()
@click.argument("id", type=SANDBOX)
@engine_options
@pass_session
def pause(session: Session, id: str) -> None:
    """Stop everything in the sandbox ID. It goes on when it is used; its lifetime goes on."""
    session.sandbox(id).pause()


@click.command()
@click.argument("id", type=SANDBOX)
@engine_options
@pass_session
def resume(session: Session, id: str) -> None:
    """Let the sandbox ID go on after `pause`."""
    session.sandbox(id).resume()


@click.command()
@click.argument("id", type=SANDBOX)
@json_option
@engine_options
@pass_session
def usage(session: Session, id: str, as_json: bool) -> None:
    """Show what the sandbox ID has used: CPU time, memory, processes, disk and network."""
    found = session.sandbox(id).usage()
    if as_json:
        _output.emit(msgspec.structs.asdict(found))
        return
    mebi = 2**20
    rows = (
        ("CPU time", None if found.cpu is None else f"{found.cpu:.2f} s"),
        ("memory", None if found.memory is None else _output.size(found.memory * mebi)),
        ("memory peak", None if found.memory_peak is None else _output.size(found.memory_peak * mebi)),
        ("processes", None if found.processes is None else str(found.processes)),
        ("written", None if found.written is None else _output.size(found.written)),
        ("received", None if found.received is None else _output.size(found.received)),
        ("sent", None if found.sent is None else _output.size(found.sent)),
    )
    _output.table(("WHAT", "USED"), ((name, said or "unknown") for name, said in rows), empty="")


@click.command()
@click.argument("id", type=SANDBOX)
@json_option
@engine_options
@pass_session
def diff(session: Session, id: str, as_json: bool) -> None:
    """Show which files of the sandbox ID differ from its image: A added, C changed, D deleted."""
    found = session.sandbox(id).diff()
    if as_json:
        _output.emit([msgspec.structs.asdict(change) for change in found])
        return
    for change in found:
        click.echo(f"{change.kind[0].upper()} {_output.printable(change.path)}")
