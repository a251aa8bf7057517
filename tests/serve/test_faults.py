"""What lies between a client and its door breaks."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.testing.fixtures import eventually
from tests.disks import small_disk
from tests.serve.conftest import Door, opened
from tests.serve.test_door import BEGIN, client

pytestmark = pytest.mark.embedded

RESET = struct.pack("ii", 1, 0)
CUT_AFTER, CUTS = 7_000_000, 2
NUMBERS = 2_500_000
READ = (
    BEGIN
    + f"""
import hashlib
sandbox = modal.Sandbox.create(app=app, image=image, timeout=600)
process = sandbox.exec("seq", "1", "{NUMBERS}", text=False)
whole = hashlib.sha256()
pieces = iter(process.stdout)
whole.update(next(pieces))
print("begun", flush=True)
input()
for piece in pieces:
    whole.update(piece)
print(whole.hexdigest(), process.wait())
sandbox.terminate()
"""
)
WRITTEN = "".join(f"{number}\n" for number in range(1, NUMBERS + 1)).encode()

FULL = (
    BEGIN
    + """
full = image.dockerfile_commands('RUN ["/bin/dd", "if=/dev/zero", "of=/big", "bs=1M", "count=200"]')
try:
    modal.Sandbox.create(app=app, image=full, timeout=600)
except modal.exception.Error as error:
    print(type(error).__name__, error, flush=True)
sandbox = modal.Sandbox.create(app=app, image=image, timeout=600)
print(sandbox.exec("echo", "still here").stdout.read())
sandbox.terminate()
"""
)
CLIENTS, OF_THEM_CREATE = 200, 10
CROWD = (
    BEGIN
    + f"""
import asyncio, os
token = os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
async def one(number):
    client = await modal.Client.from_credentials.aio(*token)
    app = await modal.App.lookup.aio("door", client=client)
    if number % {CLIENTS // OF_THEM_CREATE}:
        async for _ in modal.Sandbox.list.aio(app_id=app.app_id, client=client):
            pass
        return 0
    sandbox = await modal.Sandbox.create.aio(app=app, image=image, timeout=600, client=client)
    process = await sandbox.exec.aio("echo", str(number))
    said = await process.stdout.read.aio()
    await sandbox.terminate.aio()
    return int(said)
async def all():
    return await asyncio.gather(*map(one, range({CLIENTS})))
print(sum(asyncio.run(all())))
"""
)


class Proxy:
    """Carries connections, and resets some of them in the middle of what comes back.

    Attributes:
        cuts: how many it reset.
        back: how many bytes came back.
    """

    def __init__(self, listener: socket.socket, port: int) -> None:
        self.cuts = 0
        self.back = 0
        self._nears: list[socket.socket] = []
        self._listener = listener
        self._port = port

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                near, _ = self._listener.accept()
                self._nears.append(near)
                far = socket.create_connection(("127.0.0.1", self._port))
                for source, target, fragile in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._carry, args=(source, target, fragile), daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        for near in self._nears:
            with contextlib.suppress(OSError):  # it has ended
                near.shutdown(socket.SHUT_RDWR)

    def _carry(self, source: socket.socket, target: socket.socket, fragile: bool) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                count += len(data)
                self.back += len(data) if fragile else 0
                if fragile and count > CUT_AFTER and self.cuts < CUTS:
                    self.cuts += 1
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def proxied(port: int) -> Iterator[tuple[Proxy, int]]:
    """A proxy before a port, and its own port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener, port)
        serving = threading.Thread(target=proxy.serve)
        serving.start()
        try:
            yield proxy, listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_proxy_that_resets_connections_loses_nothing(tmp_path: Path) -> None:
    """A door once had too little forgotten for a reader that began in the middle, and the command
    waited for ever."""
    port = free()
    with (
        proxied(port) as (proxy, before),
        opened(tmp_path, port, "--advertise", f"http://127.0.0.1:{before}") as door,
    ):
        said, errors = client(READ, door).communicate("\n", timeout=600)
    assert said.split() == ["begun", hashlib.sha256(WRITTEN).hexdigest(), "0"], errors
    assert proxy.cuts == CUTS


def test_a_slow_reader_whose_connection_breaks_loses_nothing(tmp_path: Path) -> None:
    """A client's library takes 64 MiB that the program has not read, and loses them with the
    connection; a door once had forgotten all but the last 4."""
    port = free()
    with (
        proxied(port) as (proxy, before),
        opened(tmp_path, port, "--advertise", f"http://127.0.0.1:{before}") as door,
    ):
        proxy.cuts = CUTS  # only when it is told to
        program = client(READ, door)
        assert program.stdout
        assert program.stdout.readline() == "begun\n"
        eventually(lambda: proxy.back > len(WRITTEN), seconds=300)
        proxy.cut()
        said, errors = program.communicate("\n", timeout=600)
    assert said.split() == [hashlib.sha256(WRITTEN).hexdigest(), "0"], errors


@pytest.mark.root
def test_a_full_disk_in_a_build_is_told_and_the_door_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path) as home:
        monkeypatch.setenv("OPENMODAL_HOME", str(home))
        with opened(tmp_path) as door:
            said, errors = client(FULL, door).communicate(timeout=600)
    assert "is full; free some space" in said, errors
    assert "still here" in said.splitlines(), errors


def test_200_clients_are_served_at_once(door: Door) -> None:
    said, errors = client(CROWD, door).communicate(timeout=600)
    assert said.strip() == str(sum(range(0, CLIENTS, CLIENTS // OF_THEM_CREATE))), errors
