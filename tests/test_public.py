"""The public surface is a list: who adds or removes a name does it here, on purpose."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import openmodal
import openmodal.errors
from openmodal._command import Command, Spool
from openmodal._sources import Kept
from openmodal._spec import Layered
from openmodal.engines import load
from openmodal.errors import CommandFailedError, ExecTimeoutError, SandboxFilesystemError, file_error
from openmodal.process import StreamReader, StreamWriter, failed, timed_out
from openmodal.tunnel import _Child

PUBLIC = [
    "AlreadyExistsError",
    "App",
    "Checkpoint",
    "CodeError",
    "CommandFailedError",
    "Connection",
    "DiskFullError",
    "EngineError",
    "Error",
    "ExecError",
    "ExecTimeoutError",
    "Execution",
    "FileEvent",
    "FileInfo",
    "Filesystem",
    "Forward",
    "HostDirectory",
    "Image",
    "ImageBuildError",
    "ImageError",
    "Interpreter",
    "InterpreterTimeoutError",
    "InvalidError",
    "LineTooLongError",
    "NotFoundError",
    "OutputLostWarning",
    "Pool",
    "Probe",
    "Process",
    "ProtocolError",
    "RegistryError",
    "Sandbox",
    "SandboxConnectionRefusedError",
    "SandboxConnectionResetError",
    "SandboxDirectoryNotEmptyError",
    "SandboxError",
    "SandboxFileNotFoundError",
    "SandboxFileTooLargeError",
    "SandboxFilesystemError",
    "SandboxIsADirectoryError",
    "SandboxNotADirectoryError",
    "SandboxNotRunningError",
    "SandboxPathAlreadyExistsError",
    "SandboxPermissionError",
    "SandboxResetError",
    "SandboxTerminatedError",
    "SandboxTimeoutError",
    "Secret",
    "Shell",
    "ShellResult",
    "ShellTimeoutError",
    "StdinClosedError",
    "StreamReader",
    "StreamType",
    "StreamWriter",
    "Tunnel",
    "UnsupportedError",
    "Volume",
    "VolumeInUseError",
    "VolumeUpload",
    "Watch",
    "__version__",
]

HEAVY = {"asyncio", "click", "e2b_dockerfile_utils", "google", "httpx2", "lightkube", "rich", "ssl"}
"""What `import openmodal` must not pay for."""

UNNEEDED = {"ctypes", "dataclasses", "hashlib", "secrets", "shutil", "subprocess", "tempfile", "threading"} | {
    f"openmodal.{name}"
    for name in ("build.names", "build.progress", "build.prune", "build.steps", "filesystem", "shell", "volume")
}
"""Nor what one that only looks at sandboxes needs: each costs 1 to 10 ms. Dataclasses compile their
methods anew in each process; records are msgspec Structs."""


def test_exactly_these_names_are_exported() -> None:
    assert sorted(openmodal.__all__) == PUBLIC


def test_dir_shows_the_exported_names() -> None:
    assert set(PUBLIC) <= set(dir(openmodal))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_name_is_there_says_what_it_is_and_says_that_it_is_public(name: str) -> None:
    value = getattr(openmodal, name)
    assert inspect.isclass(value)
    assert value.__doc__
    assert value.__module__.startswith("openmodal.")
    assert not value.__module__.rpartition(".")[2].startswith("_"), "public things live in public modules"


def test_every_exception_is_exported_and_is_in_the_drawn_tree() -> None:
    errors = {
        name: value
        for name, value in vars(openmodal.errors).items()
        if inspect.isclass(value) and issubclass(value, openmodal.errors.Error)
    }
    assert set(errors) <= set(PUBLIC)
    missing = [name for name in errors if f" {name}" not in f" {openmodal.errors.__doc__}".replace("\n", " ")]
    assert not missing


def an_instance(name: str) -> Any:
    """Something of a public class, as users come to have it."""
    value = getattr(openmodal, name)
    sandbox = openmodal.Sandbox("app-00000000", load("embedded"))
    made: dict[str, Callable[[], object]] = {
        "App": lambda: value("name"),
        "Checkpoint": lambda: value("app-00000000", Layered("key", layers=("key",))),
        "CommandFailedError": lambda: failed(an_instance("Process"), b"said"),
        "Connection": lambda: value(Command(sandbox._agent, b"i" * 16), 80),
        "ExecTimeoutError": lambda: timed_out(an_instance("Process")),
        "FileEvent": lambda: value("moved", "/a/b", False, "/a/c"),
        "FileInfo": lambda: value("/a/b", "b", "file", 1, 0o644, 0, 0, 1.5, ""),
        "Filesystem": lambda: sandbox.filesystem,
        "Forward": lambda: value("127.0.0.1", 80, _Child(1, -1)),
        "Image": lambda: value.debian_slim().apt_install("git"),
        "ImageBuildError": lambda: value("text", step="RUN false", output="lines"),
        "CodeError": lambda: value("NameError", "text", "lines"),
        "Execution": lambda: value("6", "text", None),
        "Interpreter": lambda: value(
            Command(sandbox._agent, b"i" * 16), ("python3",), sandbox._new_command, sandbox._exec
        ),
        "Pool": lambda: value("name", load("kubernetes")),
        "Probe": lambda: value.with_exec("true"),
        "Process": lambda: value(
            Command(sandbox._agent, b"i" * 16),
            ("x",),
            pid=1,
            stdout=Kept(Spool()),
            stderr=Kept(Spool()),
            text=True,
            stdin=0,
        ),
        "Sandbox": lambda: sandbox,
        "Secret": lambda: value({"NAME": "value"}),
        "Shell": lambda: value(Command(sandbox._agent, b"i" * 16), 7, sandbox._exec),
        "ShellResult": lambda: value("output", 0, "/"),
        "StreamReader": lambda: sandbox.stdout,
        "StreamType": lambda: value.STDOUT,
        "StreamWriter": lambda: sandbox.stdin,
        "HostDirectory": lambda: value("/srv"),
        "Volume": lambda: value.from_name("data").read_only(),
        "VolumeUpload": lambda: openmodal.Volume.from_name("data").batch_upload(),
        "Watch": lambda: value(sandbox._agent, b"request", "/a", 1.5),
        "Tunnel": lambda: value("127.0.0.1", 80),
    }
    if name in made:
        return made[name]()
    return file_error(errno.ENOENT, "/x") if issubclass(value, SandboxFilesystemError) else value("text")


COPIES: dict[str, Callable[[Any], Any]] = {
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
    **{f"pickled {n}": lambda thing, n=n: pickle.loads(pickle.dumps(thing, n)) for n in range(2, 6)},  # type: ignore[misc]
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_everything_public_survives_being(name: str, how: str) -> None:
    """What only fails when it is unpickled makes a multiprocessing.Pool wait for ever."""
    before = an_instance(name)
    if isinstance(before, BaseException):
        before.add_note("a note")
    after = COPIES[how](before)
    assert type(after) is type(before)
    if not isinstance(before, CommandFailedError | ExecTimeoutError | StreamReader | StreamWriter):
        assert repr(after) == repr(before) or " object at 0x" in repr(before)
    if isinstance(before, BaseException):
        assert str(after) == str(before)
        assert set(vars(after)) == set(vars(before))
        assert getattr(after, "errno", None) == getattr(before, "errno", None)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Sandbx"):
        openmodal.Sandbx  # noqa: B018


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import openmodal", HEAVY),
        ("import openmodal; openmodal.Sandbox", HEAVY | UNNEEDED),
        ("from openmodal.docker_cli import run; run(['ps'])", HEAVY | UNNEEDED),
    ],
)
def test_import_is_light(program: str, unwanted: set[str], tmp_path: Path) -> None:
    """In a child interpreter: what the package's import, its first use, and a verb pull in."""
    program = f"import sys; before = set(sys.modules); {program}; print(*set(sys.modules) - before)"
    env = os.environ | {"OPENMODAL_ENGINE": "embedded", "OPENMODAL_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {part for name in loaded for part in (name, name.split(".")[0])} & unwanted
