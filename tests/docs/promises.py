"""The tables of the documentation that are made from `openmodal.engines.PROMISES`. `python -m tests.docs.promises` writes them anew."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

from openmodal.engines import PROMISES, lacking
from openmodal.engines.docker.daemon import Daemon
from openmodal.engines.docker.engine import Docker
from openmodal.engines.embedded import Embedded, gvisor
from openmodal.engines.kubernetes import Kubernetes

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def engines() -> dict[str, frozenset[str]]:
    """What each of our engines lacks, by the name of its column."""
    with mock.patch.dict(os.environ, OPENMODAL_KUBERNETES_NETWORK_POLICY="true"):
        pods = lacking(Kubernetes())
    return {
        "`embedded`": lacking(Embedded()),
        "with gVisor": lacking(Embedded()) | gvisor.LACKS,
        "`docker`": lacking(Docker(daemon=Daemon("unix:///docker.sock"))),
        "another machine's": lacking(Docker(daemon=Daemon("tcp://elsewhere"))),
        "`kubernetes`": pods,
    }


def promises() -> Iterator[str]:
    """Of docs/engines.md: which engine keeps which promise."""
    columns = engines()
    yield from head("promise", "", *columns)
    for name, promise in PROMISES.items():
        yield row(f"`{name}`", promise.text, *("no" if name in lacks else "yes" for lacks in columns.values()))


def arguments() -> Iterator[str]:
    """Of docs/sandboxes.md: which argument asks for a promise, and who keeps it."""
    columns = engines()
    yield from head("argument", "asks for", "engines")
    for name, promise in PROMISES.items():
        if promise.argument:
            kept = [column for column, lacks in columns.items() if column.startswith("`") and name not in lacks]
            yield row(f"`{promise.argument}`", promise.text, ", ".join(kept))


def head(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*cells)
    yield row(*["---"] * len(cells))


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


TABLES = {"engines.md": promises, "sandboxes.md": arguments}


def written(page: str, first: str) -> list[str]:
    """The table of a page that begins with this line."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = lines.index(first)
    return lines[start : next(end for end in range(start, len(lines)) if not lines[end].startswith("|"))]


def write(page: str, table: Iterable[str]) -> None:
    """Put the table in the place of the one that is there."""
    made = list(table)
    text = (DOCS / page).read_text(encoding="utf-8")
    (DOCS / page).write_text(text.replace("\n".join(written(page, made[0])), "\n".join(made)), encoding="utf-8")


if __name__ == "__main__":
    for name, make in TABLES.items():
        write(name, make())
