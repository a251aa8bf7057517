"""The web page in a real browser: with 1,000 sandboxes that are only told of, and beside a sandbox
that works.

Updates come faster here than one a second, so that memory that grows is seen in a minute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import openmodal
from benchmarks.machine import Stopwatch
from benchmarks.results import Row

SANDBOXES = 1000
CHANGED = 48  # in an update: as many as the page measures in one look
SECONDS = 10
UPDATES = 200
COMMANDS = 30

PAINTED = """
new Promise((done) => {
  const look = () => document.querySelector("tbody tr[class]")
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now())))
    : requestAnimationFrame(look);
  look();
})
"""
"""When the first rows are painted, in ms since the page was asked for: a frame's callbacks come
before its painting, and a timer of theirs after it."""

UPDATE = """
() => fetch(`/api/${localStorage["openmodal.place"]}/sandboxes/app-0/resume`, {method: "POST"})
  .then((answer) => answer.text())
"""
"""An act of a visitor, after which the page looks at once."""


def measure(create: Callable[[], openmodal.Sandbox], rounds: int) -> dict[str, Row]:
    """All rows; none without a browser and its driver."""
    if not (shutil.which("chromium") and importlib.util.find_spec("playwright")):
        return {}
    found = rows()
    with _listed() as flip:
        _list(found, flip, rounds)
    _beside(found["page_exec"], create, rounds)
    return found


def rows() -> dict[str, Row]:
    """Every step, with its target."""
    return {
        "page_paint": Row(f"page of {SANDBOXES:,} sandboxes, until rows are painted", target=1000),
        "page_update": Row(f"main thread of that page in a second, {CHANGED} change", target=50),
        "page_memory": Row(f"more memory of that page after {UPDATES} updates", "MiB", target=1),
        "page_exec": Row("exec true with a page open, beside none", times_floor=1.1),
    }


@contextmanager
def _listed() -> Iterator[Callable[[], None]]:
    """Have an engine that tells of many sandboxes; gives what changes some of them, others each time."""
    from tests.web import engine

    sandboxes = [engine.sandbox(f"app-{number}", tags=(("run", "1"),)) for number in range(SANDBOXES)]
    turn = 0

    def flip() -> None:
        nonlocal turn
        turn += 1
        for number in range(turn * CHANGED, (turn + 1) * CHANGED):
            sandboxes[number % SANDBOXES] = msgspec.structs.replace(
                sandboxes[number % SANDBOXES], tags=(("run", str(turn)),), paused=bool(turn % 2)
            )
        engine.write(sandboxes)

    with tempfile.TemporaryDirectory(prefix="openmodal-bench-") as folder:
        os.environ[engine.FILE] = str(Path(folder) / "sandboxes.json")
        try:
            flip()
            yield flip
        finally:
            del os.environ[engine.FILE]


def _list(found: dict[str, Row], flip: Callable[[], None], rounds: int) -> None:
    from tests.web.conftest import opened, visiting

    with opened() as page, visiting(page.link) as visit:
        browser = visit.tab.context.new_cdp_session(visit.tab)
        browser.send("Network.setCacheDisabled", {"cacheDisabled": True})
        browser.send("Performance.enable")
        visit.tab.locator("tbody tr").first.wait_for()  # the token is exchanged
        for _ in range(rounds):
            visit.tab.goto(page.url)
            found["page_paint"].ours.append(visit.tab.evaluate(PAINTED))
        _updates(found["page_update"], browser, flip)
        _much(found["page_memory"], visit.tab, browser, flip)
        if not visit.is_clean(page):
            found["page_memory"].broken = f"the page has errors: {visit.errors}"


def _updates(row: Row, browser: Any, flip: Callable[[], None]) -> None:
    """What the page does in each second: the update, and the ages that go on."""
    for _ in range(SECONDS):
        flip()
        before = _metric(browser, "TaskDuration")
        time.sleep(1)
        row.ours.append((_metric(browser, "TaskDuration") - before) * 1000)


def _much(row: Row, tab: Any, browser: Any, flip: Callable[[], None]) -> None:
    """The first tenth is not counted: code is compiled, and caches are filled."""
    begin = 0.0
    for number in range(UPDATES + UPDATES // 10):
        if number == UPDATES // 10:
            begin = _memory(browser)
        flip()
        tab.evaluate(UPDATE)
    row.ours.append((_memory(browser) - begin) / (1 << 20))
    row.note = f"it has {begin / (1 << 20):.1f} MiB"


def _memory(browser: Any) -> float:
    browser.send("HeapProfiler.collectGarbage")
    return _metric(browser, "JSHeapUsedSize")


def _metric(browser: Any, name: str) -> float:
    metrics = browser.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == name))


def _beside(row: Row, create: Callable[[], openmodal.Sandbox], rounds: int) -> None:
    """Commands while the page of their sandbox is open, in turns with an empty tab."""
    from tests.web.conftest import opened, visiting

    with create() as sandbox, opened("embedded") as page, visiting(page.link) as visit:
        for _ in range(rounds):
            for address, figures in ((f"{page.url}#/sandboxes/{sandbox.id}", row.ours), ("about:blank", row.floor)):
                visit.tab.goto(address)
                time.sleep(1)  # what the browser does for a new page is no update
                for _ in range(COMMANDS):
                    with Stopwatch() as watch:
                        sandbox.exec("true")
                    figures.append(watch.seconds * 1000)
                    time.sleep(0.02)  # so that the turn lasts for a look of the page or two
