"""The page in a real browser, with an engine that only tells of sandboxes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from openmodal._spec import EndRecord
from tests.web import engine
from tests.web.conftest import Page

playwright: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium: make test")

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
ENDED = EndRecord("memory", 137, 1.0, f"it used too much memory {HOSTILE}")


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # As root there is no sandbox of its own.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_shows_what_runs_and_what_a_sandbox_says_is_text(page: Page, browser: Any) -> None:
    engine.write(
        [engine.sandbox("app-1", name=HOSTILE, tags=(("tag", HOSTILE),)), engine.sandbox("app-2", ended=ENDED)]
    )
    tab = browser.new_page()
    said: list[str] = []
    asked: set[str] = set()
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.add(request.url))
    tab.goto(page.link)
    tab.get_by_text(HOSTILE, exact=True).first.wait_for()
    tab.get_by_text(f"it used too much memory {HOSTILE}").wait_for()
    assert tab.locator("main img").count() == 0 and "owned" not in tab.title()
    assert "token" not in tab.url
    # One of another process appears by itself; the filter finds it by the keyboard alone.
    engine.write([engine.sandbox("app-3", name="new", app="other")])
    tab.get_by_text("new", exact=True).wait_for()
    tab.keyboard.press("/")
    tab.keyboard.type("app:other")
    tab.locator("tbody tr").nth(1).wait_for(state="detached")
    tab.get_by_role("button", name="Stop new").focus()
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Stop", exact=True).focus()
    tab.keyboard.press("Enter")
    tab.get_by_text("it was terminated").wait_for()
    # Left and entered again: the rows come again.
    for view in ("Images", "Pools", "Machine", "Sandboxes"):
        tab.get_by_role("link", name=view, exact=True).click()
        tab.get_by_role("heading", name=view, exact=True).wait_for()
    tab.get_by_text("it was terminated").wait_for()
    assert said == []
    assert {url for url in asked if not url.startswith((page.url, "data:"))} == set()


def test_a_thousand_sandboxes_are_listed(page: Page, browser: Any) -> None:
    engine.write([engine.sandbox(f"app-{number}") for number in range(1000)])
    tab = browser.new_page()
    tab.goto(page.link)
    tab.locator("tbody tr").nth(999).wait_for(state="attached")
