"""The native program: where it is, and how it is started."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from openmodal.errors import EngineError

_ALL_SIGNALS = [n for n in signal.Signals if n not in (signal.SIGKILL, signal.SIGSTOP)]


def find(state: Path, cpu: str = "") -> str:
    """The path of the program, for this CPU or another one ("x86_64", "aarch64").

    Raises:
        EngineError: there is none, or it cannot be executed.
    """
    if chosen := os.environ.get("OPENMODAL_AGENT"):
        if not os.access(chosen, os.X_OK):
            raise EngineError(f"OPENMODAL_AGENT is {chosen!r}, which cannot be executed; build it with native/build.py")
        return chosen
    return _packaged(state, cpu or platform.machine())


@functools.cache
def _packaged(state: Path, machine: str) -> str:
    cpu = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    path = Path(__file__).parents[1] / "_native" / f"openmodal-agent-{cpu}"
    if not path.exists():
        raise EngineError(
            f"there is no native program for {cpu} in this installation; install a compiler "
            "(`apt-get install gcc`) and reinstall openmodal"
        )
    return str(path) if os.access(path, os.X_OK) else str(_executable_copy(path, state))


def _executable_copy(path: Path, state: Path) -> Path:
    """Some installers lose the mode of package data."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    copy = state / "bin" / f"{path.name}-{digest}"
    if not copy.exists():
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = copy.with_suffix(f".{os.getpid()}")
        shutil.copyfile(path, new)
        new.chmod(0o755)
        new.rename(copy)
    return copy


def start(program: str, arguments: Sequence[str], stdin: int, stdout: int, held: int = -1) -> int:
    """Start the program with these descriptors (`held` as 3) and no other of ours, no signal blocked; return its process id.

    posix_spawn, not subprocess: it costs a millisecond less and needs no lock that a fork could leave held.
    """
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stdout, 2),
    ]
    if held >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, held, 3))
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return os.posix_spawn(
        program, [program, *arguments], environment, file_actions=actions, setsigmask=[], setsigdef=_ALL_SIGNALS
    )
