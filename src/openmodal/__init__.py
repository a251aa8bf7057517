"""OpenModal: sandboxes for agents on your own machines.

    import openmodal

    app = openmodal.App("my-agent")
    image = openmodal.Image.debian_slim().apt_install("git")
    sandbox = openmodal.Sandbox.create(image=image, app=app)
    print(sandbox.exec("git", "--version").stdout.read())
    sandbox.terminate()

Names are loaded when they are first used, so that `import openmodal` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmodal.app import App as App
    from openmodal.connection import Connection as Connection
    from openmodal.errors import AlreadyExistsError as AlreadyExistsError
    from openmodal.errors import CommandFailedError as CommandFailedError
    from openmodal.errors import DiskFullError as DiskFullError
    from openmodal.errors import EngineError as EngineError
    from openmodal.errors import Error as Error
    from openmodal.errors import ExecError as ExecError
    from openmodal.errors import ExecTimeoutError as ExecTimeoutError
    from openmodal.errors import ImageBuildError as ImageBuildError
    from openmodal.errors import ImageError as ImageError
    from openmodal.errors import InterpreterTimeoutError as InterpreterTimeoutError
    from openmodal.errors import InvalidError as InvalidError
    from openmodal.errors import LineTooLongError as LineTooLongError
    from openmodal.errors import NotFoundError as NotFoundError
    from openmodal.errors import OutputLostWarning as OutputLostWarning
    from openmodal.errors import ProtocolError as ProtocolError
    from openmodal.errors import RegistryError as RegistryError
    from openmodal.errors import SandboxConnectionRefusedError as SandboxConnectionRefusedError
    from openmodal.errors import SandboxConnectionResetError as SandboxConnectionResetError
    from openmodal.errors import SandboxDirectoryNotEmptyError as SandboxDirectoryNotEmptyError
    from openmodal.errors import SandboxError as SandboxError
    from openmodal.errors import SandboxFileNotFoundError as SandboxFileNotFoundError
    from openmodal.errors import SandboxFilesystemError as SandboxFilesystemError
    from openmodal.errors import SandboxFileTooLargeError as SandboxFileTooLargeError
    from openmodal.errors import SandboxIsADirectoryError as SandboxIsADirectoryError
    from openmodal.errors import SandboxNotADirectoryError as SandboxNotADirectoryError
    from openmodal.errors import SandboxNotRunningError as SandboxNotRunningError
    from openmodal.errors import SandboxPathAlreadyExistsError as SandboxPathAlreadyExistsError
    from openmodal.errors import SandboxPermissionError as SandboxPermissionError
    from openmodal.errors import SandboxTerminatedError as SandboxTerminatedError
    from openmodal.errors import SandboxTimeoutError as SandboxTimeoutError
    from openmodal.errors import ShellTimeoutError as ShellTimeoutError
    from openmodal.errors import StdinClosedError as StdinClosedError
    from openmodal.errors import UnsupportedError as UnsupportedError
    from openmodal.errors import VolumeInUseError as VolumeInUseError
    from openmodal.filesystem import FileInfo as FileInfo
    from openmodal.filesystem import Filesystem as Filesystem
    from openmodal.image import Image as Image
    from openmodal.interpreter import CodeError as CodeError
    from openmodal.interpreter import Execution as Execution
    from openmodal.interpreter import Interpreter as Interpreter
    from openmodal.pool import Pool as Pool
    from openmodal.probe import Probe as Probe
    from openmodal.process import Process as Process
    from openmodal.process import StreamReader as StreamReader
    from openmodal.process import StreamType as StreamType
    from openmodal.process import StreamWriter as StreamWriter
    from openmodal.sandbox import Checkpoint as Checkpoint
    from openmodal.sandbox import Sandbox as Sandbox
    from openmodal.secret import Secret as Secret
    from openmodal.shell import Shell as Shell
    from openmodal.shell import ShellResult as ShellResult
    from openmodal.tunnel import Forward as Forward
    from openmodal.tunnel import Tunnel as Tunnel
    from openmodal.volume import HostDirectory as HostDirectory
    from openmodal.volume import Volume as Volume
    from openmodal.volume import VolumeUpload as VolumeUpload
    from openmodal.watch import FileEvent as FileEvent
    from openmodal.watch import Watch as Watch

__version__ = "0.1.0"

_HOMES = {
    "app": ("App",),
    "errors": (
        "AlreadyExistsError",
        "CommandFailedError",
        "DiskFullError",
        "EngineError",
        "Error",
        "ExecError",
        "ExecTimeoutError",
        "ImageBuildError",
        "ImageError",
        "InterpreterTimeoutError",
        "InvalidError",
        "LineTooLongError",
        "NotFoundError",
        "OutputLostWarning",
        "ProtocolError",
        "RegistryError",
        "SandboxDirectoryNotEmptyError",
        "SandboxConnectionRefusedError",
        "SandboxConnectionResetError",
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
        "ShellTimeoutError",
        "StdinClosedError",
        "UnsupportedError",
        "VolumeInUseError",
    ),
    "connection": ("Connection",),
    "filesystem": ("FileInfo", "Filesystem"),
    "image": ("Image",),
    "interpreter": ("CodeError", "Execution", "Interpreter"),
    "pool": ("Pool",),
    "probe": ("Probe",),
    "process": ("Process", "StreamReader", "StreamType", "StreamWriter"),
    "sandbox": ("Checkpoint", "Sandbox"),
    "secret": ("Secret",),
    "shell": ("Shell", "ShellResult"),
    "volume": ("HostDirectory", "Volume", "VolumeUpload"),
    "tunnel": ("Forward", "Tunnel"),
    "watch": ("FileEvent", "Watch"),
}

__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(f"openmodal.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'openmodal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
