"""`openmodal sandbox show`: what was done with a sandbox."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session
from openmodal.cli._types import SANDBOX
from openmodal.cli.status import described

if TYPE_CHECKING:
    from openmodal._journal import Event
    from openmodal._spec import ExitRecord

_COLUMNS = ("TIME", "TOOK", "CALL", "WHAT", "RESULT")
_WIDEST = 200


@click.command()
@click.argument("id", type=SANDBOX)
@json_option
@engine_options
@pass_session
def show(session: Session, id: str, as_json: bool) -> None:
    """Show what was done with the sandbox ID, also for a day after its end.

    Commands and how they ended, files that were read and written, checkpoints, resets, the end.
    """
    from openmodal._journal import fields

    sandbox = session.sandbox(id)
    events, status = sandbox.timeline(), sandbox.status()
    if as_json:
        _output.emit({**described(status), "events": [fields(event) for event in events]})
        return
    begin = status.created or (events[0].at if events else 0.0)
    _output.table(_COLUMNS, (_row(event, begin) for event in events), empty=f"Nothing is known of what {id} did.")


def _row(event: Event, begin: float) -> Sequence[str]:
    what = " ".join(filter(None, (event.path, shlex.join(event.argv) + (" …" if event.cut else ""))))
    record = event.record
    seconds = record.ended - record.started if record else event.seconds
    return (
        f"+{max(0.0, event.at - begin):.2f}s",
        "" if seconds is None else _length(seconds),
        event.call,
        what if len(what) <= _WIDEST else what[:_WIDEST] + " …",
        result(event),
    )


def _length(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else _output.duration(seconds)


def result(event: Event) -> str:
    """What came of a call, in some words."""
    known = [
        _ended(event.record) if event.record else "",
        event.error,
        "" if event.size is None else _output.size(event.size),
        event.detail,
        f"by {event.by}" if event.by else "",
    ]
    return ", ".join(filter(None, known)) or ("running" if event.seconds is None and event.command else "")


def _ended(record: ExitRecord) -> str:
    why = [word for word, holds in (("timed out", record.timed_out), ("out of memory", record.out_of_memory)) if holds]
    used = f"CPU {_length(record.cpu)}, {_output.size(record.memory << 10)}"
    return ", ".join((f"exit {record.returncode}", *why, used))
