"""Images built elsewhere than on this machine, and pushed to the registry from there.

An image's tag is made of its recipe's name (build/names.py), so one look finds the image from any
machine. A recipe is built part by part (build/context.py): each is pushed, and the next stands on
it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from openmodal._spec import Dockerfile, Recipe, Referenced, Report
from openmodal.build import Options, context, dockerfile, names, origin
from openmodal.build.layers import Layers
from openmodal.build.push import Pusher
from openmodal.build.reference import Reference, parse
from openmodal.build.steps import Builder, count
from openmodal.build.told import Told, runs_nothing
from openmodal.errors import UnsupportedError

Look = Callable[[Reference], Referenced]
"""An image of a registry: digest, configuration."""

# Seconds for which a registry is believed to keep what it had, and a tag to mean what it meant.
_SURE = 300.0
_REFUSALS = (
    ("kernel/unprivileged_userns_clone", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ("user/max_user_namespaces", "0"),
)


class Maker(Protocol):
    """Builds Dockerfiles somewhere, from its `with` block's beginning to its end."""

    def make(self, order: Order, told: Told) -> str:
        """Build an image and push it; its digest, or "" where the builder does not tell it.

        Raises:
            ImageBuildError: a step failed.
            EngineError: the builder itself failed.
        """
        ...


class Order:
    """An image to be built: files, build arguments, target, and the images that it may pull."""

    def __init__(self, part: context.Part, first: str, target: Reference, bases: tuple[str, ...]) -> None:
        self.part = part
        self.target = target
        self.bases = bases
        self._first = first

    def content(self) -> Iterator[bytes]:
        """The context, once more each time."""
        return context.archive(self.part, self._first, b"")


def possible_here(proc: Path = Path("/proc/sys")) -> bool:
    """Whether this machine may be able to build: Linux, with root or user namespaces."""
    if sys.platform != "linux":
        return False
    return os.geteuid() == 0 or not any(_says(proc / name, value) for name, value in _REFUSALS)


def _says(file: Path, value: str) -> bool:
    return file.exists() and file.read_text().strip() == value


def prepare(
    maker: Callable[[], AbstractContextManager[Maker]],
    store: Layers,
    recipe: Recipe,
    target: Reference,
    report: Report,
    look: Look,
    cpu: str,
) -> Referenced:
    """The image for a CPU, built if the registry does not have it. Of this machine's processes, one
    builds.

    Raises:
        ImageBuildError: a step failed; `.step` and `.output` tell.
        RegistryError: the registry cannot be reached, or refuses.
        EngineError: the builder cannot be had.
    """
    options = Options(base="registry", cpu=cpu)
    if known := _noted(store, _note(_named(target, names.chain(recipe, store, options)[-1]))):
        return known
    # It may have to be built, of files that may have changed since they were looked at.
    recipe = names.afresh(recipe)
    chain = names.chain(recipe, store, options)
    last = _named(target, chain[-1])

    def find() -> Referenced:
        digest = ""
        if not _is_there(last):
            with maker() as made, Builder(store, runs_nothing, report, Options(), count(recipe)) as builder:
                for order in _orders(recipe, chain, target, look):
                    told = Told(builder, order.part.titles)
                    if order.part.remark:
                        builder.prints(order.part.remark)
                    with context.unchanged(order.part, store):
                        digest = made.make(order, told)
        return look(msgspec.structs.replace(last, target=digest) if digest else last)

    with store.guard(f"remote-{chain[-1]}"):
        return remembered(store, _note(last), find)


def _note(image: Reference) -> str:
    return f"remote-{names.digest(str(image))[:40]}"


def remembered(store: Layers, note: str, find: Callable[[], Referenced], *, always: bool = False) -> Referenced:
    """What `find` finds, or found some minutes ago; `always`: or ever."""
    if known := _noted(store, note, always=always):
        return known
    root = find()
    store.set_note(note, {"image": msgspec.to_builtins(root), "asked": time.time()})
    return root


def _noted(store: Layers, note: str, *, always: bool = False) -> Referenced | None:
    known = store.note(note)
    if "image" in known and (always or 0 <= time.time() - float(known["asked"]) < _SURE):
        return msgspec.convert(known["image"], Referenced)
    return None


def _orders(recipe: Recipe, chain: tuple[str, ...], target: Reference, look: Look) -> Iterator[Order]:
    """What is to be built, one after the other; what the registry has of it is left out."""
    steps = recipe.steps
    base, user, start = _base(recipe, look)
    nothing_more = (context.Part(len(steps) - 1, ""),)
    for part in tuple(context.parts(steps, start, user, "")) or nothing_more:
        step = steps[part.last]
        bases = tuple(dockerfile.bases(step)) if isinstance(step, Dockerfile) else ()
        if isinstance(step, Dockerfile) and step.bases:
            others = _others(step)
            part = replace(part, text=dockerfile.rebased(step, others), dockerfile=context.DOCKERFILE)
            bases = (*bases, *others.values())
        into = _named(target, chain[part.last])
        if not _is_there(into):
            yield Order(part, f"FROM {base}\n" if base else "", into, (base, *bases) if base else bases)
        base = str(into)


def _others(step: Dockerfile) -> dict[str, str]:
    """Images of registries that stand for others of a Dockerfile."""
    found: dict[str, str] = {}
    for name, _ in dockerfile.stages(step).images():
        recipe = dockerfile.instead_of(step, name)
        if recipe is None:
            continue
        found[name] = origin.as_it_is(recipe)
        if not found[name]:
            raise UnsupportedError(
                f"bases={{{name!r}: …}}: what is built elsewhere stands on images of registries only; use Image.from_registry(…)"
            )
    return found


def _base(recipe: Recipe, look: Look) -> tuple[str, str, int]:
    """The base ("" for a Dockerfile), its user, and the index of the first step on it."""
    beginning = origin.first(recipe)
    if beginning is None:
        return "", "", 0
    if beginning.python or not beginning.reference:
        return beginning.reference or "scratch", "", 1
    return beginning.reference, look(parse(beginning.reference)).user, 1


def _named(target: Reference, name: str) -> Reference:
    return Reference(target.host, target.repository, f"om-{name[:40]}")


def _is_there(reference: Reference) -> bool:
    with closing(Pusher(reference)) as registry:
        return registry.has_manifest(reference.target)


def hosts(order: Order) -> Iterable[str]:
    """The registries that a build speaks to."""
    return dict.fromkeys((order.target.host, *(parse(base).host for base in order.bases if base != "scratch")))
