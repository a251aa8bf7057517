"""Keys: what makes two steps the same step, on every machine.

Two chains of hashes run along a recipe. *Names* are made of what the user wrote and of the local
files' content; they need no network, so an image is found by its last name. *Keys* are made of what
the steps really stand on (a registry's tag becomes a digest); layers are found by them. Neither
contains a local path.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal._hidden import names_of
from openmodal._spec import AnyStep, Copy, Dockerfile, Recipe, Snapshot
from openmodal.build import origin

if TYPE_CHECKING:
    from openmodal.build import Options
    from openmodal.build.layers import Layers

FORMAT = "1"
"""Part of every key: changed when the same step begins to mean something else."""

DEEPEST = 256
"""Folders in folders, of what is copied, packed or unpacked: nobody's code is deeper, and each level costs stack or descriptors."""

_LATER = ("secrets", "login", "again")
"""Fields of steps that came later."""


def architecture() -> str:
    """This machine's, as registries and Debian call it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def digest(*parts: Any) -> str:
    """SHA-256 of canonical JSON. ASCII, because file names and arguments may hold bytes that are not UTF-8."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def facts(step: AnyStep, content: str = "") -> dict[str, Any]:
    """The step as it goes into a key: local paths and ignore patterns out, the content that they select in."""
    fields: dict[str, Any] = msgspec.to_builtins(step, enc_hook=names_of)
    # A login changes nothing in the image, and steps without the later fields keep their keys.
    fields = {name: value for name, value in fields.items() if name not in _LATER or (value and name != "login")}
    if isinstance(step, Copy):
        del fields["source"], fields["ignore"], fields["keep"], fields["below"]
    if isinstance(step, Dockerfile):
        del fields["path"], fields["lines"], fields["context"], fields["bases"]
    return {**fields, "content": content}


def looked_at(step: AnyStep, store: Layers) -> AnyStep:
    """The step with the digest of the local files that it names; one that has it already is not looked at again."""
    if isinstance(step, Copy):
        return msgspec.structs.replace(step, content=step.content or _content(step, store))
    if isinstance(step, Dockerfile):
        bases = tuple(
            (name, Recipe(tuple(looked_at(inner, store) for inner in base.steps))) for name, base in step.bases
        )
        return msgspec.structs.replace(step, content=step.content or _content(step, store), bases=bases)
    return step


def afresh(recipe: Recipe, done: int = 0) -> Recipe:
    """The recipe as if nobody had looked at the files of steps from `done` on: they will be read now, and may have changed since."""
    return Recipe((*recipe.steps[:done], *(_unseen(step) for step in recipe.steps[done:])))


def _unseen(step: AnyStep) -> AnyStep:
    if isinstance(step, Copy):
        return msgspec.structs.replace(step, content="")
    if isinstance(step, Dockerfile):
        bases = tuple((name, afresh(base)) for name, base in step.bases)
        return msgspec.structs.replace(step, content="", bases=bases)
    return step


def chain(recipe: Recipe, store: Layers, options: Options) -> tuple[str, ...]:
    """The name of the image after each step."""
    # Only Debian and Python images can come from two places; who asks for one must not get the
    # other.
    base = options.base if any(_has_two_origins(step, options) for step in recipe.steps) else ""
    previous = _beginning(options.cpu or architecture(), base)
    names: list[str] = []
    for step in recipe.steps:
        seen = looked_at(step, store)
        bases = seen.bases if isinstance(seen, Dockerfile) else ()
        previous = _name(previous, seen, tuple((name, chain(other, store, options)[-1]) for name, other in bases))
        names.append(previous)
    return tuple(names)


def of_snapshot(key: str, store: Layers) -> str:
    """The name of the image that is a snapshot: it depends on nothing but the key."""
    from openmodal.build import DEFAULTS

    return chain(Recipe((Snapshot(key),)), store, DEFAULTS)[-1]


@functools.lru_cache(maxsize=16)
def _beginning(cpu: str, base: str) -> str:
    """The name of an image before its first step."""
    return digest("image", FORMAT, cpu, base)


@functools.lru_cache(maxsize=256)  # each creation asks for its image, of the same steps as the one before
def _name(previous: str, seen: AnyStep, bases: tuple[tuple[str, str], ...]) -> str:
    """The name of an image after a step whose local files were looked at."""
    parts: list[Any] = [facts(seen, seen.content if isinstance(seen, Copy | Dockerfile) else "")]
    return digest(previous, *parts, *([bases] if bases else []))


def _has_two_origins(step: AnyStep, options: Options) -> bool:
    if isinstance(step, Dockerfile) and step.path and options.base != "auto":
        from openmodal.build.debian import version_of
        from openmodal.build.dockerfile import bases

        return any(version_of(name) for name in bases(step))
    beginning = origin.of(step)
    return beginning is not None and bool(beginning.python)


def _content(step: Copy | Dockerfile, store: Layers) -> str:
    if isinstance(step, Copy):
        from openmodal.build import local

        found = local.scan_of(step)
        name = local.base_name(step.source)
        # Only the image knows whether the target is a folder, into which a file goes under its own
        # name.
        may_keep_name = not found.entries[0].is_folder and name not in (found.name, os.path.basename(step.target))
        return digest(found.digest(store), name) if may_keep_name else found.digest(store)
    from openmodal.build.dockerfile import content

    return content(step, store)
