"""What an image begins with. The one place that knows the kinds: engines ask `of`, and fetch it in
their own way.

A new kind is a step of `_spec.Origin` and a case here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from openmodal._hidden import NOTHING, Hidden, hidden
from openmodal._spec import (
    AnyStep,
    Debian,
    Dockerfile,
    Layered,
    Origin,
    Recipe,
    Registry,
    Scratch,
    Snapshot,
)
from openmodal.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

REQUIRED = "an image begins with debian_slim(), from_registry(), from_dockerfile() or from_scratch()"

DEFAULT_PYTHON = "3.13"
"""The newest Python that both a registry and a current Debian have, so an image means the same with either."""


class Beginning(msgspec.Struct, frozen=True):
    """`reference`: the image of a registry; "": an empty root.

    `python`: the Python of Debian's packages that can stand for the image; "": none can.
    `snapshot`: it cannot be made, but only be there. `login`: what the registry is told.
    """

    title: str
    reference: str = ""
    python: str = ""
    snapshot: bool = False
    login: Hidden = NOTHING


def of(step: AnyStep) -> Beginning | None:
    """What a step begins an image with; None if the step needs an image below."""
    match step:
        case Debian(python=version):
            python = version or DEFAULT_PYTHON
            title = f"FROM debian with Python {version}" if version else "FROM debian with Python"
            return Beginning(title, f"docker.io/library/python:{python}-slim", python)
        case Registry(reference=reference, login=login):
            return Beginning(f"FROM {reference}", reference, login=login)
        case Scratch():
            return Beginning("FROM scratch")
        case Snapshot(key=key):
            return Beginning(f"FROM snapshot {key[:12]}", snapshot=True)
        case _:
            return None


def first(recipe: Recipe) -> Beginning | None:
    """What a recipe begins with, of which nothing is made yet; None if a Dockerfile says that
    itself.

    Raises:
        InvalidError: the recipe begins with a step that needs an image below.
        NotFoundError: it begins with a snapshot, which would have been there.
    """
    step = recipe.steps[0] if recipe.steps else None
    if isinstance(step, Dockerfile) and step.path:
        return None
    if step is None or (beginning := of(step)) is None:
        raise InvalidError(REQUIRED)
    if beginning.snapshot:
        raise NotFoundError(
            f"{beginning.title.removeprefix('FROM ')} is not here: it has expired or was deleted, or another engine "
            "or machine has it; take another one"
        )
    return beginning


def as_it_is(recipe: Recipe) -> str:
    """The reference, if the recipe is an image of a registry that anybody sees, and no more; else
    ""."""
    beginning = of(recipe.steps[0]) if len(recipe.steps) == 1 and not hidden(recipe) else None
    return beginning.reference if beginning and not beginning.python else ""


def make(builder: Builder, step: Origin) -> Layered:
    """The beginning as layers of the store."""
    from openmodal.build import base, names

    if isinstance(step, Snapshot) and (known := builder.known(names.of_snapshot(step.key, builder.store))):
        return known
    beginning = first(Recipe((step,)))
    if beginning and beginning.reference:
        return base.either(builder, beginning.reference, beginning.python, beginning.login)
    return base.scratch(builder)
