"""What docker remembers of a container and a sandbox does not: it is in the sandbox's tags.

A tag has few characters of few kinds, and labels any: so it is JSON, in base64, in pieces.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable

import msgspec

_PIECE = 63
_TAG = "docker."
_TO_TAGS, _FROM_TAGS = str.maketrans("+/", "-_"), str.maketrans("-_", "+/")


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container as it was asked for, and what has become of it.

    `foreground`: the `docker run` that made it waits for it. `waits`: it was created, and not
    started yet. `removed`: its sandbox ends or has ended, and nobody asks for it any more.
    `exit_code`: of what ran in the foreground.
    """

    name: str = ""
    image: str = ""
    image_id: str = ""
    entrypoint: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    user: str = ""
    workdir: str = ""
    network: str = "bridge"
    memory: int = 0
    cpus: float = 0.0
    binds: tuple[str, ...] = ()
    interactive: bool = False
    tty: bool = False
    auto_remove: bool = False
    foreground: bool = False
    waits: bool = False
    removed: bool = False
    exit_code: int | None = None

    def tags(self) -> dict[str, str]:
        """The tags that say so."""
        text = binascii.b2a_base64(msgspec.json.encode(self), newline=False).decode()
        text = text.rstrip("=").translate(_TO_TAGS)
        pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
        return {f"{_TAG}{number:03}": piece for number, piece in enumerate(pieces)}


def of(tags: Iterable[tuple[str, str]]) -> Record | None:
    """What a sandbox's tags say; None: no `docker` has made it."""
    text = "".join(value for name, value in sorted(tags) if name.startswith(_TAG))
    if not text:
        return None
    padded = text.translate(_FROM_TAGS) + "=" * (-len(text) % 4)
    return msgspec.json.decode(binascii.a2b_base64(padded), type=Record)
