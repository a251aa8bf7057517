"""What the methods of Image are given, checked. Nothing is read but where a module is."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping

from openmodal import _args
from openmodal.errors import InvalidError

Words = str | Iterable[str]

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*"


def word(argument: str, value: object) -> str:
    text = _args.string(argument, value)
    if not text or text != text.strip() or any(c.isspace() for c in text):
        raise InvalidError(f"{argument} cannot be {text!r}; it must not be empty or contain spaces")
    return text


def words(function: str, values: Iterable[Words]) -> list[str]:
    """Strings and lists of strings, in one list."""
    words: list[str] = []
    for value in values:
        if isinstance(value, str):
            words.append(_args.string(f"{function}()", value))
        elif isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
            words.extend(_args.string(f"{function}()", item) for item in value)
        else:
            raise InvalidError(f"{function}() takes strings or lists of strings, not {type(value).__name__}")
    return words


def requirements(function: str, values: Iterable[Words]) -> list[str]:
    names = words(function, values)
    for name in names:
        if not name.strip() or name.startswith("-"):
            raise InvalidError(f"{function}() cannot install {name!r}; options go into extra_options=")
    return names


def arguments(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidError(f'{argument} must be a list of strings, for example ["python3", "-i"], not {values!r}')
    return tuple(_args.string(argument, value) for value in values)


def local(argument: str, value: str | os.PathLike[str]) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path:
        raise InvalidError(f"{argument} must be a path of this machine, not {value!r}")
    try:
        return os.path.abspath(_args.string(argument, path))
    except FileNotFoundError as error:
        raise InvalidError(
            f"{argument} is the relative path {path!r}, and this process's working directory is gone; write an absolute path"
        ) from error


def pip_options(index_url: str | None, extra_index_url: str | None, pre: bool, extra_options: str) -> tuple[str, ...]:
    options = [] if index_url is None else [f"--index-url={word('index_url', index_url)}"]
    options += [] if extra_index_url is None else [f"--extra-index-url={word('extra_index_url', extra_index_url)}"]
    options += ["--pre"] if pre else []
    try:
        return (*options, *shlex.split(_args.string("extra_options", extra_options)))
    except ValueError as error:
        raise InvalidError(f"extra_options {extra_options!r} is not a shell's list of words: {error}") from error


def module(name: str) -> tuple[str, str]:
    """Where a module is here, and what it is to be called in the image."""
    import importlib.util

    if not re.fullmatch(_MODULE, name):
        raise InvalidError(
            f"add_local_python_source() cannot take {name!r}; use the name of a top-level module or package"
        )
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        return os.path.abspath(next(iter(spec.submodule_search_locations))), name
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InvalidError(f"there is no module {name!r} of Python source here; put its folder on sys.path")
    return os.path.abspath(spec.origin), f"{name}.py"
