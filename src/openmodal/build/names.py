"""Keys: what makes two steps the same step, on every machine.

Two chains of hashes run along a recipe. *Names* are made of what the user wrote and of the local files' content; they need no
network, so an image is found by its last name. *Keys* are made of what the steps really stand on (a registry's tag becomes a
digest); layers are found by them. Neither contains a local path.
"""

from __future__ import annotations

import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal._spec import AnyStep, Copy, Debian, Dockerfile, Recipe

if TYPE_CHECKING:
    from openmodal.build import Options
    from openmodal.build.layers import Layers

FORMAT = "1"
"""Part of every key: changed when the same step begins to mean something else."""


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
    fields: dict[str, Any] = msgspec.to_builtins(step)
    if isinstance(step, Copy):
        del fields["source"], fields["ignore"]
    if isinstance(step, Dockerfile):
        del fields["path"], fields["lines"], fields["context"]
    return {**fields, "content": content}


def chain(recipe: Recipe, store: Layers, options: Options) -> tuple[str, ...]:
    """The name of the image after each step."""
    names: list[str] = []
    # Only `debian_slim` can come from two places; who asks for one must not get the other.
    base = options.base if any(isinstance(step, Debian) for step in recipe.steps) else ""
    previous = digest("image", FORMAT, options.cpu or architecture(), base)
    for step in recipe.steps:
        previous = digest(previous, facts(step, _content(step, store)))
        names.append(previous)
    return tuple(names)


def _content(step: AnyStep, store: Layers) -> str:
    if isinstance(step, Copy):
        from openmodal.build import local

        return local.scan(step.source, step.ignore).digest(store)
    if isinstance(step, Dockerfile):
        from openmodal.build.dockerfile import content

        return content(step, store)
    return ""
