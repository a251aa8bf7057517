"""How commands show what they found: a table in a terminal, tabs in a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.table import Table


def tell(text: str, *, newline: bool = True) -> None:
    """Say something on stderr. Whether anybody takes it changes nothing: commands do what they are for, and exit as they would."""
    from openmodal.build.progress import Quiet

    Quiet(sys.stderr).write(text + "\n" * newline)


def agreed(lines: Sequence[str], question: str, *, yes: bool) -> bool:
    """Show what is to go and, in a terminal, ask whether it may. A program in a pipe has said so by its command."""
    for line in lines:
        tell(printable(line))
    asks = bool(lines) and not yes and sys.stdin.isatty() and sys.stderr.isatty()
    if asks and not click.confirm(question, err=True):
        tell("Nothing was done.")
        return False
    return True


def emit(value: object) -> None:
    """Print JSON."""
    print(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print rows under column names. `empty` is said on stderr when there are none."""
    found = [[printable(cell) for cell in row] for row in rows]
    if not found:
        tell(empty)
    elif sys.stdout.isatty():
        _draw(columns, found)
    else:
        for row in (columns, *found):
            print(encodable("\t".join(row), sys.stdout))


def watch(columns: Sequence[str], rows: Callable[[], Iterable[Sequence[str]]], period: float) -> None:
    """Show a table anew every so many seconds, until Ctrl-C; in a pipe, one after the other."""
    from rich.console import Console
    from rich.live import Live

    if not sys.stdout.isatty():
        while True:
            table(columns, rows(), empty="")
            sys.stdout.flush()
            time.sleep(period)
    with Live(_drawn(columns, rows()), console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(period)
            live.update(_drawn(columns, rows()), refresh=True)


def _draw(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console

    Console().print(_drawn(columns, rows))


def _drawn(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        # Text: a tag or a name is no markup.
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    return drawn


def printable(text: str) -> str:
    """A text that somebody else chose, fit for a terminal and one line: control characters are shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def encodable(text: str, stream: TextIO) -> str:
    """A text as the stream can take it: what its encoding lacks is written as an escape."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def count(number: int, thing: str) -> str:
    """1 layer, 2 layers."""
    return (
        f"{number} {thing}" if number == 1 else f"{number} {thing}es" if thing.endswith("x") else f"{number} {thing}s"
    )


def duration(seconds: float) -> str:
    """About how long: 45s, 12m, 3h, 2d."""
    seconds = max(0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """About how many bytes: 512 B, 1.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
