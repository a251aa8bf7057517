"""The page of one sandbox, with real sandboxes and mostly in a real browser."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wsproto
from wsproto import events

from openmodal import App, Image, Sandbox
from openmodal.engines import Engine, load
from openmodal.testing.fixtures import busybox, creating, eventually, image
from tests.cli.test_interrupted import begun
from tests.web.conftest import Page, opened, visiting

pytestmark = pytest.mark.embedded
__all__ = ["busybox", "image"]
"""The suite's image."""

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
TALK = r"""
echo "hello, page"; echo "$0"; printf '\033]0;owned\007'
touch "/tmp/$0"; echo odd > "$(printf '/tmp/odd\377')"
(nslookup refused.example || getent hosts refused.example) >/dev/null 2>&1
exec sleep 1000
"""


@pytest.fixture(scope="session")
def engine() -> Engine:
    return load("embedded")


Create = Callable[..., Sandbox]


@pytest.fixture
def create(engine: Engine, image: Image) -> Iterator[Create]:
    with creating(engine=engine, image=image, app=App("page"), timeout=1000) as create:
        yield create


@pytest.fixture
def real() -> Iterator[Page]:
    """A page of the embedded engine."""
    with opened("embedded") as page:
        yield page


def seen(tab: Any, view: str) -> Any:
    """Go to a view of the sandbox."""
    tab.get_by_role("tab", name=view).click()
    return tab.locator("[role=tabpanel]")


def typed(tab: Any, command: str, answer: str) -> None:
    """Type a command into the terminal, and wait for a line of its output."""
    tab.keyboard.type(command + "\n")
    tab.locator(".xterm-rows > div").filter(has_text=re.compile(rf"^\s*{answer}\s*$")).first.wait_for()


@pytest.mark.browser
def test_all_of_a_sandbox_is_seen_and_used(create: Create, real: Page, tmp_path: Path) -> None:
    sandbox = create("sh", "-c", TALK, HOSTILE, name="seen", outbound_domain_allowlist=["allowed.example"])
    sandbox.spawn("sh", "-c", 'echo "$0"; exec sleep 1000', HOSTILE)
    with visiting(real.link) as visit:
        tab = visit.tab
        tab.get_by_role("link", name=sandbox.id).click()
        # The output of the main command, and search in it.
        tab.get_by_role("button", name="main").click()
        output = tab.get_by_label("Output of the main command")
        output.get_by_text("hello, page").wait_for()
        output.get_by_text(HOSTILE).first.wait_for()
        tab.get_by_label("Find in the output").fill("HELLO")
        tab.get_by_text("1 of 1").wait_for()
        tab.get_by_role("button", name="spawn").click()
        tab.get_by_label("Output of the command").get_by_text(HOSTILE).first.wait_for()
        # A terminal. More than is sent ahead goes through it, and its escapes stay in it.
        seen(tab, "Terminal").locator(".xterm-rows").wait_for()
        tab.locator(".xterm-helper-textarea").focus()
        typed(tab, "echo $((40 + 2))", "42")
        typed(tab, "head -c 2000000 /dev/zero | tr '\\0' x; echo; echo $((40 + 3))", "43")
        typed(tab, "printf '\\033]0;owned\\007\\033]52;c;b3duZWQ=\\007'; stty size", r"\d+ \d+")
        typed(tab, "test \"$(stty size)\" = '24 80' || echo $((40 + 4))", "44")
        # Files: up, looked at, down again; names are text, whatever they are.
        files = seen(tab, "Files")
        files.get_by_role("button", name="tmp/").click()
        files.get_by_role("button", name=HOSTILE).wait_for()
        given = {"name": "up & <b>.txt", "mimeType": "text/plain", "buffer": b"what was uploaded"}
        files.locator("input[type=file]").set_input_files(given)
        files.get_by_role("button", name="up & <b>.txt").click()
        files.get_by_text("what was uploaded").wait_for()
        with tab.expect_download() as coming:
            files.get_by_role("link", name="Download").click()
        coming.value.save_as(tmp_path / "down")
        assert coming.value.suggested_filename.endswith(".txt")
        assert (tmp_path / "down").read_bytes() == b"what was uploaded"
        files.get_by_role("button", name="Close").click()
        files.get_by_role("button", name="odd").click()
        files.locator("pre").get_by_text("odd").wait_for()
        files.get_by_role("button", name="What changed").click()
        files.get_by_text("/tmp/up & <b>.txt").wait_for()
        # What it uses, what it wanted to reach, what holds it.
        seen(tab, "Use").locator("canvas").nth(3).wait_for()
        tab.locator(".chart", has_text="Processes").get_by_text(re.compile(r"^\d+$")).wait_for()
        network = seen(tab, "Network")
        network.get_by_text("refused.example").first.wait_for()
        network.get_by_text("refused", exact=True).first.wait_for()
        seen(tab, "Limits").get_by_text("Filter of system calls").wait_for()
        # Its end, by the page, is in the timeline.
        tab.get_by_role("button", name="Stop").click()
        tab.get_by_role("dialog").get_by_role("button", name="Stop").click()
        seen(tab, "Timeline").locator("li", has_text="terminate").get_by_text("by page").wait_for()
        tab.locator(".verdict").wait_for()
        assert tab.locator("main img").count() == 0 and "owned" not in tab.title()
        assert visit.is_clean(real)
    uploads = [event for event in sandbox.timeline() if event.call == "copy_from_local"]
    assert [(event.path, event.by) for event in uploads] == [("/tmp/up & <b>.txt", "page")]


def test_an_upload_that_is_cut_off_leaves_no_file(
    create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that was killed meanwhile left what had come."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox = create("sleep", "1000")
    with opened("embedded") as page, socket.create_connection(("127.0.0.1", page.port)) as upload:
        page.enter()
        said = (
            f"POST /api/{page.place}/sandbox/{sandbox.id}/file?path=/up HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n"
            f"Origin: http://127.0.0.1:{page.port}\r\nCookie: {page.cookie}\r\nContent-Length: 10000000\r\n\r\n"
        )
        upload.sendall(said.encode() + b"x" * 5_000_000)
        eventually(lambda: begun(page.process.pid, tmp_path))
        page.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
def test_a_phone_sees_it_without_scrolling_aside(create: Create, real: Page) -> None:
    sandbox = create("sh", "-c", TALK, HOSTILE, outbound_domain_allowlist=["allowed.example"])
    size = {"width": 400, "height": 800}
    with visiting(real.link, viewport=size) as visit:
        tab = visit.tab
        tab.get_by_role("link", name=sandbox.id).click()
        for view in ("Timeline", "Terminal", "Files", "Use", "Network", "Limits"):
            seen(tab, view).locator(":scope > :not(link)").first.wait_for()
            assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"], view
        assert visit.is_clean(real)


def test_to_watch_is_no_use_of_it(create: Create, real: Page) -> None:
    """A page that was left open would keep idle sandboxes alive, and renew leases of the dead."""
    sandbox = create("sleep", "1000", idle_timeout=3)
    real.enter()
    main = "0" * 32
    with contextlib.ExitStack() as stack:
        for path in ("/feeds/sandboxes", f"/feeds/sandbox/{sandbox.id}", f"/sandbox/{sandbox.id}/output/{main}"):
            connection = http.client.HTTPConnection("127.0.0.1", real.port, timeout=60)
            stack.callback(connection.close)
            connection.request("GET", f"/api/{real.place}{path}", headers={"Cookie": real.cookie})
            assert connection.getresponse().status == 200
        deadline = time.monotonic() + 300
        while sandbox.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    assert sandbox.poll() == 124


def test_what_is_downloaded_is_no_page(create: Create, real: Page) -> None:
    sandbox = create("sleep", "1000")
    sandbox.filesystem.write_text("/tmp/page.html", "<script>document.title = 'owned'</script>")
    real.enter()
    answer = real.call(f"/sandbox/{sandbox.id}/file?path=/tmp/page.html&download")
    assert answer.status == 200 and b"<script>" in answer.body
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert real.call(f"/sandbox/{sandbox.id}/file?path=/dev/null").status == 400
    assert real.call("/sandbox/none-00000000/files").status == 404


def test_a_file_that_cannot_be_read_is_told_and_one_that_goes_away_is_cut(create: Create, real: Page) -> None:
    """The answer had begun before the first byte was read: a download of nothing that ended well,
    and two tracebacks."""
    sandbox = create("sleep", "1000")
    sandbox.exec("sh", "-c", "ln -s /proc/1/mem /tmp/link; dd of=/tmp/huge bs=1 count=0 seek=1G")
    real.enter()
    for path in ("/proc/1/mem", "/tmp/link", "/tmp/none"):
        answer = real.call(f"/sandbox/{sandbox.id}/file?path={path}&download")
        assert answer.status == 400 and answer.json["error"], path
    connection = http.client.HTTPConnection("127.0.0.1", real.port, timeout=60)
    with contextlib.closing(connection):
        path = f"/api/{real.place}/sandbox/{sandbox.id}/file?path=/tmp/huge&download"
        connection.request("GET", path, headers={"Cookie": real.cookie})
        coming = connection.getresponse()
        assert coming.status == 200 and coming.read(1000) == bytes(1000)
        sandbox.exec("sh", "-c", "rm /tmp/huge; mkfifo /tmp/huge")
        with pytest.raises(http.client.IncompleteRead):
            coming.read()
    said = real.log.read_text()
    assert "a download ended before its end" in said and "Traceback" not in said, said


def test_an_upload_that_is_broken_off_leaves_nothing(create: Create, real: Page) -> None:
    """It was told by a traceback."""
    sandbox = create("sleep", "1000")
    real.enter()
    path = f"/api/{real.place}/sandbox/{sandbox.id}/file?path=/tmp/up"
    named = f"Host: 127.0.0.1:{real.port}\r\nOrigin: http://127.0.0.1:{real.port}\r\nCookie: {real.cookie}"
    with socket.create_connection(("127.0.0.1", real.port)) as sent:
        sent.sendall(f"POST {path} HTTP/1.1\r\n{named}\r\nContent-Length: 1000000\r\n\r\n".encode() + bytes(5000))
        time.sleep(0.5)
    time.sleep(0.5)
    assert real.call("/about").status == 200
    assert not sandbox.filesystem.exists("/tmp/up")
    assert "Traceback" not in real.log.read_text()


NO_MESSAGES = (
    '{"ack": Infinity}',
    "[" * 3000,
    '{"x":' + "[" * 3000,
    '{"ack": -1}',
    '{"rows": 1, "columns": 99999999}',
    '{"rows": 5}',
    "",
)


def test_what_is_no_message_of_the_page_closes_the_terminal_with_a_reason(create: Create, real: Page) -> None:
    """A number without an end, and brackets without one, were told by tracebacks."""
    sandbox = create("sleep", "1000")
    real.enter()
    for said in ('{"ack": 5}', *NO_MESSAGES):
        with socket.create_connection(("127.0.0.1", real.port), timeout=60) as raw:
            talk = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
            own = [(b"Origin", f"http://127.0.0.1:{real.port}".encode()), (b"Cookie", real.cookie.encode())]
            path = f"/api/{real.place}/sandbox/{sandbox.id}/terminal"
            raw.sendall(talk.send(events.Request(host=f"127.0.0.1:{real.port}", target=path, extra_headers=own)))
            closed = None
            while closed is None:
                talk.receive_data(raw.recv(65536) or None)
                for event in talk.events():
                    if isinstance(event, events.AcceptConnection):
                        raw.sendall(talk.send(events.TextMessage(said)))
                        raw.sendall(talk.send(events.BytesMessage(b"exit\n")))
                    elif isinstance(event, events.CloseConnection):
                        closed = event
        if said in NO_MESSAGES:
            assert (closed.code, "no message of the page" in str(closed.reason)) == (1008, True), said
        else:
            assert closed.code == 1000, "the control: the shell has ended"
    assert "Traceback" not in real.log.read_text()
