"""What an image begins with. The one place that knows the kinds: engines ask `of`, and fetch it in
their own way.

A new kind is a step of `_spec.Origin` and a case here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openmodal._spec import AnyStep, Debian, Dockerfile, Layered, Origin, Recipe, Registry, Scratch
from openmodal.errors import InvalidError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

REQUIRED = "an image begins with debian_slim(), from_registry(), from_dockerfile() or from_scratch()"

DEFAULT_PYTHON = "3.13"
"""The newest Python that both a registry and a current Debian have, so an image means the same with either."""


@dataclass(frozen=True)
class Beginning:
    """`reference`: the image of a registry; "": an empty root.

    `python`: the Python of Debian's packages that can stand for the image; "": none can.
    """

    title: str
    reference: str = ""
    python: str = ""


def of(step: AnyStep) -> Beginning | None:
    """What a step begins an image with; None if the step needs an image below."""
    match step:
        case Debian(python=version):
            python = version or DEFAULT_PYTHON
            title = f"FROM debian with Python {version}" if version else "FROM debian with Python"
            return Beginning(title, f"docker.io/library/python:{python}-slim", python)
        case Registry(reference=reference):
            return Beginning(f"FROM {reference}", reference)
        case Scratch():
            return Beginning("FROM scratch")
        case _:
            return None


def first(recipe: Recipe) -> Beginning | None:
    """What a recipe begins with; None if a Dockerfile says that itself.

    Raises:
        InvalidError: the recipe begins with a step that needs an image below.
    """
    step = recipe.steps[0] if recipe.steps else None
    if isinstance(step, Dockerfile) and step.path:
        return None
    if step is None or (beginning := of(step)) is None:
        raise InvalidError(REQUIRED)
    return beginning


def as_it_is(recipe: Recipe) -> str:
    """The reference, if the recipe is an image of a registry and no more; else ""."""
    beginning = of(recipe.steps[0]) if len(recipe.steps) == 1 else None
    return beginning.reference if beginning and not beginning.python else ""


def make(builder: Builder, step: Origin) -> Layered:
    """The beginning as layers of the store."""
    from openmodal.build import base

    beginning = of(step)
    if beginning and beginning.reference:
        return base.either(builder, beginning.reference, beginning.python)
    return base.scratch(builder)
