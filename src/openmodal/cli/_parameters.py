"""A function's parameters as command line options: `def main(agents: int = 4, verbose: bool = False)` → --agents, --verbose."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from openmodal.errors import InvalidError

_PLAIN: dict[Any, click.ParamType[Any]] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}
_MANY: dict[Any, Callable[[Sequence[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class OneOf(click.Choice[str]):
    """A choice of Python values by their names: of a Literal, of an Enum."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(list(values))
        self._values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if any(value is known for known in self._values.values()) and not isinstance(value, str):
            return value  # the function's own default
        return self._values[super().convert(value, param, ctx)]


def parse(function: Callable[..., Any], arguments: Sequence[str], *, program: str) -> Callable[[], Any]:
    """Return a call of the function with what the command line says.

    Raises:
        click.UsageError: an option is unknown, missing, or has a wrong value.
        InvalidError: a parameter has a type that no option can have.
    """
    hints = _hints(function)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command = click.Command(
        function.__name__,
        params=[_Plan(function, parameter).option() for parameter in parameters],
        help=inspect.getdoc(function),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    with command.make_context(program, list(arguments)) as ctx:
        values = dict(ctx.params)
    return _call(function, parameters, values)


def _call(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter], values: Mapping[str, Any]
) -> Callable[[], Any]:
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for parameter in parameters:
        value = values[parameter.name]
        if parameter.kind in _POSITIONAL:
            positional.append(value)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional.extend(value)
        else:
            keywords[parameter.name] = value
    return lambda: function(*positional, **keywords)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidError(
            f"a type in the parameters of {function.__name__}() is not known when it runs: {error}; "
            "import it outside of `if TYPE_CHECKING:`"
        ) from error


class _Plan:
    """How one parameter becomes an option."""

    def __init__(self, function: Callable[..., Any], parameter: inspect.Parameter) -> None:
        self._function = function
        self._parameter = parameter
        self._help = ""
        self._many: Callable[[Sequence[Any]], Any] | None = None
        self._optional = False
        self._type = self._inner(self._declared())

    def option(self) -> click.Parameter:
        """The option, or for *args the arguments."""
        if self._parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return click.Argument([self._parameter.name], nargs=-1, type=self._click_type())
        return click.Option([self._flag(), self._parameter.name], help=self._help, **self._attributes())

    def _flag(self) -> str:
        flag = self._parameter.name.strip("_").replace("_", "-")
        return f"--{flag}/--no-{flag}" if self._type is bool else f"--{flag}"

    def _attributes(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {"show_default": True}
        if self._type is not bool:
            attributes["type"] = self._click_type()
        default = self._parameter.default
        if self._many:
            attributes |= {"multiple": True, "callback": self._gather, "show_default": False}
        elif default is not inspect.Parameter.empty:
            attributes["default"] = default
        elif self._optional:
            attributes["default"] = None
        attributes["required"] = default is inspect.Parameter.empty and not self._optional
        return attributes

    def _gather(self, _ctx: click.Context, _parameter: click.Parameter, value: Sequence[Any]) -> Any:
        """What a repeated option gives; the function's default, if it was not given at all."""
        if not value and self._parameter.default is not inspect.Parameter.empty:
            return self._parameter.default
        return None if not value and self._optional else (self._many or list)(value)

    def _declared(self) -> Any:
        """The annotation; without one, the type of the default."""
        annotation, default = self._parameter.annotation, self._parameter.default
        if annotation is not inspect.Parameter.empty:
            return annotation
        known = default is not inspect.Parameter.empty and type(default) in (*_PLAIN, bool)
        return type(default) if known else str

    def _inner(self, annotation: Any) -> Any:
        """The type of one value, below Annotated, Optional and list."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            self._help = next((text for text in arguments[1:] if isinstance(text, str)), "")
            return self._inner(arguments[0])
        if origin in (Union, types.UnionType):
            rest = [argument for argument in arguments if argument is not type(None)]
            self._optional = self._optional or len(rest) < len(arguments)
            return self._inner(rest[0]) if len(rest) == 1 else annotation
        container = origin or annotation
        if container in _MANY and not self._many:
            self._many = _MANY[container]
            return self._inner(arguments[0]) if arguments else str
        return annotation

    def _click_type(self) -> click.ParamType[Any]:
        if self._type in _PLAIN:
            return _PLAIN[self._type]
        if get_origin(self._type) is Literal:
            return OneOf({str(value): value for value in get_args(self._type)})
        if isinstance(self._type, type) and issubclass(self._type, enum.Enum):
            return OneOf(dict(self._type.__members__))
        raise InvalidError(
            f"the parameter {self._parameter.name!r} of {self._function.__name__}() has the type {self._type}, "
            "which no option can have; use str, int, float, bool, Path, Literal, an Enum, or a list of them"
        )
