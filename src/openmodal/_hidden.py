"""Hidden: variables that a step of an image is given and nothing keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmodal._spec import Recipe


class Hidden:
    """Variables whose names are part of a recipe, and whose values are of no key, file or log.

    msgspec does not encode this type, so no values get into a file unnoticed: who writes a recipe
    must say what stands for them.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self.names = tuple(sorted(variables or ()))
        self._variables = dict(variables or {})

    @property
    def variables(self) -> Mapping[str, str]:
        """Names and values."""
        return self._variables

    def __bool__(self) -> bool:
        return bool(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and self._compared == other._compared

    def __hash__(self) -> int:
        return hash(self.names)

    @property
    def _compared(self) -> object:
        return self._variables

    def __repr__(self) -> str:
        return f"<Hidden {', '.join(self.names)}>"


NOTHING = Hidden()


def names_of(value: object) -> tuple[str, ...]:
    """What stands for hidden variables in a key, for msgspec's `enc_hook`."""
    if isinstance(value, Hidden):
        return value.names
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")


def hidden(recipe: Recipe) -> frozenset[str]:
    """What of a recipe nothing keeps: "secrets" of steps, the "login" to a registry."""
    kinds = {name for name in ("secrets", "login") for step in recipe.steps if getattr(step, name, None)}
    below = (hidden(base) for step in recipe.steps for _, base in getattr(step, "bases", ()))
    return frozenset(kinds).union(*below)
