"""What two do at once, or what fails or is interrupted half-way, leaves each part right."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from openmodal import tunnel
from openmodal._dual import run_async
from openmodal._spec import Network, Status
from openmodal.build.layers import Layers
from openmodal.build.prune import expire
from openmodal.engines.book import Book
from openmodal.engines.embedded import Embedded, egress, network
from openmodal.errors import EngineError


def test_who_writes_tags_and_who_moves_the_end_lose_nothing(tmp_path: Path) -> None:
    book = Book(tmp_path / "state", Embedded(tmp_path / "state"))
    book.prepare()
    with book.new(Status("app-758f3413", "app", "", (), 1.0, 301.0, "image", "embedded")):
        over = threading.Event()

        def move() -> None:
            while not over.is_set():
                book.write_expires("app-758f3413", 60)

        other = threading.Thread(target=move)
        other.start()
        for number in range(300):
            tags = (("number", str(number)),)
            assert book.write_tags("app-758f3413", tags)
            found = book.status("app-758f3413")
            assert found
            assert found.tags == tags
        over.set()
        other.join()
        last = book.status("app-758f3413")
        assert last
        assert last.expires > 301
    book.remove(book.folder("app-758f3413"))
    assert not book.write_tags("app-758f3413", ())


def test_a_policy_that_is_not_taken_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that begins again by itself, an hour later, would keep to it."""
    monkeypatch.setattr(network, "own_addresses", tuple)
    (tmp_path / egress.POLICY).write_text("before")
    wanted = Network(domains=("example.com",))

    def refused() -> None:
        with egress.rewritten(wanted, tmp_path, ()):
            assert "example.com" in (tmp_path / egress.POLICY).read_text()
            raise EngineError("busy")

    with pytest.raises(EngineError, match="busy"):
        refused()
    assert (tmp_path / egress.POLICY).read_text() == "before"
    with egress.rewritten(wanted, tmp_path, ()):
        pass
    assert "example.com" in (tmp_path / egress.POLICY).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [egress.POLICY]


def test_locks_of_layers_that_are_not_there_go_unless_somebody_holds_them(tmp_path: Path) -> None:
    store = Layers(tmp_path / "store")
    for name in ("never", "failed"):
        store.using(name).close()
    (store.path / "locks" / "failed").write_text("why")
    (store.path / "layers" / "there").mkdir(parents=True)
    store.using("there").close()
    with store.using("coming"):
        expire(store)
        assert {path.name for path in (store.path / "locks").iterdir()} == {"failed", "there", "coming", "prune"}


def test_a_forward_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, begun = threading.Event(), threading.Event()

    class Child(tunnel._Child):
        def end(self) -> None:
            ended.set()

    def begin(*args: object) -> tunnel.Forward:
        begun.set()
        time.sleep(0.3)
        return tunnel.Forward("127.0.0.1", 1, Child(0, -1))

    async def main() -> None:
        with tunnel.listen() as listener:
            task = asyncio.ensure_future(run_async(tunnel.open_far(None, listener, 1)))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    monkeypatch.setattr(tunnel, "_begin_far", begin)
    asyncio.run(main())
    assert ended.wait(30)
