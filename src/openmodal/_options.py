"""The keywords of `exec` and `spawn`: their types for checkers and readers, and their checks at run time. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any, Literal, Protocol, TypedDict, Unpack, cast, overload

from openmodal import _args, _keywords
from openmodal._command import Feed
from openmodal._spec import ExecSpec
from openmodal._wire import Flag
from openmodal.errors import InvalidError
from openmodal.process import Process, StreamType
from openmodal.secret import Secret, merged

MAX_OUTPUT = 64 << 20
"""How many bytes of each stream `exec` gives if nothing is said: what this machine can hold without noticing."""
MAX_TAIL = 8 << 20
"""How many of the newest bytes an agent holds, in its memory."""


class SpawnOptions(TypedDict, total=False):
    """The keywords of `spawn`, and of `exec`.

    Attributes:
        timeout: seconds until the command and all its descendants are killed; None: none but the
            sandbox's.
        workdir: its working directory, from the sandbox's on if it is relative; None: that.
        env: variables, laid over the sandbox's.
        secrets: more of them; `env` beats `secrets`.
        user: "name", "uid", "name:group" or "uid:gid"; None: the image's user.
        pty: give it a terminal (24 rows of 80 columns, see `Process.resize`); stdout and stderr are
            then one.
        stdout, stderr: StreamType.PIPE, DEVNULL, or (stderr) STDOUT.
        max_output: how many bytes of each stream are given at most; what else the command writes is
            left out, and counted by `StreamReader.gaps`. None: all. `exec` gives 64 MiB if you say
            nothing, `spawn` all.
        keep: which ones: "head", the first; "tail", the newest (8 MiB at most); "both", the first
            and the newest, half of each (8 MiB of the newest at most). What is left out never makes
            the command wait, and the newest come when it has ended.
        bufsize: accepted for compatibility; iteration gives lines in any case.
    """

    timeout: float | None
    workdir: str | None
    env: Mapping[str, str] | None
    secrets: Iterable[Secret]
    user: str | None
    pty: bool
    stdout: StreamType
    stderr: StreamType
    max_output: int | None
    keep: Literal["head", "tail", "both"]
    bufsize: int


class ExecOptions(SpawnOptions, total=False):
    """The keywords of `exec`.

    Attributes:
        stdin: what the command reads: str, bytes, or a file open for reading; None: nothing.
        check: raise CommandFailedError if its exit code is not 0.
    """

    stdin: str | bytes | IO[str] | IO[bytes] | None
    check: bool


class AttachOptions(TypedDict, total=False):
    """The keywords of `process`.

    Attributes:
        stdout_offset, stderr_offset: where reading begins, in bytes from the stream's start.
            None: at the first byte that is kept.
    """

    stdout_offset: int | None
    stderr_offset: int | None


class ExecCall(Protocol):
    """The two faces of `exec`; `text` decides what its streams give."""

    @overload
    def __call__(self, *argv: str, text: Literal[True] = ..., **options: Unpack[ExecOptions]) -> Process[str]: ...
    @overload
    def __call__(self, *argv: str, text: Literal[False], **options: Unpack[ExecOptions]) -> Process[bytes]: ...
    @overload
    async def aio(self, *argv: str, text: Literal[True] = ..., **options: Unpack[ExecOptions]) -> Process[str]: ...
    @overload
    async def aio(self, *argv: str, text: Literal[False], **options: Unpack[ExecOptions]) -> Process[bytes]: ...


class SpawnCall(Protocol):
    """The two faces of `spawn`."""

    @overload
    def __call__(self, *argv: str, text: Literal[True] = ..., **options: Unpack[SpawnOptions]) -> Process[str]: ...
    @overload
    def __call__(self, *argv: str, text: Literal[False], **options: Unpack[SpawnOptions]) -> Process[bytes]: ...
    @overload
    async def aio(self, *argv: str, text: Literal[True] = ..., **options: Unpack[SpawnOptions]) -> Process[str]: ...
    @overload
    async def aio(self, *argv: str, text: Literal[False], **options: Unpack[SpawnOptions]) -> Process[bytes]: ...


class ProcessCall(Protocol):
    """The two faces of `process`."""

    @overload
    def __call__(self, id: str, *, text: Literal[True] = ..., **options: Unpack[AttachOptions]) -> Process[str]: ...
    @overload
    def __call__(self, id: str, *, text: Literal[False], **options: Unpack[AttachOptions]) -> Process[bytes]: ...
    @overload
    async def aio(self, id: str, *, text: Literal[True] = ..., **options: Unpack[AttachOptions]) -> Process[str]: ...
    @overload
    async def aio(self, id: str, *, text: Literal[False], **options: Unpack[AttachOptions]) -> Process[bytes]: ...


def environment(env: Mapping[str, str] | None, secrets: Iterable[Secret]) -> _args.Pairs:
    """The variables of `secrets=` and `env=`, which beats them."""
    return tuple((merged(secrets) | dict(_args.variables("env", env))).items())


def secret_names(env: Mapping[str, str] | None, secrets: Iterable[Secret]) -> tuple[str, ...]:
    """The variables whose values are from `secrets=`, as `environment` merges them."""
    return tuple({name for secret in secrets for name in secret.variables} - {*(env or ())})


def feed(stdin: object) -> Feed | None:
    """What `stdin=` gives to read; None: nothing."""
    if stdin is None:
        return None
    if isinstance(stdin, str):
        stdin = stdin.encode("utf-8", "surrogateescape")
    if isinstance(stdin, bytes | bytearray | memoryview):
        return Feed(bytes(stdin)) if len(stdin) else None
    if not hasattr(stdin, "read"):
        raise InvalidError(f"stdin must be str, bytes or a file open for reading, not {type(stdin).__name__}")
    return Feed(cast("IO[Any]", stdin))


def exec_spec(function: str, argv: tuple[str, ...], options: dict[str, Any], flags: int) -> ExecSpec:
    """Check the keywords of exec and spawn."""
    known = (*SpawnOptions.__annotations__, "text", *(("stdin", "check") if function == "exec" else ()))
    _keywords.unknown(function, options, known)
    workdir, user = options.get("workdir"), options.get("user")
    spec = ExecSpec(
        argv=_args.argv(function, argv),
        env=environment(options.get("env"), options.get("secrets", ())),
        user=_args.string("user", user) if user is not None else "",
        workdir=_args.path("workdir", workdir) if workdir is not None else "",
        timeout=_args.optional_seconds("timeout", options.get("timeout")),
        flags=flags | _stream_flags(options),
        output=_output(function, options),
    )
    _args.command_size(function, spec.argv, spec.env)
    return spec


def _output(function: str, options: dict[str, Any]) -> tuple[int, int] | None:
    """How many bytes of each stream's beginning and end are given; None: all."""
    keep = options.get("keep", "both")
    if keep not in ("head", "tail", "both"):
        raise InvalidError(f'keep must be "head", "tail" or "both", not {keep!r}; max_output= says how many bytes')
    most = options.get("max_output", MAX_OUTPUT if function == "exec" or "keep" in options else None)
    if most is None and "keep" in options:
        raise InvalidError(
            f"max_output=None gives all output, so there is nothing for keep={keep!r} to choose; leave one of them out"
        )
    if most is None:
        return None
    if "max_output" not in options and keep == "tail":
        most = MAX_TAIL
    most = _args.count("max_output", most, sys.maxsize)
    if keep == "tail" and most > MAX_TAIL:
        raise InvalidError(
            f'max_output can be {MAX_TAIL} at most with keep="tail", which the sandbox holds in memory, not {most}; '
            "write more to a file in the sandbox, and copy that"
        )
    tail = {"head": 0, "tail": most, "both": min(most // 2, MAX_TAIL)}[keep]
    return most - tail, tail


def why_missing(function: str, options: Mapping[str, Any]) -> str:
    """Why some of a command's output may be missing, and what to do about it; "" where that was asked for."""
    if "max_output" in options or "keep" in options:
        return ""
    if function == "exec":
        return (
            f"because the command wrote more than {MAX_OUTPUT >> 20} MiB; have more given with exec(…, max_output=BYTES), or all with "
            "max_output=None"
        )
    return (
        "because another handle has read them, or nobody did while the command wrote more than is kept; "
        'read sooner, or have more kept: spawn(…, max_output=BYTES, keep="head")'
    )


def _stream_flags(options: dict[str, Any]) -> int:
    stdout, stderr = options.get("stdout", StreamType.PIPE), options.get("stderr", StreamType.PIPE)
    if stdout not in (StreamType.PIPE, StreamType.DEVNULL):
        raise InvalidError(f"stdout must be StreamType.PIPE or StreamType.DEVNULL, not {stdout!r}")
    if not isinstance(stderr, StreamType):
        raise InvalidError(f"stderr must be StreamType.PIPE, STDOUT or DEVNULL, not {stderr!r}")
    return (
        (Flag.PTY if options.get("pty") else 0)
        | (Flag.STDOUT_NULL if stdout is StreamType.DEVNULL else 0)
        | (Flag.STDERR_NULL if stderr is StreamType.DEVNULL else 0)
        | (Flag.STDERR_TO_STDOUT if stderr is StreamType.STDOUT else 0)
    )
