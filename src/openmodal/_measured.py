"""Records of what a running sandbox has used and changed, and of what images are made of: as those
of _spec.py."""

from __future__ import annotations

from typing import Literal

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """What a sandbox has used. None where its engine cannot tell.

    `cpu` in seconds since it began. `memory` now and `memory_peak` are in MiB, `processes` are
    those and threads now. `written` is what its changed files take on the disk, in bytes;
    `received` and `sent` are bytes of its network.
    """

    cpu: float | None = None
    memory: float | None = None
    memory_peak: float | None = None
    processes: int | None = None
    written: int | None = None
    received: int | None = None
    sent: int | None = None


class Change(msgspec.Struct, frozen=True):
    """A file or folder that differs from the sandbox's image.

    `kind` is "added", "changed" or "deleted". `type` is "file", "directory", "symlink" or "other",
    of what is deleted what it was; `size` is in bytes, 0 for what is no file any more.
    """

    path: str
    kind: Literal["added", "changed", "deleted"]
    type: Literal["file", "directory", "symlink", "other"]
    size: int


class LogPiece(msgspec.Struct, frozen=True):
    """A piece of what a main command wrote.

    Attributes:
        at: where it begins, in bytes from the start of what was written.
        data: the bytes; empty if nothing came.
        ended: nothing follows it.
    """

    at: int
    data: bytes
    ended: bool


class BuiltStep(msgspec.Struct, frozen=True):
    """A step of an image that is there: its title, the bytes of its layer, and when it was made (in
    seconds of the Unix clock; 0: nobody knows)."""

    step: str
    size: int
    made: float


class Layer(BuiltStep, frozen=True):
    """A step with its layer's key. Images that begin with the same steps share layers, which have
    the same key."""

    key: str
