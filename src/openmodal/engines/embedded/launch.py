"""Starting a box, and talking to it: its report, its supervisor, its agent's socket."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from openmodal import _binary, _ends
from openmodal._dual import readable, run_sync
from openmodal._link import connected, peer
from openmodal._spec import EndRecord
from openmodal.engines.embedded import plan
from openmodal.errors import DiskFullError, EngineError

STOP_SECONDS = 10.0

_START_SECONDS = 60.0
_END_SECONDS = 5.0

_ASPECTS = {
    "userns": "user namespaces",
    "ids": "user ids",
    "store": "store",
    "overlay": "overlayfs",
    "seccomp": "seccomp",
    "busy": "busy",
    "taken": "taken",
    "unsupported": "unsupported",
}


async def start(program: str, box: plan.Box, held: int = -1) -> None:
    """Start a box and wait until it is ready. `held` is a descriptor for its supervisor to keep.

    If we are interrupted meanwhile, the sandbox is ended.

    Raises:
        EngineError, DiskFullError: what the box says; nothing is left but the folder.
    """
    try:
        await _launch(program, plan.encode(box), held)
    except EngineError:
        raise
    except BaseException:
        with contextlib.suppress(OSError, TimeoutError):
            run_sync(ask(box.folder, b"t", STOP_SECONDS))
        raise


async def ask(folder: Path, word: bytes, timeout: float | None) -> EndRecord:
    """Ask a sandbox's supervisor to end it (b"t") or to tell when it has ended (b"w"); return how
    it ended.

    Raises:
        ConnectionError: there is no supervisor any more.
        TimeoutError: it has not answered in time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    return _ends.decode(await _answer(folder, word, (), deadline))


async def request(folder: Path, line: str, fds: Sequence[int] = (), timeout: float | None = None) -> str:
    """Ask a sandbox's supervisor for something else (docs/protocol.md); return what it says to
    that.

    `fds`: at most four descriptors that it is given.

    Raises:
        EngineError, DiskFullError: it could not do that, and says why.
        ConnectionError: there is no supervisor any more.
        TimeoutError: it has not answered in time; it may still do it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    said = await _answer(folder, f"{line}\n".encode(), fds, deadline)
    word, _, rest = said.strip().partition(" ")
    if word != "ok":
        raise _refused(said)
    return rest


async def _answer(folder: Path, asked: bytes, fds: Sequence[int], deadline: float | None) -> str:
    with await connect(folder, "control.sock") as sock:
        socket.send_fds(sock, [asked], fds)
        parts: list[bytes] = []
        while True:
            await readable(sock.fileno(), None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not (data := sock.recv(4096)):
                break
            parts.append(data)
    if not parts:
        raise ConnectionResetError("the supervisor died")
    return b"".join(parts).decode("utf-8", "replace")


async def supervisor(folder: Path) -> int:
    """The process that listens on a sandbox's control socket.

    Raises:
        ConnectionError: there is no supervisor any more.
    """
    with await connect(folder, "control.sock") as sock:
        return peer(sock)


async def kill_supervisor(folder: Path) -> None:
    """Kill a sandbox's supervisor, if there is one."""
    with contextlib.suppress(ConnectionError, ProcessLookupError):
        os.kill(await supervisor(folder), signal.SIGKILL)


async def _launch(program: str, plan_bytes: bytes, held: int) -> None:
    """Start a box and wait until it is ready; raise what it says otherwise."""
    # The report is closed first: a box that cannot tell that it is ready ends.
    with contextlib.ExitStack() as last, contextlib.ExitStack() as first:
        report, report_end = os.pipe2(os.O_CLOEXEC)
        first.callback(os.close, report)
        with contextlib.ExitStack() as given:
            given.callback(os.close, report_end)
            plan_fd = os.memfd_create("plan", os.MFD_CLOEXEC)
            given.callback(os.close, plan_fd)
            os.write(plan_fd, plan_bytes)
            os.lseek(plan_fd, 0, os.SEEK_SET)
            pid = _started(program, plan_fd, report_end, held)
        last.callback(_reap, pid)
        said = await _read_to_end(report)
    if not said.startswith("ready "):
        raise _refused(said)


def _started(program: str, plan_fd: int, report_end: int, held: int) -> int:
    try:
        return _binary.start(program, ("box",), plan_fd, report_end, held)
    except OSError as error:
        raise EngineError(
            f"the native program {program} cannot be started: {error.strerror}; reinstall openmodal"
        ) from error


def _reap(pid: int) -> None:
    """Wait for the program, which ends once its report is closed. Kill it if it hangs."""
    # The user's program may ignore SIGCHLD.
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        process = os.pidfd_open(pid)
        try:
            ended = select.poll()
            ended.register(process, select.POLLIN)
            if not ended.poll(_END_SECONDS * 1000):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                ended.poll(_END_SECONDS * 1000)
        finally:
            os.close(process)
        os.waitpid(pid, os.WNOHANG)


async def _read_to_end(fd: int) -> str:
    parts: list[bytes] = []
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await readable(fd, deadline - time.monotonic())
        except TimeoutError:
            raise EngineError(
                f"a sandbox did not start within {_START_SECONDS:.0f} s; is the machine overloaded?"
            ) from None
        data = os.read(fd, 65536)
        if not data:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(data)
        if data.endswith(b"\n") and b"".join(parts).startswith(b"ready "):
            return b"".join(parts).decode()


def _refused(said: str) -> EngineError:
    """The exception for `error KIND sentence`, of a box or of its supervisor."""
    word, _, rest = said.strip().partition(" ")
    kind, _, sentence = rest.partition(" ")
    if word != "error" or not sentence:
        return EngineError(f"the native program failed; it said: {said.strip() or 'nothing'}")
    return DiskFullError(sentence) if kind == "space" else EngineError(sentence, aspect=_ASPECTS.get(kind, ""))


async def connect(folder: Path, name: str) -> socket.socket:
    """Connect through the open folder: a path may be too long for a socket's address."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConnectionRefusedError(str(error)) from error
    try:
        return await connected(f"/proc/self/fd/{fd}/{name}")
    except FileNotFoundError as error:
        raise ConnectionRefusedError(str(error)) from error
    finally:
        os.close(fd)
