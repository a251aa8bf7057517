"""OpenModal in other frameworks: a file or folder for each, which is imported with its framework.

What they share is here and imports no framework. A file has some 200 lines at most: what it would
have to emulate is missing in the SDK, and is added there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from openmodal.engines import choose, lacking
from openmodal.image import Image

Errors = Mapping[type[Exception], Callable[[str], Exception]]
"""What a framework raises for an error of ours, made of its text."""


LIFETIME = 24 * 3600.0
LEASE = 4 * 3600.0
"""Seconds, on engines that do not see that the framework's process was killed."""


def image_from(source: str, *, context_dir: str | None = None) -> Image:
    """The image that a framework names by a Dockerfile's path or by a registry's reference; Debian
    with Python if it names none."""
    if not source:
        return Image.debian_slim()
    if os.path.isabs(source):
        return Image.from_dockerfile(source, context_dir=context_dir)
    return Image.from_registry(source)


@contextmanager
def errors_as(theirs: Errors) -> Iterator[None]:
    """Raise a framework's errors in place of ours, by the first entry that fits."""
    try:
        yield
    except tuple(theirs) as error:
        make = next(make for ours, make in theirs.items() if isinstance(error, ours))
        raise make(str(error)) from error


def ends_with_us(options: Mapping[str, Any], lease: float) -> dict[str, Any]:
    """What makes a sandbox of these arguments of `Sandbox.create` end when this process does.

    Where the engine does not see that, it ends so many seconds after the last call to it.
    """
    engine = choose(options.get("engine"))
    # gVisor's agent listens on no socket that is seen outside of its container.
    unseen = engine.name == "docker" and options.get("runtime") == "gvisor"
    return {"lease": lease} if unseen or "owner" in lacking(engine) else {"owner": "process"}


def that_ends_with_us(options: Mapping[str, Any]) -> dict[str, Any]:
    """These arguments of `Sandbox.create`, for a sandbox that lasts as long as this process, but a
    day at most, unless they say otherwise."""
    return {"timeout": LIFETIME, **ends_with_us(options, LEASE), **options}


def in_shell(command: str) -> tuple[str, ...]:
    """What runs a command in bash, or in sh where the image has no bash."""
    return ("sh", "-c", 'command -v bash >/dev/null && exec bash -c "$1"; exec sh -c "$1"', "sh", command)


__all__ = ["Errors", "ends_with_us", "errors_as", "image_from", "in_shell", "that_ends_with_us"]
