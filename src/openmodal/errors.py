"""Every exception of OpenModal, in one tree.

::

    Error
    ├── InvalidError (ValueError)              an argument is wrong; nothing was done
    ├── NotFoundError (LookupError)            no sandbox, image or command of that name
    ├── AlreadyExistsError                     the name is taken, or the id
    ├── VolumeInUseError                       a running sandbox has the volume mounted
    ├── UnsupportedError (NotImplementedError) this engine or machine cannot do it; the text says which can
    ├── EngineError                            the engine cannot work: no rights, no kernel feature, no daemon
    │   ├── ProtocolError                      the agent or supervisor said something that does not fit
    │   └── DiskFullError (OSError ENOSPC)     a disk of this machine is full
    ├── ImageError
    │   ├── ImageBuildError                    a step failed; `.step`, `.output`
    │   └── RegistryError                      a registry refused, lied, or cannot be reached
    ├── SandboxError
    │   ├── SandboxResetError                  it was reset; this belongs to the time before
    │   ├── SandboxConnectionRefusedError (ConnectionRefusedError) nothing listens on that port
    │   ├── SandboxConnectionResetError (ConnectionResetError) the other side has broken the connection
    │   └── SandboxNotRunningError             it has ended; the text says why
    │       ├── SandboxTerminatedError         it was terminated, perhaps in the middle of this call
    │       └── SandboxTimeoutError (TimeoutError) its lifetime is over
    ├── ExecError
    │   ├── CommandFailedError                 exec(…, check=True) of a command that failed; `.process`
    │   ├── ExecTimeoutError (TimeoutError)    the command's timeout; `.process` has its output so far
    │   ├── ShellTimeoutError (TimeoutError)   the timeout of a command in a shell; `.result` has its output so far
    │   ├── InterpreterTimeoutError (TimeoutError) the same of code in an interpreter; `.execution`
    │   ├── LineTooLongError                   a line is longer than `readline` takes; `.limit`
    │   └── StdinClosedError (BrokenPipeError) the command reads no more
    └── SandboxFilesystemError (OSError)
        ├── SandboxFileNotFoundError (FileNotFoundError)
        ├── SandboxIsADirectoryError (IsADirectoryError)
        ├── SandboxNotADirectoryError (NotADirectoryError)
        ├── SandboxPermissionError (PermissionError)
        ├── SandboxDirectoryNotEmptyError
        ├── SandboxFileTooLargeError               more than was asked for at most; `.limit`
        └── SandboxPathAlreadyExistsError (FileExistsError)

A failure of the sandbox is an exception; a failure of the user's command is a value (`returncode`).
Each text is one sentence that names the cause and, where there is one, the remedy. They can be
pickled, as everything public: another process gets them whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmodal.interpreter import Execution
    from openmodal.process import Process
    from openmodal.shell import ShellResult


class Error(Exception):
    """The root of every exception that OpenModal raises on purpose."""


class InvalidError(Error, ValueError):
    """An argument is wrong. Raised before anything is created or changed."""


class NotFoundError(Error, LookupError):
    """There is no sandbox, image or command of that id or name."""


class AlreadyExistsError(Error):
    """The name is taken: by a running sandbox of the same app, or another volume. Or the id is: by a
    sandbox that was asked for in another way, or has ended.
    """


class VolumeInUseError(Error):
    """A running sandbox has the volume mounted: it is neither deleted nor renamed."""


class UnsupportedError(Error, NotImplementedError):
    """The engine or this machine cannot do that; the text says what can."""


class EngineError(Error):
    """The engine cannot work here: rights, kernel features, or a daemon are missing. Nothing is
    left behind.

    `aspect` is what of this machine is lacking, as `openmodal doctor` calls it; "" if that is not
    known.
    """

    def __init__(self, *args: object, aspect: str = "") -> None:
        super().__init__(*args)
        self.aspect = aspect


class ProtocolError(EngineError):
    """The other side of a link said something that does not fit docs/protocol.md. The link is closed."""


class DiskFullError(EngineError, OSError):
    """A disk of this machine is full: the store's, that of a copy's target or of temporary files.
    What was half-made is removed."""

    def __init__(self, text: str) -> None:
        OSError.__init__(self, errno.ENOSPC, text)
        self.aspect = "disk space"

    def __str__(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),), self.__dict__


def extra(name: str) -> str:
    """How to install what an extra of this package needs. No index has this package: `openmodal`
    belongs to another project there."""
    return f"in OpenModal's checkout, run: pip install '.[{name}]' (with a wheel: pip install 'WHEEL[{name}]')"


def no_room(error: OSError) -> bool:
    """Whether something failed because a disk, or this user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason(error: Exception) -> str:
    """An error's text without an OSError's file and number: for a sentence that names the file."""
    return str(getattr(error, "strerror", None) or error)


OTHER_HOME = "run `openmodal image prune`, or set OPENMODAL_HOME to another disk"
OTHER_TEMPORARY = "or set TMPDIR to another disk"
OTHER_DISK = "or name a place on another disk"
"""What helps, beside free space, where the store, a temporary file or what was asked for has
none."""


def disk_full(path: str | os.PathLike[str], remedy: str = OTHER_HOME) -> DiskFullError:
    """The exception for a full disk, with its remedies."""
    return DiskFullError(f"the disk of {os.fspath(path)} is full; free some space, {remedy}")


@contextmanager
def disk_full_named(path: str | os.PathLike[str], remedy: str = OTHER_HOME) -> Iterator[None]:
    """Say which disk is full, in place of ENOSPC and EDQUOT alone, wherever they come from."""
    try:
        yield
    except OSError as error:
        if not no_room(error) or isinstance(error, Error):  # ours says whose disk it is
            raise
        raise disk_full(path, remedy) from error


def temporary_full_named() -> AbstractContextManager[None]:
    """The same of the disk that temporary files are on."""
    import tempfile

    return disk_full_named(tempfile.gettempdir(), OTHER_TEMPORARY)


def no_state(path: str | os.PathLike[str], error: OSError) -> EngineError:
    """The exception for a state folder that the system refuses, with its remedy."""
    if no_room(error):
        return disk_full(path)
    return EngineError(
        f"the state folder {os.fspath(path)} cannot be made: {error.strerror}; set OPENMODAL_HOME to a folder of yours"
    )


class ImageError(Error):
    """An image cannot be made or fetched. Nothing half-made stays in the cache."""


class ImageBuildError(ImageError):
    """A step of an image failed.

    Attributes:
        step: the step, as it would be written in a Dockerfile.
        output: the last lines that it printed.
    """

    def __init__(self, text: str, *, step: str = "", output: str = "") -> None:
        super().__init__(text)
        self.step = step
        self.output = output


class RegistryError(ImageError):
    """A registry refused, gave something whose digest is wrong, or cannot be reached."""


class SandboxError(Error):
    """The sandbox itself failed or has ended."""


class SandboxNotRunningError(SandboxError):
    """The sandbox has ended; the text says why: timeout, terminated, out of memory, main command exited."""


class SandboxResetError(SandboxError):
    """The sandbox was reset, and what was asked for belongs to the time before: a command, a
    connection, a file half read."""


class SandboxConnectionRefusedError(SandboxError, ConnectionRefusedError):
    """Nothing in the sandbox listens on that port."""


class SandboxConnectionResetError(SandboxError, ConnectionResetError):
    """What was connected to, in the sandbox, has broken the connection, or takes nothing more."""


class SandboxTerminatedError(SandboxNotRunningError):
    """The sandbox was terminated, perhaps while this call was under way."""


class SandboxTimeoutError(SandboxNotRunningError, TimeoutError):
    """The sandbox reached the end of its lifetime."""


class ExecError(Error):
    """A command could not be run or talked to as asked."""


class ExecTimeoutError(ExecError, TimeoutError):
    """The command's timeout expired; it and all its descendants are dead.

    Attributes:
        process: the finished process, with its output so far.
    """

    def __init__(self, text: str, process: Process[Any]) -> None:
        super().__init__(text)
        self.process = process

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.process), self.__dict__


class CommandFailedError(ExecError):
    """A command that was run with `check=True` ended with another exit code than 0.

    Attributes:
        process: the finished process, with its output.
    """

    def __init__(self, text: str, process: Process[Any]) -> None:
        super().__init__(text)
        self.process = process

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.process), self.__dict__


class ShellTimeoutError(ExecError, TimeoutError):
    """The timeout of a command in a shell expired; the command was ended, the shell stays.

    Attributes:
        result: its output so far, and how it ended.
    """

    def __init__(self, text: str, result: ShellResult | None = None) -> None:
        super().__init__(text)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result), self.__dict__


class InterpreterTimeoutError(ExecError, TimeoutError):
    """The timeout of code in an interpreter expired; the code was interrupted.

    Attributes:
        execution: its output so far, and how it ended.
    """

    def __init__(self, text: str, execution: Execution | None = None) -> None:
        super().__init__(text)
        self.execution = execution

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.execution), self.__dict__


class LineTooLongError(ExecError):
    """A line is longer than the reader's limit. Nothing is lost: `read_some` gives what came,
    `readline` with a higher limit goes on.

    Attributes:
        limit: how many characters, or bytes with text=False, a line may have.
    """

    def __init__(self, text: str, limit: int = 0) -> None:
        super().__init__(text)
        self.limit = limit


class StdinClosedError(ExecError, BrokenPipeError):
    """The command has exited or closed its standard input."""


class OutputLostWarning(RuntimeWarning):
    """Some of a command's output is not there any more; `StreamReader.gaps` tells where and how much. No error, for the rest is there."""


class SandboxFilesystemError(Error, OSError):
    """A file operation inside a sandbox or a volume failed; `errno` and `filename` are set as for
    any OSError."""

    _place = "the sandbox"

    def __str__(self) -> str:
        return f"{self.strerror}: {self.filename!r} (in {self._place})"


class SandboxFileNotFoundError(SandboxFilesystemError, FileNotFoundError):
    """There is no such file or folder."""


class SandboxIsADirectoryError(SandboxFilesystemError, IsADirectoryError):
    """It is a folder, where a file was needed."""


class SandboxNotADirectoryError(SandboxFilesystemError, NotADirectoryError):
    """It is not a folder, where one was needed."""


class SandboxPermissionError(SandboxFilesystemError, PermissionError):
    """The sandbox's user may not do that."""


class SandboxDirectoryNotEmptyError(SandboxFilesystemError):
    """The folder is not empty; `remove(path, recursive=True)` removes it with its contents."""


class SandboxPathAlreadyExistsError(SandboxFilesystemError, FileExistsError):
    """Something of that name is there already."""


class SandboxFileTooLargeError(SandboxFilesystemError):
    """It is larger than what was to be fetched at most; nothing is left of what was.

    Attributes:
        limit: how much that was, in bytes (of `list_files`: in entries); None if it was a limit of
            the sandbox itself.
    """

    limit: int | None = None


_FILE_ERRORS: dict[int, type[SandboxFilesystemError]] = {
    errno.ENOENT: SandboxFileNotFoundError,
    errno.EISDIR: SandboxIsADirectoryError,
    errno.ENOTDIR: SandboxNotADirectoryError,
    errno.EACCES: SandboxPermissionError,
    errno.EPERM: SandboxPermissionError,
    errno.EROFS: SandboxPermissionError,
    errno.ENOTEMPTY: SandboxDirectoryNotEmptyError,
    errno.EEXIST: SandboxPathAlreadyExistsError,
    errno.EFBIG: SandboxFileTooLargeError,
}


def file_error(number: int, path: str) -> SandboxFilesystemError:
    """Return the exception for an errno that came from inside a sandbox."""
    return _FILE_ERRORS.get(number, SandboxFilesystemError)(number, os.strerror(number), path)


def too_large(path: str, limit: int, text: str) -> SandboxFileTooLargeError:
    """Return the exception for something whose fetching was ended at a limit; `text` says at which, and what instead."""
    error = SandboxFileTooLargeError(errno.EFBIG, text, path)
    error.limit = limit
    return error
