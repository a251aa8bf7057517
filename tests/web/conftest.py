"""Pages that run in a process of their own, and what asks them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    try:
        assert process.stdout
        link = process.stdout.readline().strip()
        assert link.startswith("http"), link
        yield Page(link, process)
    finally:
        process.terminate()
        process.communicate(timeout=100)


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
