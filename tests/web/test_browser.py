"""The page in a real browser, with an engine that only tells of sandboxes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from openmodal._spec import EndRecord
from tests.web import engine
from tests.web.conftest import Page, visiting

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
ENDED = EndRecord("memory", 137, 1.0, f"it used too much memory {HOSTILE}")


def test_the_page_shows_what_runs_and_what_a_sandbox_says_is_text(page: Page) -> None:
    engine.write(
        [engine.sandbox("app-1", name=HOSTILE, tags=(("tag", HOSTILE),)), engine.sandbox("app-2", ended=ENDED)]
    )
    with visiting(page.link) as visit:
        tab = visit.tab
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
        assert visit.is_clean(page)


@pytest.mark.parametrize("width", [400, 1400])
def test_of_a_thousand_sandboxes_those_near_to_what_is_seen_are_drawn(page: Page, width: int) -> None:
    """All were drawn, and changed each second: that took a third of a core, and its memory grew."""
    engine.write([engine.sandbox(f"app-{number}", created=time.time() - number) for number in range(1000)])
    with visiting(page.link, viewport={"width": width, "height": 800}) as visit:
        tab = visit.tab
        first, last = (tab.get_by_role("link", name=f"running: app-{number}", exact=True) for number in (0, 999))
        first.wait_for()
        assert tab.locator("tbody tr[class]").count() < 100
        first.focus()
        for _ in range(3):  # the height of those that nobody has seen is a guess
            tab.evaluate("scrollTo(0, document.body.scrollHeight)")
            tab.wait_for_timeout(200)
        last.wait_for()
        assert tab.locator("tbody tr[class]").count() < 100
        assert first.evaluate("element => element === document.activeElement")
        first.blur()
        tab.evaluate("scrollTo(0, 0)")
        last.wait_for(state="detached")
        tab.get_by_role("searchbox").fill("app-99")
        tab.get_by_text("app-990", exact=True).wait_for()
        assert tab.locator("tbody tr").count() == 11
        assert visit.is_clean(page)


@pytest.mark.parametrize("file", ["static/app.mjs", "static/sandboxes.mjs", "vendor/preact.mjs", "static/style.css"])
def test_what_does_not_arrive_is_asked_for_again(page: Page, file: str) -> None:
    """A browser drops what it is loading when an interface of this machine comes or goes."""
    engine.write([engine.sandbox("app-1", name="here")])
    with visiting("about:blank") as visit:
        lost: list[str] = []

        def lose(route: Any) -> None:
            if lost:
                route.fallback()
            else:
                lost.append(route.request.url)
                route.abort("internetdisconnected")

        visit.tab.route(f"**/{file}", lose)
        visit.tab.goto(page.link)
        visit.tab.get_by_text("here", exact=True).wait_for()
        assert len(lost) == 1
        assert visit.tab.evaluate("sessionStorage.tries") is None


def test_a_file_that_never_arrives_is_not_asked_for_for_ever(page: Page) -> None:
    with visiting("about:blank") as visit:
        asked: list[str] = []

        def lose(route: Any) -> None:
            asked.append(route.request.url)
            route.abort("internetdisconnected")

        visit.tab.route("**/static/app.mjs", lose)
        visit.tab.goto(page.link)
        visit.tab.wait_for_timeout(6000)
        assert len(asked) == 6
