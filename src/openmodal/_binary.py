"""The native program: where it is, and how it and other programs of this machine are started."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openmodal.errors import EngineError

if TYPE_CHECKING:
    import subprocess

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are: an administrator's, and those of an image that sets no PATH."""

MOST_SECONDS = 60.0
"""That a program may take of which a sandbox waits."""

_ALL_SIGNALS = [n for n in signal.Signals if n not in (signal.SIGKILL, signal.SIGSTOP)]


def find(state: Path, cpu: str = "") -> str:
    """The path of the program, for this CPU or another one ("x86_64" or "amd64", "aarch64" or
    "arm64"), as something to execute.

    Raises:
        EngineError: there is none, or it cannot be executed.
    """
    if chosen := os.environ.get("OPENMODAL_AGENT"):
        if not os.access(chosen, os.X_OK):
            raise EngineError(f"OPENMODAL_AGENT is {chosen!r}, which cannot be executed; build it with native/build.py")
        return chosen
    return _executable(state, cpu or os.uname().machine)


def own(state: Path) -> str:
    """The program for this machine's own house-keeping: this installation's, whatever is chosen for
    sandboxes; else that.

    Raises:
        EngineError: there is none, or it cannot be executed.
    """
    try:
        return _executable(state, os.uname().machine)
    except EngineError:
        return find(state)


def content(cpu: str) -> bytes:
    """The program itself, for that CPU.

    Raises:
        EngineError: there is none, or it cannot be read.
    """
    path = Path(os.environ.get("OPENMODAL_AGENT") or _packaged(cpu))
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"the native program {path} cannot be read: {error.strerror}"
        raise EngineError(f"{reason}; set OPENMODAL_AGENT to one that can be") from error


@functools.cache
def _executable(state: Path, cpu: str) -> str:
    path = _packaged(cpu)
    return str(path) if os.access(path, os.X_OK) else str(_executable_copy(path, state))


def _packaged(cpu: str) -> Path:
    machine = _machine(cpu)
    path = Path(__file__).parent / "_native" / f"openmodal-agent-{machine}"
    if not path.exists():
        remedy = "install a release wheel of openmodal, which has it for both CPUs"
        if machine == _machine(os.uname().machine):
            remedy = "install a compiler (`apt-get install gcc`) and reinstall openmodal"
        raise EngineError(f"there is no native program for {machine} in this installation; {remedy}")
    return path


def _machine(cpu: str) -> str:
    """The CPU's name as the kernel has it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(cpu.lower(), cpu.lower())


def _executable_copy(path: Path, state: Path) -> Path:
    """Some installers lose the mode of package data."""
    import hashlib
    import shutil

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
    """Start the program with these descriptors (`held` as 3) and no other of ours, no signal
    blocked; return its process id.

    posix_spawn, not subprocess: it costs a millisecond less and needs no lock that a fork could
    leave held.
    """
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stdout, 2),
    ]
    if held >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, held, 3))
    return os.posix_spawn(
        program, [program, *arguments], {"PATH": PATH}, file_actions=actions, setsigmask=[], setsigdef=_ALL_SIGNALS
    )


def run(command: Sequence[str], text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a program of this machine to its end. One that hangs is ended, not waited for.

    Raises:
        EngineError: it has not ended in time.
    """
    import subprocess

    try:
        return subprocess.run(command, input=text, capture_output=True, check=False, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        name = " ".join(map(os.path.basename, command[:2]))
        raise EngineError(
            f"{name!r} has not ended within {MOST_SECONDS:.0f} s and was killed; is the machine overloaded, or does somebody hold a lock?"
        ) from error
