"""Removing trees that a sandbox or an image made: any depth, owners and modes. The native program
does it (native/trash.c), for a plain user inside the user namespace that the files' owners belong
to.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from openmodal import _binary, _config, _idmap
from openmodal.errors import EngineError

_MOST_SAID = 4096  # bytes


def remove(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Remove a folder, with everything in it. Gone already: fine. Others may be doing the same.

    Raises:
        EngineError: it cannot be removed; what could be is.
    """
    folder, name = os.path.split(os.path.normpath(path))
    with contextlib.suppress(OSError):  # most often there is nothing in it, or nothing at all
        os.rmdir(path, dir_fd=dir_fd)
    try:
        parent = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        if is_there(name, parent):
            _remove(name, parent)
    finally:
        os.close(parent)


def _remove(name: str, parent: int) -> None:
    maps = [] if os.geteuid() == 0 else [f"{key}={value}" for key, value in _idmap.lines() if key != "ids"]
    said = _run(["remove", name, *maps], parent)
    if is_there(name, parent):
        where = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)
        reason = said.removeprefix("error ").partition(" ")[2].strip() or f"the native program said {said.strip()!r}"
        raise EngineError(f"{where} is not removed: {reason}; run `openmodal gc` when nothing writes into it any more")


def _run(arguments: list[str], folder: int) -> str:
    """Start the program with that folder as standard input, and wait; what it said."""
    said, told = os.pipe2(os.O_CLOEXEC)
    with open(said, "rb") as answer:
        try:
            pid = _binary.start(_binary.own(_config.state()), arguments, folder, told)
        finally:
            os.close(told)
        try:
            return answer.read(_MOST_SAID).decode("utf-8", "replace")
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            with contextlib.suppress(ChildProcessError):  # the host program ignores SIGCHLD
                os.waitpid(pid, 0)


def is_there(name: str, folder: int) -> bool:
    """Whether an open folder has something of that name; a link counts as itself."""
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def going_on(failed: list[str]) -> Iterator[None]:
    """What fails in the block is noted for `tell`: one thing that cannot be cleared away must not keep the others."""
    try:
        yield
    except (EngineError, OSError) as error:
        failed.append(str(error))


def tell(failed: list[str]) -> None:
    """Raise what was noted; the rest is done.

    Raises:
        EngineError: something was.
    """
    if failed:
        raise EngineError("; ".join(failed))
