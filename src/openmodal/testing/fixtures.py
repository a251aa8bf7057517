"""Fixtures of the contract suite, and the names of the promises that an engine may lack."""

from __future__ import annotations

import base64
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from openmodal._link import Stream
from openmodal.app import App
from openmodal.engines import Engine, contract, lacking
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.faces import FACES, Face, open_face

F = TypeVar("F", bound=Callable[..., object])
_NOTED = "openmodal_promises"
SandboxClass = type[Sandbox]

PROMISES = {name: promised.text for name, promised in contract.PROMISES.items()}
"""What `Engine.lacks` may name."""


def promise(name: str) -> Callable[[F], F]:
    """Say which promise a test, or a class of tests, is about, so that engines which lack it are
    not held to it."""
    assert name in PROMISES

    def note(thing: F) -> F:
        setattr(thing, _NOTED, (*getattr(thing, _NOTED, ()), name))
        return thing

    return note


@pytest.fixture(autouse=True)
def promise_is_kept(request: pytest.FixtureRequest) -> None:
    """Skip, by name, what the engine says it lacks."""
    names = (*getattr(request.cls, _NOTED, ()), *getattr(request.function, _NOTED, ()))
    if not names:
        return
    engine: Engine = request.getfixturevalue("engine")
    if missing := sorted(set(names) & lacking(engine)):
        pytest.skip(f"the {engine.name} engine lacks {', '.join(missing)}: {PROMISES[missing[0]]}")


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """The face in which the test calls the API."""
    opened = open_face(request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def engine_name(engine: Engine) -> str:
    """What another process gives as `engine=` to mean the same engine."""
    return f"{type(engine).__module__}:{type(engine).__qualname__}"


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static busybox of this machine."""
    found = shutil.which("busybox")
    if not found or b"ld-linux" in Path(found).read_bytes()[:4096] or b"ld-musl" in Path(found).read_bytes()[:4096]:
        pytest.skip("needs a static busybox on PATH; Debian's package is busybox-static")
    return Path(found).resolve()


@pytest.fixture(scope="session")
def image(engine: Engine, busybox: Path) -> Image:
    """A root of 2 MB: busybox, a user, and nothing else."""
    recipe = (
        Image.from_scratch()
        .add_local_file(str(busybox), "/bin/busybox")
        .add_local_file(str(busybox), "/bin/sh")
        .run_commands(
            "/bin/busybox --install -s /bin",
            "mkdir -p /etc /root /srv /home/agent /var/tmp /usr/bin && mkdir -m 1777 -p /tmp",
            "echo root:x:0:0:root:/root:/bin/sh > /etc/passwd; echo root:x:0: > /etc/group",
            "echo agent:x:1000:1000::/home/agent:/bin/sh >> /etc/passwd; echo agent:x:1000: >> /etc/group",
            "echo staff:x:50:agent >> /etc/group; chown 1000:1000 /home/agent",
        )
        .env({"FROM_IMAGE": "image", "IN_ALL": "image"})
        .workdir("/srv")
    )
    recipe.build(engine=engine)
    return recipe


@pytest.fixture
def app() -> App:
    """The app of the test's sandboxes."""
    return App("contract")


@pytest.fixture
def sandboxes(face: Face) -> SandboxClass:
    """The class Sandbox, as the face shows it."""
    return face(Sandbox)


class Create(Protocol):
    """Makes sandboxes of the test's engine, image and app; they end with the test."""

    def __call__(self, *args: str, **options: Any) -> Sandbox: ...


@pytest.fixture
def afterwards() -> Iterator[ExitStack]:
    """What is to be done when the sandboxes of the test have ended."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def create(sandboxes: SandboxClass, engine: Engine, image: Image, app: App, afterwards: ExitStack) -> Iterator[Create]:
    """Makes sandboxes as `Sandbox.create` does."""
    made: list[str] = []

    def make(*args: str, **options: Any) -> Sandbox:
        given: dict[str, Any] = {"app": app, "image": image, "engine": engine, "timeout": 1000, **options}
        sandbox = sandboxes.create(*args, **given)
        made.append(sandbox.id)
        return sandbox

    yield make
    for id in made:
        Sandbox(id, engine).terminate()


@pytest.fixture
def sandbox(create: Create) -> Sandbox:
    """A fresh sandbox."""
    return create()


class Flaky:
    """An engine whose links break: each at one of the `breaks` in turn, and when they are used up,
    never.

    A break is ("send", n): the link is cut right after its n-th send; ("receive", n): after n bytes
    came; ("connect", 0): it is refused.
    """

    def __init__(self, engine: Engine, breaks: list[tuple[str, int]]) -> None:
        self._engine = engine
        self.breaks = list(breaks)
        self.links = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def connect(self, id: str) -> Stream:
        self.links += 1
        if not self.breaks:
            return await self._engine.connect(id)
        how, count = self.breaks.pop(0)
        if how == "connect":
            raise ConnectionRefusedError("cut by the test")
        return _Breaking(await self._engine.connect(id), how, count)


class _Breaking:
    def __init__(self, stream: Stream, how: str, count: int) -> None:
        self._stream = stream
        self._left = {"send": 1 << 60, "receive": 1 << 60, how: count}

    async def send(self, data: bytes | memoryview) -> None:
        await self._stream.send(data)
        self._left["send"] -= 1
        self._cut_if(self._left["send"] <= 0)

    async def receive(self, buffer: memoryview) -> int:
        self._cut_if(self._left["receive"] <= 0)
        got = await self._stream.receive(buffer[: self._left["receive"]])
        self._left["receive"] -= got
        return got

    def _cut_if(self, now: bool) -> None:
        if now:
            self._stream.close()
            raise ConnectionResetError("cut by the test")

    def close(self) -> None:
        self._stream.close()


@pytest.fixture(scope="session")
def outbound() -> tuple[str, int]:
    """A host name and port of the internet: where this machine gets its packages."""
    for host, port in _package_servers():
        try:
            socket.create_connection((host, port), 5).close()
        except OSError:
            continue
        return host, port
    pytest.skip("no package server of this machine's configuration can be reached; override the fixture `outbound`")


def _package_servers() -> Iterator[tuple[str, int]]:
    for file in sorted(Path("/etc/apt").glob("sources.list*")) + sorted(Path("/etc/apt").glob("sources.list.d/*")):
        if file.is_file():
            for scheme, host, port in re.findall(r"\b(https?)://([a-z0-9.-]+)(?::(\d+))?", file.read_text("utf-8")):
                yield host, int(port or {"http": 80, "https": 443}[scheme])


def eventually(condition: Callable[[], object], *, seconds: float = 100.0) -> None:
    """Wait until something becomes true. The bound is wide, for machines that are busy."""
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < seconds, "it did not happen in time"
        time.sleep(min(0.01 + waited / 10, 0.3))  # asking is not free: it may be a cluster that answers


@contextmanager
def creating(**defaults: Any) -> Iterator[Callable[..., Sandbox]]:
    """What makes sandboxes with these arguments unless others are given; they end with the block."""
    made: list[Sandbox] = []

    def create(*args: str, **options: Any) -> Sandbox:
        made.append(Sandbox.create(*args, **{**defaults, **options}))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.terminate()


def running(sandbox: Sandbox, what: str) -> list[str]:
    """The command lines in a sandbox that contain `what`."""
    listing: str = sandbox.exec("ps", "-o", "pid,args").stdout.read()
    return [line for line in listing.splitlines() if what in line]


def python_starts(source: str, *arguments: str, image: Image | None = None) -> subprocess.Popen[str]:
    """Start another Python in which `openmodal`, `argv` and the test's `image` are there."""
    program = (
        "import base64, os, pickle, signal, sys, threading, time; import openmodal; argv = sys.argv[2:]\n"
        "image = pickle.loads(base64.b64decode(sys.argv[1]))\n" + textwrap.dedent(source)
    )
    packed = base64.b64encode(pickle.dumps(image)).decode("ascii")
    return subprocess.Popen(
        [sys.executable, "-c", program, packed, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def python(source: str, *arguments: str, image: Image | None = None) -> str:
    """Run another Python to its end and return its output."""
    with python_starts(source, *arguments, image=image) as child:
        output, _ = child.communicate(timeout=600)
    assert child.returncode == 0
    return output
