"""An API server that says "too many requests": a small one that does so as often as it is told to."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from openmodal.engines.kubernetes import api
from openmodal.engines.kubernetes.api import Api, ApiError


@contextmanager
def busy(times: int, after: str = "") -> Iterator[tuple[Api, list[float]]]:
    """A server that has too many requests so many times, and when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            refused = len(asked) <= times
            body = b'{"message": "slow down"}' if refused else b'{"metadata": {"name": "made"}}'
            self.send_response(429 if refused else 201)
            if refused and after:
                self.send_header("Retry-After", after)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{server.server_port}") as http:
                yield Api(http, "x"), asked
        finally:
            server.shutdown()
            thread.join()


def test_it_is_asked_again_until_it_has_time_and_not_before_it_says() -> None:
    with busy(2, after="1") as (client, asked):
        assert client.create(client.pods(), {})["metadata"]["name"] == "made"
    assert len(asked) == 3
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(asked))


def test_the_pauses_grow_and_differ_between_clients() -> None:
    pauses = [[api._pause(attempt, "") for attempt in range(8)] for _ in range(20)]
    assert len({each[5] for each in pauses}) > 10
    assert min(each[6] for each in pauses) > max(each[2] for each in pauses)
    assert max(map(max, pauses)) <= 15


def test_waiting_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(api, "SAY_AFTER", 0.0)
    with busy(3) as (client, _):
        client.create(client.pods(), {})
    assert [record.message for record in caplog.records if record.name == "openmodal"] == [
        "waiting for the Kubernetes API server, which has too many requests (429)"
    ]


def test_who_waits_too_long_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_PATIENCE", 0.5)
    with (
        busy(1000) as (client, asked),
        pytest.raises(ApiError, match=r"too many requests \(slow down\); try again") as caught,
    ):
        client.create(client.pods(), {})
    assert caught.value.status == 429
    assert len(asked) > 1
