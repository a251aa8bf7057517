"""`docker logs`: what the command of a container that was started with -d has written."""

from __future__ import annotations

import sys
from typing import BinaryIO

from openmodal import Sandbox
from openmodal.docker_cli import containers
from openmodal.docker_cli.failures import Failure
from openmodal.docker_cli.flags import Flags, Given

_PERIOD = 20.0  # seconds that one question may wait for output


def logs(arguments: list[str]) -> int:
    """Print what is kept of a container's output; with -f, what comes, too."""
    flags = Flags("logs", switches="follow,f timestamps,t details", texts="tail,n since until")
    given = flags.parse(arguments)
    found = containers.find(given.at_least(1, "logs")[0])
    if given.on("timestamps") or "since" in given.values or "until" in given.values:
        raise Failure("output is kept without its times; leave -t, --since and --until out")
    if found.record.foreground:
        raise Failure("its output went to the `docker run` that started it; start it with -d to have it kept")
    most = _most(given)
    ends = [_print(found.sandbox, stream, to, most) for stream, to in _streams()]
    if given.on("follow"):
        follow(found.sandbox, *ends)
    return 0


def follow(sandbox: Sandbox, stdout: int = 0, stderr: int = 0) -> None:
    """Print what comes behind so many bytes of each stream, until the end."""
    import threading

    (_, out), (_, err) = _streams()
    errors = threading.Thread(target=_copy, args=(sandbox, 2, err, stderr), daemon=True)
    errors.start()
    _copy(sandbox, 1, out, stdout)
    errors.join()


def _streams() -> tuple[tuple[int, BinaryIO], tuple[int, BinaryIO]]:
    return (1, sys.stdout.buffer), (2, sys.stderr.buffer)


def _most(given: Given) -> int | None:
    """How many lines --tail wants; None: all."""
    text = given.text("tail", "all")
    if text != "all" and not text.isdecimal():
        raise Failure(f"invalid argument {text!r} for -n, --tail: write a number of lines, or all")
    return None if text == "all" else int(text)


def _print(sandbox: Sandbox, stream: int, to: BinaryIO, most: int | None) -> int:
    """Print what is there of a stream; where it ends."""
    kept, at = b"", 0
    while True:
        piece = sandbox.logs(stream, at)
        at = piece.at + len(piece.data)
        kept += piece.data
        if not piece.data:
            break
    if most is not None:
        kept = b"".join(kept.splitlines(keepends=True)[-most:] if most else [])
    to.write(kept)
    to.flush()
    return at


def _copy(sandbox: Sandbox, stream: int, to: BinaryIO, at: int) -> None:
    while True:
        piece = sandbox.logs(stream, at, timeout=_PERIOD)
        to.write(piece.data)
        to.flush()
        at = piece.at + len(piece.data)
        if piece.ended:
            return
