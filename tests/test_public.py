"""The public surface is a list: who adds or removes a name does it here, on purpose."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import openmodal
import openmodal.errors

PUBLIC = [
    "AlreadyExistsError",
    "App",
    "DiskFullError",
    "EngineError",
    "Error",
    "ExecError",
    "ExecTimeoutError",
    "FileInfo",
    "Filesystem",
    "Image",
    "ImageBuildError",
    "ImageError",
    "InvalidError",
    "NotFoundError",
    "Pool",
    "Process",
    "ProtocolError",
    "RegistryError",
    "Sandbox",
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
    "SandboxTerminatedError",
    "SandboxTimeoutError",
    "Secret",
    "StdinClosedError",
    "StreamReader",
    "StreamType",
    "StreamWriter",
    "UnsupportedError",
    "__version__",
]

HEAVY = {"asyncio", "click", "e2b_dockerfile_utils", "google", "httpx2", "lightkube", "rich", "ssl"}
"""What `import openmodal` must not pay for."""


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


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Sandbx"):
        openmodal.Sandbx  # noqa: B018


def test_import_is_light() -> None:
    """In a child interpreter: what the import of the package pulls in."""
    program = "import sys; before = set(sys.modules); import openmodal; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & HEAVY
