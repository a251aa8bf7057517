"""Images of registries under other names: the table `[bases]` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from openmodal._spec import AnyStep, Dockerfile, Recipe, Registry
from openmodal.build import origin


def mapped(step: AnyStep, table: Mapping[str, str]) -> AnyStep:
    """The step on the images that the table names instead. The step's own `bases` win."""
    if not table:
        return step
    if isinstance(step, Dockerfile):
        from openmodal.build.dockerfile import bases

        found = ((name, _other(name, table)) for name in bases(step))
        others = tuple((name, Recipe((Registry(other),))) for name, other in found if other)
        return msgspec.structs.replace(step, bases=(*step.bases, *others))
    beginning = origin.of(step)
    other = _other(beginning.reference, table) if beginning else ""
    return Registry(other) if other else step


def _other(name: str, table: Mapping[str, str]) -> str:
    from openmodal.build.reference import same_image

    return next((other for known, other in table.items() if same_image(known, name)), "")
