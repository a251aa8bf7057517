"""Images of registries under other names: what the configuration's table `[bases]` says, put into a recipe's steps."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from openmodal._spec import AnyStep, Debian, Dockerfile, Recipe, Registry
from openmodal.build.base import DEFAULT_PYTHON
from openmodal.build.dockerfile import bases
from openmodal.build.reference import same_image


def mapped(step: AnyStep, table: Mapping[str, str]) -> AnyStep:
    """The step, standing on the images that the table names instead; what it gives itself counts more."""
    if isinstance(step, Dockerfile):
        found = ((name, _other(name, table)) for name in (bases(step) if table else ()))
        others = tuple((name, Recipe((Registry(other),))) for name, other in found if other)
        return msgspec.structs.replace(step, bases=(*step.bases, *others))
    name = ""
    if isinstance(step, Registry):
        name = step.reference
    elif isinstance(step, Debian):
        name = f"python:{step.python or DEFAULT_PYTHON}-slim"
    other = _other(name, table)
    return Registry(other) if other else step


def _other(name: str, table: Mapping[str, str]) -> str:
    return next((other for known, other in table.items() if same_image(known, name)), "")
