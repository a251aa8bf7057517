"""Pages that run in a process of their own, and what asks them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.web import engine

LISTED = "tests.web.engine:Listed"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Page:
    """A page, and a visitor of it who has no browser."""

    link: str
    process: subprocess.Popen[str]
    log: Path
    cookie: str = ""
    place: str = ""

    @property
    def url(self) -> str:
        return self.link.partition("#")[0]

    @property
    def token(self) -> str:
        return self.link.partition("#token=")[2]

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)/", self.link)
        assert found
        return int(found[1])

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        """A call, with the cookie if there is one; `headers` with _ for -."""
        said = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie}
        if method != "GET":
            said["Origin"] = f"http://127.0.0.1:{self.port}"
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body.encode(), {name: value for name, value in said.items() if value})
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.SWITCHING_PROTOCOLS:  # what follows is no answer
                return Answer(answer.status, {}, b"")
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def call(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """A call below the visitor's place."""
        return self.ask(f"/api/{self.place}{path}", method, **headers)

    def enter(self, token: str = "") -> Answer:
        """Show the token, and keep the cookie."""
        answer = self.ask("/session", "POST", token or self.token)
        if answer.status == 200:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
            self.place = answer.json["place"]
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def opened(of: str = LISTED, *options: str, port: int = 0) -> Iterator[Page]:
    """A page of an engine as long as the block."""
    command = [sys.executable, "-m", "openmodal", "--engine", of, "dashboard", "--no-browser", "--port", str(port)]
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"PYTHONPATH": paths}
        )
        try:
            assert process.stdout
            link = process.stdout.readline().strip()
            assert link.startswith("http"), link
            yield Page(link, process, Path(log.name))
        finally:
            process.terminate()
            process.communicate(timeout=100)
            # What a page says goes to this test's stderr, as it would without the file.
            sys.stderr.write(Path(log.name).read_text())


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of engine.py, without sandboxes."""
    monkeypatch.setenv(engine.FILE, str(tmp_path / "sandboxes.json"))
    engine.write([])


@pytest.fixture
def page(listed: None) -> Iterator[Page]:
    """A page of that engine, which nobody has entered yet."""
    with opened() as page:
        yield page


@dataclass
class Visit:
    """A tab of a real browser, and what went wrong in it."""

    tab: Any
    errors: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def heard(self, said: Any) -> None:
        if said.type == "error":
            self.errors.append(said.text)

    def failed(self, error: Any) -> None:
        self.errors.append(str(error))

    def saw(self, request: Any) -> None:
        self.asked.add(request.url)

    def is_clean(self, page: Page) -> bool:
        """Whether there was no error, and nothing was asked of anybody else."""
        own = (page.url, page.url.replace("http:", "ws:"), "data:", f"blob:{page.url}")
        return self.errors == [] and not [url for url in self.asked if not url.startswith(own)]


@contextlib.contextmanager
def visiting(link: str, **options: Any) -> Iterator[Visit]:
    """A page in Chromium, as long as the block. Meanwhile no other event loop runs here."""
    driver: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's package chromium: make test")
    with driver.sync_playwright() as playwright:
        # As root there is no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            visit = Visit(browser.new_page(**options))
            visit.tab.set_default_timeout(60_000)
            visit.tab.on("console", visit.heard)
            visit.tab.on("pageerror", visit.failed)
            for kind in ("request", "websocket"):
                visit.tab.on(kind, visit.saw)
            visit.tab.goto(link)
            yield visit
        finally:
            browser.close()
