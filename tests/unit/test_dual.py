"""The two drivers: the same core code, blocking and under asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from openmodal import _dual
from openmodal._dual import (
    AnyOf,
    Blocking,
    Call,
    DualContext,
    DualIterator,
    Effect,
    Sleep,
    Together,
    dual,
    readable,
    run_async,
    run_sync,
    writable,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def _run_async(core: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(_dual.run_async(core))


@pytest.fixture(params=[_dual.run_sync, _run_async], ids=["blocking", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        two.setblocking(False)
        yield one, two


class Counter(DualContext):
    """Does nothing, and notes what happened."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @dual
    async def add(self, one: int, *, two: int = 2) -> int:
        """Add."""
        await Sleep(0)
        return one + two

    @dual
    @classmethod
    async def make(cls) -> Counter:
        await Sleep(0)
        return cls()

    @dual
    async def fail(self) -> None:
        await Blocking(int, "not a number")

    async def _open(self) -> None:
        await Sleep(0)
        self.log.append("open")

    async def _close(self) -> None:
        await Sleep(0)
        self.log.append("close")


def test_control_c_is_never_lost_however_it_falls(pair: tuple[socket.socket, socket.socket]) -> None:
    """A signal that came between Python's look for signals and poll(2) was seen when the wait was over: perhaps never."""
    go = threading.Event()
    done = threading.Event()

    def press(main: int) -> None:
        while not done.is_set():
            if go.is_set():  # runs when the main thread lets go of the interpreter, which is just before it polls
                go.clear()
                signal.pthread_kill(main, signal.SIGINT)

    async def core() -> None:
        go.set()
        await readable(pair[0].fileno(), 60.0)

    thread = threading.Thread(target=press, args=(threading.main_thread().ident,))
    thread.start()
    try:
        for _ in range(50):
            begin = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                _dual.run_sync(core())
            assert time.monotonic() - begin < 30
    finally:
        done.set()
        thread.join()


def test_a_method_has_two_faces() -> None:
    counter = Counter.make()
    assert counter.add(1) == 3
    assert counter.add(1, two=5) == 6

    async def main() -> tuple[int, Counter]:
        return await counter.add.aio(1, two=3), await Counter.make.aio()

    number, made = asyncio.run(main())
    assert number == 4
    assert isinstance(made, Counter)


def test_both_faces_have_the_methods_docstring() -> None:
    assert Counter().add.__doc__ == "Add."
    assert Counter.add.__doc__ == "Add."
    assert isinstance(Counter().add, Call)


def test_an_exception_is_the_same_in_both_faces() -> None:
    with pytest.raises(ValueError, match="not a number"):
        Counter().fail()
    with pytest.raises(ValueError, match="not a number"):
        asyncio.run(Counter().fail.aio())


def test_a_with_block_opens_and_closes_in_both_spellings() -> None:
    with Counter() as blocking:
        assert blocking.log == ["open"]
    assert blocking.log == ["open", "close"]

    async def main() -> list[str]:
        async with Counter() as counter:
            assert counter.log == ["open"]
        return counter.log

    assert asyncio.run(main()) == ["open", "close"]


def test_a_with_block_closes_on_an_exception_and_passes_it_on() -> None:
    counter = Counter()
    with pytest.raises(KeyError), counter:
        raise KeyError
    assert counter.log == ["open", "close"]


class Three(DualIterator[int]):
    def __init__(self) -> None:
        self.at = 0

    async def _next(self) -> int:
        await Sleep(0)
        self.at += 1
        if self.at > 3:
            raise EOFError
        return self.at


def test_iteration_works_in_both_spellings() -> None:
    assert list(Three()) == [1, 2, 3]

    async def main() -> list[int]:
        return [item async for item in Three()]

    assert asyncio.run(main()) == [1, 2, 3]


def test_readable_waits_for_bytes(run: Run, pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair

    async def core() -> bytes:
        await readable(one.fileno())
        return one.recv(10)

    timer = threading.Timer(0.05, two.send, [b"x"])
    timer.start()
    assert run(core()) == b"x"
    timer.join()


def test_readable_sees_the_end(run: Run, pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    two.close()

    async def core() -> bytes:
        await readable(one.fileno())
        return one.recv(10)

    assert run(core()) == b""


def test_writable_waits_for_room(run: Run, pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    sent = 0
    while True:
        try:
            sent += one.send(bytes(65536))
        except BlockingIOError:
            break

    async def core() -> None:
        await writable(one.fileno())

    def drain() -> None:
        got = 0
        while got < sent:
            try:
                got += len(two.recv(65536))
            except BlockingIOError:
                time.sleep(0.001)

    thread = threading.Timer(0.05, drain)
    thread.start()
    run(core())
    thread.join()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_deadline_is_a_timeout_error(run: Run, pair: tuple[socket.socket, socket.socket], timeout: float) -> None:
    async def core() -> str:
        try:
            await readable(pair[0].fileno(), timeout)
        except TimeoutError:
            return "late"
        return "early"

    assert run(core()) == "late"


@pytest.mark.parametrize("timeout", [-1.0, -0.001])
def test_a_deadline_that_has_passed_is_a_timeout_error(
    run: Run, pair: tuple[socket.socket, socket.socket], timeout: float
) -> None:
    async def core() -> None:
        await readable(pair[0].fileno(), timeout)

    with pytest.raises(TimeoutError):
        run(core())


def test_any_of_many_descriptors_wakes(run: Run, pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair

    async def core() -> None:
        await AnyOf((one.fileno(), two.fileno()), (one.fileno(),), 5)

    run(core())


def test_any_of_leaves_no_descriptor_registered(pair: tuple[socket.socket, socket.socket]) -> None:
    """A descriptor's number is used again by the next socket: a stale registration would wake the wrong one."""
    one, two = pair

    async def core() -> bytes:
        with pytest.raises(TimeoutError):
            await readable(one.fileno(), 0.01)
        two.send(b"x")
        await readable(one.fileno(), 5)
        return one.recv(10)

    assert _run_async(core()) == b"x"


def test_blocking_calls_run_beside_each_other_under_asyncio() -> None:
    barrier = threading.Barrier(3, timeout=10)

    async def core() -> int:
        turn: int = await Blocking(barrier.wait)
        return turn

    async def main() -> list[int]:
        return await asyncio.gather(*(_dual.run_async(core()) for _ in range(3)))

    assert sorted(asyncio.run(main())) == [0, 1, 2]


def test_blocking_runs_in_place_in_the_blocking_face() -> None:
    async def core() -> object:
        return await Blocking(threading.get_ident)

    assert _dual.run_sync(core()) == threading.get_ident()
    assert _run_async(core()) != threading.get_ident()


def test_sleep_sleeps(run: Run) -> None:
    async def core() -> None:
        await Sleep(0.02)

    before = time.monotonic()
    run(core())
    assert time.monotonic() - before >= 0.02


def test_core_code_that_awaits_something_else_is_told_what(run: Run) -> None:
    class Foreign:
        def __await__(self) -> Iterator[object]:
            yield "something else"

    async def core() -> None:
        await Foreign()  # type: ignore[misc]

    with pytest.raises(TypeError, match="may await only effects, got str"):
        run(core())


def test_an_effect_of_nobody_cannot_be_waited_for(run: Run) -> None:
    async def core() -> None:
        await Effect[None]()

    with pytest.raises(NotImplementedError):
        run(core())


def test_cancellation_reaches_the_cores_finally() -> None:
    log: list[str] = []

    async def core() -> None:
        try:
            await Sleep(60)
        finally:
            await Sleep(0)  # cleaning up may wait, too
            log.append("cleaned up")

    async def main() -> None:
        task = asyncio.ensure_future(_dual.run_async(core()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["cleaned up"]


def test_control_c_reaches_the_cores_finally() -> None:
    log: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def core() -> None:
        try:
            await Blocking(interrupt)
        finally:
            await Sleep(0)
            log.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        _dual.run_sync(core())
    assert log == ["cleaned up"]


def test_an_exception_of_an_effect_can_be_handled(run: Run) -> None:
    async def core() -> str:
        try:
            await Blocking(int, "x")
        except ValueError:
            await Sleep(0)
            return "handled"
        return "nothing happened"

    assert run(core()) == "handled"


def test_core_code_runs_inside_a_running_loop_by_its_blocking_face() -> None:
    """Notebooks: `f(…)` must work where a loop is running, also if it then blocks it."""

    async def main() -> int:
        return Counter().add(1)

    assert asyncio.run(main()) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_makes_its_own_threads() -> None:
    async def core() -> object:
        return await Blocking(os.getpid)

    assert _run_async(core()) == os.getpid()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, b"yes" if _run_async(core()) == os.getpid() else b"no")
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"yes"
    os.waitpid(pid, 0)


def test_a_deep_chain_of_core_calls_costs_no_recursion_of_the_driver(run: Run) -> None:
    async def core(depth: int) -> int:
        return depth if depth == 200 else await core(depth + 1)

    assert run(core(0)) == 200


async def _passed_on(source: int, target: int, name: str) -> str:
    await readable(source, 10)
    os.write(target, os.read(source, 1))
    return name


@pytest.mark.parametrize("drive", [run_sync, lambda core: asyncio.run(run_async(core))], ids=["blocking", "async"])
def test_together_one_goes_on_while_another_waits(drive: Callable[[Any], Any]) -> None:
    """Each waits for what the next one writes: one after the other, they would wait for ever."""
    (a, b), (c, d) = os.pipe(), os.pipe()
    started = os.pipe()

    async def fails() -> str:
        os.write(d, b"x")
        raise ValueError("its own")

    async def all_three() -> list[Any]:
        return await Together([_passed_on(a, started[1], "first"), _passed_on(c, b, "second"), fails()])

    first, second, error = drive(all_three())
    assert (first, second, str(error), os.read(started[0], 1)) == ("first", "second", "its own", b"x")
    for fd in (a, b, c, d, *started):
        os.close(fd)


def test_together_what_interrupts_is_raised_in_each() -> None:
    ended: list[str] = []
    pipe = os.pipe()

    async def waits(name: str) -> None:
        try:
            await readable(pipe[0])
        finally:
            ended.append(name)

    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def all_three() -> list[Any]:
        return await Together([waits("first"), waits("second"), interrupted()])

    with pytest.raises(KeyboardInterrupt):
        run_sync(all_three())
    assert ended == ["first", "second"]
    for fd in pipe:
        os.close(fd)
