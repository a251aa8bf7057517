"""The only place where blocking code and asyncio differ.

Every operation is written once, as a coroutine that awaits nothing but the effects below (or another such coroutine).
An effect knows how to happen in both worlds; two drivers of a few lines run the coroutine in one of them; `dual` gives a
method both faces::

    class Sandbox:
        @dual
        async def terminate(self) -> None: ...

    sandbox.terminate()             # blocks
    await sandbox.terminate.aio()   # in asyncio

Rules: core code never imports asyncio or threading (a linter rule); a deadline is an argument of
the effect; there is no fan-out here but `AnyOf` and `Together`; an exception of the outer world
(Ctrl-C, a task's cancellation) is raised at the await and so reaches the core's `finally`.
Budget: a few µs per call,
no thread unless `Blocking` runs under asyncio, and no asyncio (30 ms of import) for those who
block.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import sys
import time
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")


class Effect(Generic[T]):
    """Something that core code waits for."""

    __slots__ = ()

    def __await__(self) -> Generator[Effect[T], T, T]:
        return (yield self)

    def block(self) -> T:
        raise NotImplementedError

    async def wait(self) -> T:
        raise NotImplementedError


# A signal that comes after Python's last look for signals and before poll(2) sleeps is seen when
# that returns, and not before: there is no ppoll(2) in Python. So it returns now and then, and
# Ctrl-C is never lost.
_LONGEST_POLL = 1.0


class AnyOf(Effect[None]):
    """Wait until one of the descriptors is ready, or raise TimeoutError after `timeout` seconds (None: never)."""

    __slots__ = ("readable", "timeout", "writable")

    def __init__(self, readable: tuple[int, ...], writable: tuple[int, ...] = (), timeout: float | None = None) -> None:
        self.readable = readable
        self.writable = writable
        self.timeout = timeout

    def block(self) -> None:
        poll = select.poll()
        for fd in self.writable:
            poll.register(fd, select.POLLOUT)
        for fd in self.readable:
            poll.register(fd, select.POLLIN | (select.POLLOUT if fd in self.writable else 0))
        left = math.inf if self.timeout is None else max(0.0, self.timeout)
        while not poll.poll(min(left, _LONGEST_POLL) * 1000):
            left -= _LONGEST_POLL
            if left <= 0:
                raise TimeoutError

    async def wait(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        for fd in self.readable:
            loop.add_reader(fd, _wake, ready)
        for fd in self.writable:
            loop.add_writer(fd, _wake, ready)
        try:
            async with asyncio.timeout(self.timeout):
                await ready
        finally:
            for fd in self.readable:
                loop.remove_reader(fd)
            for fd in self.writable:
                loop.remove_writer(fd)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def readable(fd: int, timeout: float | None = None) -> AnyOf:
    """Wait until `fd` can be read, or raise TimeoutError."""
    return AnyOf((fd,), (), timeout)


def writable(fd: int, timeout: float | None = None) -> AnyOf:
    """Wait until `fd` can be written, or raise TimeoutError."""
    return AnyOf((), (fd,), timeout)


class Sleep(Effect[None]):
    """Wait for some seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def block(self) -> None:
        time.sleep(self.seconds)

    async def wait(self) -> None:
        import asyncio

        await asyncio.sleep(self.seconds)


@types.coroutine
def within(seconds: float, core: Coroutine[Any, Any, T]) -> Generator[Effect[Any], Any, T]:
    """Await core code for so long: then what it waits for raises TimeoutError. A call in a thread is waited for."""
    deadline = time.monotonic() + seconds
    resume: Callable[[], Any] = functools.partial(core.send, None)
    while True:
        try:
            effect = resume()
        except StopIteration as done:
            return cast("T", done.value)
        left = deadline - time.monotonic()
        if isinstance(effect, AnyOf):
            own = math.inf if effect.timeout is None else effect.timeout
            effect = AnyOf(effect.readable, effect.writable, max(0.0, min(own, left)))
        elif left <= 0:
            resume = functools.partial(core.throw, TimeoutError())
            continue
        try:
            resume = functools.partial(core.send, (yield effect))
        except BaseException as error:  # it belongs to the core's await
            resume = functools.partial(core.throw, error)


class Together(Effect[list[T | Exception]]):
    """Run core code side by side: while one waits for descriptors, the others go on.

    The results are in order, and an exception is one. What comes from outside (Ctrl-C, a task's
    cancellation) is raised in each that has not ended.
    """

    def __init__(self, cores: Iterable[Coroutine[Any, Any, T]]) -> None:
        self.cores = [*cores]

    def block(self) -> list[T | Exception]:
        tracks = [_Track(core) for core in self.cores]
        try:
            for track in tracks:
                track.go()
            while waiting := [track for track in tracks if track.waits]:
                for track in _next_of(waiting):
                    track.go()
        except BaseException as error:
            for track in tracks:
                track.end(error)
            raise
        return [track.result for track in tracks]

    async def wait(self) -> list[T | Exception]:
        import asyncio

        results = await asyncio.gather(*map(run_async, self.cores), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
        return cast("list[T | Exception]", results)


class _Track(Generic[T]):
    """Core code on its way: `waits` for descriptors `until` then, or has its `result`."""

    def __init__(self, core: Coroutine[Any, Any, T]) -> None:
        self._core = core
        self._ended = False
        self.waits: AnyOf | None = None
        self.until = math.inf
        self.result: T | Exception = RuntimeError("it has not ended")

    def go(self) -> None:
        """Go on until it waits for descriptors again, or ends."""
        resume: Callable[[], Any] = functools.partial(self._core.send, None)
        if self.until <= time.monotonic() and self.waits and not _ready(self.waits):
            resume = functools.partial(self._core.throw, TimeoutError())
        self.waits = None
        try:
            while True:
                effect = resume()
                if isinstance(effect, AnyOf):
                    self.waits = effect
                    self.until = math.inf if effect.timeout is None else time.monotonic() + effect.timeout
                    return
                try:
                    resume = functools.partial(self._core.send, _checked(effect).block())
                except BaseException as error:  # it belongs to the core's await
                    if not isinstance(error, Exception):
                        raise
                    resume = functools.partial(self._core.throw, error)
        except StopIteration as done:
            self.result, self._ended = done.value, True
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            self.result, self._ended = error, True

    def end(self, error: BaseException) -> None:
        """Raise something in it, and run it to its end, if that has not come."""
        if not self._ended:
            with contextlib.suppress(Exception, type(error)):
                _run(self._core, functools.partial(self._core.throw, error))


def _ready(effect: AnyOf) -> bool:
    try:
        AnyOf(effect.readable, effect.writable, 0.0).block()
    except TimeoutError:
        return False
    return True


def _next_of(waiting: list[_Track[T]]) -> list[_Track[T]]:
    """Those that can go on, after a wait for the first."""
    readable = tuple(fd for track in waiting if track.waits for fd in track.waits.readable)
    writable = tuple(fd for track in waiting if track.waits for fd in track.waits.writable)
    left = min(track.until for track in waiting) - time.monotonic()
    try:
        AnyOf(readable, writable, None if math.isinf(left) else left).block()
    except TimeoutError:
        pass
    now = time.monotonic()
    return [track for track in waiting if track.waits and (track.until <= now or _ready(track.waits))]


class Blocking(Effect[T]):
    """Call a blocking function: in place, or in a thread under asyncio.

    There it cannot be cancelled: the call goes on and its result is lost, so what it makes must be
    found again by the caller.
    """

    __slots__ = ("call",)

    def __init__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self.call: Callable[[], T] = functools.partial(call, *args, **kwargs)

    def block(self) -> T:
        return self.call()

    async def wait(self) -> T:
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(_threads(), self.call)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max_workers=64, thread_name_prefix="openmodal")


# A forked child has the executor's object but none of its threads: it makes its own.
os.register_at_fork(after_in_child=_threads.cache_clear)


def is_in_loop() -> bool:
    """Whether this thread runs asyncio's loop, which nothing may block."""
    if "asyncio" not in sys.modules:
        return False
    import asyncio

    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop() is not None
    return False


def run_sync(core: Coroutine[Any, Any, T]) -> T:
    """Run core code to its end in this thread."""
    return _run(core, functools.partial(core.send, None))


def _run(core: Coroutine[Any, Any, T], resume: Callable[[], Any]) -> T:
    while True:
        try:
            effect = resume()
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        try:
            resume = functools.partial(core.send, _checked(effect).block())
        except BaseException as error:  # whatever it is, the core's `finally` must see it
            resume = functools.partial(core.throw, error)


async def run_async(core: Coroutine[Any, Any, T]) -> T:
    """Run core code to its end in the running event loop."""
    resume: Callable[[], Any] = functools.partial(core.send, None)
    while True:
        try:
            effect = resume()
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        try:
            resume = functools.partial(core.send, await _checked(effect).wait())
        except BaseException as error:  # also CancelledError: it belongs to the core's await
            resume = functools.partial(core.throw, error)


def _checked(effect: Any) -> Effect[Any]:
    if isinstance(effect, Effect):
        return effect
    raise TypeError(f"core code may await only effects, got {type(effect).__name__}")


class Call(Generic[P, T]):
    """A method bound to its object, or a function (`@Call`): call it to block, or await `.aio(...)`."""

    __slots__ = ("core",)

    def __init__(self, core: Callable[P, Coroutine[Any, Any, T]]) -> None:
        self.core = core

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(self.core(*args, **kwargs))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_async(self.core(*args, **kwargs))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.core.__doc__

    def __reduce__(self) -> tuple[Any, ...]:
        """As its object and name, so that `executor.submit(sandbox.exec, "ls")` reaches another process."""
        name = getattr(self.core, "__name__", "")
        if owner := getattr(self.core, "__self__", None):
            return _bound, (owner, name)
        import pkgutil

        return pkgutil.resolve_name, (f"{self.core.__module__}:{name}",)


def _bound(obj: object, name: str) -> object:
    found = getattr(obj, name)
    return found if isinstance(found, Call) else Call(found)


class dual(Generic[P, T]):  # noqa: N801  (it is used like a keyword)
    """Give a coroutine method, or a classmethod, its blocking face and its `.aio` face."""

    @overload
    def __init__(self, method: classmethod[Any, P, Coroutine[Any, Any, T]]) -> None: ...
    @overload
    def __init__(self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None: ...
    def __init__(self, method: Any) -> None:
        self.method = method
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

    def __get__(self, obj: object, owner: type) -> Call[P, T]:
        return Call(self.method.__get__(obj, owner))


class DualIterator(Generic[T]):
    """An iterator in both spellings; a subclass says how the next item comes."""

    async def _next(self) -> T:
        """Return the next item, or raise EOFError."""
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return run_sync(self._next())
        except EOFError:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await run_async(self._next())
        except EOFError:
            raise StopAsyncIteration from None


class DualContext:
    """A with-block in both spellings; a subclass says what happens at its begin and its end."""

    async def _open(self) -> None:
        """Begin; nothing by default."""

    async def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        run_sync(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run_sync(self._close())

    async def __aenter__(self) -> Self:
        await run_async(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_async(self._close())
