"""How these tests attack: what they run inside, what they read outside, and sandboxes without controls."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from msgspec.structs import replace

from openmodal._dual import run_sync
from openmodal._spec import Root, SandboxSpec
from openmodal.engines.embedded import Embedded, launch, plan
from openmodal.sandbox import Sandbox

ALL_CONTROLS = ("seccomp", "caps", "nnp", "masks", "ids")
DENIED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
NATIVE = Path(__file__).resolve().parents[2] / "native"


def compiled(source: str, folder: Path) -> Path:
    """A tool of the attacker's, of a file beside this one."""
    program = folder / source.removesuffix(".c")
    compiler = shutil.which("musl-gcc") or "gcc"
    path = Path(__file__).with_name(source)
    subprocess.run([compiler, "-std=gnu11", "-O1", "-static", "-s", "-o", str(program), str(path)], check=True)
    return program


class Weakened(Embedded):
    """The embedded engine with sandboxes that lack controls: those that its test program leaves out, and changes of the plan."""

    def __init__(self, program: Path, controls: Sequence[str] = (), **changes: Any) -> None:
        super().__init__()
        self._program = program
        self._lines = [("weaken", control) for control in controls]
        self._changes = changes

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        with mock.patch.dict(os.environ, {"OPENMODAL_AGENT": str(self._program)}):
            return await super().create(spec, root)

    async def _box(
        self, spec: SandboxSpec, root: Root, id: str, folder: Path, lowers: Sequence[str], env: Mapping[str, str]
    ) -> plan.Box:
        box = await super()._box(spec, root, id, folder, lowers, env)
        box = replace(box, **{name: value for name, value in self._changes.items() if name != "extra"})
        return replace(box, extra=[*box.extra, *self._lines, *self._changes.get("extra", [])])


# ------------------------------------------------------------------------------------------- inside


def sh(sandbox: Sandbox, script: str, *, user: str | None = None) -> str:
    """What a script prints, complaints too."""
    process = sandbox.exec("sh", "-c", f"({script}) 2>&1", user=user, timeout=60)
    return process.stdout.read()


def works(sandbox: Sandbox, script: str, *, user: str | None = None) -> bool:
    """Whether a script succeeds."""
    return sandbox.exec("sh", "-c", script, user=user, timeout=60).returncode == 0


def call(sandbox: Sandbox, name: str, *words: object, user: str | None = None) -> int:
    """Make a system call by name; 0, or its error."""
    said = sandbox.exec("probe", "call", str(numbers()[name]), *map(str, words), user=user, timeout=60).stdout.read()
    word, value = said.split()[:2]
    return int(value) if word == "ERR" else 0


def opens(sandbox: Sandbox, *paths: str) -> list[str]:
    """Which of these files can be opened for writing. Nothing is written."""
    return sandbox.exec("probe", "open", *paths, timeout=60).stdout.read().splitlines()


@cache
def numbers() -> dict[str, int]:
    """The numbers of system calls on this CPU."""
    known: dict[str, int] = filter_source().target(["cc"])[1]
    return known


@cache
def filter_source() -> Any:
    """The module that writes the filter."""
    spec = importlib.util.spec_from_file_location("openmodal_filter", NATIVE / "seccomp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------ outside


def supervisor(engine: Embedded, sandbox: Sandbox) -> int:
    return run_sync(launch.supervisor(engine.store.folder(sandbox.id)))


def members(engine: Embedded, sandbox: Sandbox) -> list[int]:
    """The processes of a sandbox, as this machine numbers them; process 1 of the sandbox first."""
    boss = supervisor(engine, sandbox)
    return [pid for pid in _below(boss) if len(status(pid).get("NSpid", "").split()) > 1]


def _below(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in map(int, children):
        yield child
        yield from _below(child)


def status(pid: int | str) -> dict[str, str]:
    """/proc/PID/status; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
