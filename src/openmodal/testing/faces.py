"""The two faces of the API behind one spelling, so that each test is written once.

A `Face` is called with a thing of the API and gives it back as that face shows it. The blocking face gives the thing itself. The async
face gives a stand-in whose methods make the `.aio` calls, in an event loop that runs in a thread of its own::

    process = sandbox.exec("ls")         # await sandbox.exec.aio("ls")
    for line in process.stdout: ...      # async for line in process.stdout: ...
    with sandbox: ...                    # async with sandbox: ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from openmodal._dual import Call, DualContext, DualIterator
from openmodal.filesystem import Filesystem
from openmodal.process import Process, StreamWriter
from openmodal.sandbox import Sandbox
from openmodal.volume import Volume, VolumeUpload

P = ParamSpec("P")
T = TypeVar("T")

FACES = ("blocking", "async")


class Face(Protocol):
    """One of the two faces."""

    name: str

    def __call__(self, thing: T) -> T:
        """The thing as this face shows it."""
        ...

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function of the API beside the test: in a thread, or as a task of the event loop."""
        ...

    def close(self) -> None:
        """End what `start` started."""
        ...


class Blocking:
    """The face `f(…)`."""

    name = "blocking"

    def __call__(self, thing: T) -> T:
        return thing

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (whatever it is, the test asks for it)
                future.set_exception(error)

        # Not an executor's thread: a call that hangs must not hang the end of the test run.
        threading.Thread(target=run, daemon=True, name="openmodal-testing").start()
        return future

    def close(self) -> None:
        """Nothing to end: threads end with their calls."""


class Async:
    """The face `await f.aio(…)`."""

    name = "async"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="openmodal-testing-loop")
        self._thread.start()

    def __call__(self, thing: T) -> T:
        if isinstance(thing, list):
            return cast("T", [self(item) for item in thing])
        if isinstance(thing, _SHOWN) or thing is Sandbox or thing is Volume:
            return cast("T", _Shown(self, thing))
        return thing

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        call = _plain(function)
        if not isinstance(call, Call):
            raise TypeError(f"{function!r} is no method of the API")
        return self.submit(self._shown(call.aio(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})))

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self(self.submit(coroutine).result())

    async def _shown(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self(await coroutine)

    def close(self) -> None:
        self.submit(_cancel_all()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Shown:
    """A thing of the API whose blocking spelling is carried out as the async one."""

    def __init__(self, face: Async, thing: object) -> None:
        self._face = face
        self._thing = thing

    @property
    def __class__(self) -> Any:
        return type(self._thing)

    @__class__.setter
    def __class__(self, value: object) -> None:
        raise TypeError("a thing of the API keeps its class")

    def __getattr__(self, name: str) -> Any:
        return self._face(getattr(self._thing, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        thing = self._thing
        if not isinstance(thing, Call):
            return self._face(cast("Any", thing)(*map(_plain, args), **kwargs))
        return self._face.run(thing.aio(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()}))

    def __iter__(self) -> Iterator[Any]:
        async_iterator = cast("Any", self._thing).__aiter__()
        while True:
            try:
                yield self._face.run(async_iterator.__anext__())
            except StopAsyncIteration:
                return

    def __enter__(self) -> Any:
        return self._face.run(cast("Any", self._thing).__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return self._face.run(cast("Any", self._thing).__aexit__(kind, error, trace))

    def __repr__(self) -> str:
        return repr(self._thing)


_SHOWN = (Call, DualContext, DualIterator, Filesystem, Process, StreamWriter, Volume, VolumeUpload)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return object.__getattribute__(value, "_thing") if type(value) is _Shown else value


def plain(thing: T) -> T:
    """The thing itself, whatever face shows it: to look at what is not API."""
    return cast("T", _plain(thing))


def open_face(name: str) -> Face:
    """The face of that name."""
    return Blocking() if name == "blocking" else Async()
