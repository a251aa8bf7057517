"""Who may see the page, and from where."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from openmodal.web.guard import LOOPBACK, Guard
from openmodal.web.sessions import Sessions
from tests.web import engine
from tests.web.conftest import LISTED, Page, opened

STOP = "/sandboxes/app-1/stop"
UPLOAD = "/sandbox/app-1/file?path=/a"


def terminal(page: Page, **headers: str) -> int:
    """What a page is answered that asks for a terminal: 101, or why not."""
    own = {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": f"http://127.0.0.1:{page.port}"}
    keys = {"Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    return page.call("/sandbox/app-1/terminal", **(own | keys | headers)).status


def test_nothing_is_told_without_a_cookie_of_this_place(page: Page) -> None:
    """K4: nor with another place's; the rest of the attacks on the dashboard is in this file."""
    assert page.call("/about").status == 404  # no place
    page.place = "0" * 24
    assert page.call("/about").status == 401
    assert page.enter().status == 200
    assert page.call("/about").json["engine"] == "listed"
    page.place = "0" * 24  # the cookie is of another one
    assert page.call("/about").status == 401


def test_a_token_works_once_and_a_wrong_one_never(page: Page) -> None:
    assert page.enter("wrong").status == 401
    assert page.enter().status == 200
    assert page.enter().status == 401


def test_the_cookie_is_kept_from_scripts_other_pages_and_other_ports(page: Page) -> None:
    """Cookies know no ports: only the path keeps this one from what listens in a sandbox."""
    said = page.enter().headers["set-cookie"]
    assert re.search(rf"; Path=/api/{page.place}/; .*HttpOnly; SameSite=Strict$", said)
    assert len(page.place) == 24


def test_who_entered_is_known_after_a_restart(listed: None) -> None:
    with opened() as before:
        before.enter()
        before.kill()
    with opened(port=before.port) as after:
        after.place, after.cookie = before.place, before.cookie
        assert after.call("/about").status == 200


def test_a_cookie_that_was_changed_or_is_old_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(b"k" * 32, {"ada:s": "ada"})
    opened = sessions.opened("ada:s")
    assert opened
    place, said = opened
    cookie = said.partition(";")[0]
    assert sessions.visitor(place, f"openmodal=set.by.another.port; {cookie}") == "ada"
    forged = cookie.replace(b"ada".hex(), b"bob".hex())
    assert forged != cookie and sessions.visitor(place, forged) is None
    assert Sessions(b"x" * 32).visitor(place, cookie) is None
    monkeypatch.setattr("time.time", lambda: 9e9)
    assert sessions.visitor(place, cookie) is None


def test_a_foreign_name_or_page_is_refused(page: Page) -> None:
    page.enter()
    own = f"http://127.0.0.1:{page.port}"
    assert page.ask("/", Host=f"evil.example:{page.port}").status == 403
    assert page.ask("/", Host=f"127.0.0.1.evil.example:{page.port}").status == 403
    assert page.ask("/", Host=f"localhost:{page.port}").status == 200
    assert page.call("/about", Origin="http://evil.example").status == 403
    # Such as a port of a sandbox.
    assert page.call("/about", Origin="http://127.0.0.1:1").status == 403
    assert page.call("/about", Origin="null").status == 403
    assert page.call("/about", Origin=own.replace("http:", "https:")).status == 403
    assert page.call("/about", Origin="http://[").status == 403
    assert page.call("/about", Origin=own).status == 200
    engine.write([engine.sandbox("app-1")])
    assert page.call(STOP, "POST", Origin="").status == 403
    assert page.call(STOP, "POST", Origin="http://evil.example").status == 403
    assert page.call("/about").status == 200
    assert page.call(STOP, "POST", Origin=own).status == 200


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"host": "localhost:1", "origin": "http://localhost:1"}, True),
        ({"host": "localhost:1", "origin": "http://evil.example"}, False),
        ({"host": "evil.example", "origin": "http://evil.example"}, False),
        ({"host": "localhost:1"}, False),
        ({"host": "localhost:1", "origin": "https://localhost:1"}, False),
        # What a proxy has decrypted has its name.
        ({"host": "shop.example", "origin": "https://shop.example"}, True),
    ],
)
def test_a_websocket_of_another_page_is_refused(headers: dict[str, str], passes: bool) -> None:
    said: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        said.append(message)

    scope: dict[str, Any] = {"type": "websocket", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(Guard(app, LOOPBACK | {"shop.example"})(scope, receive, send))
    assert [message["type"] for message in said] == ["websocket.accept" if passes else "websocket.close"]


def test_a_read_only_page_changes_nothing(listed: None) -> None:
    engine.write([engine.sandbox("app-1")])
    with opened(LISTED, "--read-only") as page:
        page.enter()
        assert page.call("/about").json["readOnly"]
        assert page.call(STOP, "POST").status == 403
        assert page.call(UPLOAD, "POST").status == 403
        assert terminal(page) == 403
    with opened() as page:
        page.enter()
        assert page.call(UPLOAD, "POST").status != 403
        assert terminal(page) == 101
        assert terminal(page, Origin="http://evil.example") == 403
        assert terminal(page, Cookie="") == 403
        assert page.call(STOP, "POST").status == 200


def test_visitors_of_a_token_file_come_again_and_have_names(listed: None, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("ada secret\nbob other\n")
    with opened(LISTED, "--token-file", str(tmp_path / "tokens")) as page:
        assert not page.token
        for _ in range(2):
            assert page.enter("ada:secret").status == 200
            assert page.call("/about").json["visitor"] == "ada"
        assert page.enter("ada:other").status == 401


def test_it_is_not_served_to_others_without_tokens_and_tls() -> None:
    command = [sys.executable, "-m", "openmodal", "--engine", LISTED, "dashboard", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert "give --token-file, --tls-cert and --tls-key" in done.stderr and done.stderr.count("\n") == 1


def test_scripts_run_by_a_nonce_that_is_never_the_same(page: Page) -> None:
    nonces = set()
    for _ in range(2):
        answer = page.ask("/")
        policy = answer.headers["content-security-policy"]
        found = re.search(r"script-src 'nonce-([\w-]+)';", policy)
        assert found and f'nonce="{found[1]}"'.encode() in answer.body
        assert "unsafe-eval" not in policy and "frame-ancestors 'none'" in policy
        nonces.add(found[1])
    assert len(nonces) == 2
