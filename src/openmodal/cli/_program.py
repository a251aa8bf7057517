"""The user's Python file: read, looked at, executed, and what it defines.

A file with `@app.local_entrypoint()` functions is imported, then one of them is called. A file
without, that does something by itself (top-level statements, or `if __name__ == "__main__":`), is
run as Python would run it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from openmodal.errors import InvalidError

T = TypeVar("T")
Entrypoint = Callable[..., Any]


@dataclass(frozen=True)
class Program:
    """A file that is valid Python; nothing of it has run."""

    path: Path
    source: bytes
    tree: ast.Module

    @property
    def is_script(self) -> bool:
        """Whether the file has no entrypoint and does something by itself."""
        named = any(isinstance(node, ast.Attribute) and node.attr == "local_entrypoint" for node in ast.walk(self.tree))
        return not named and any(_does_something(node) for node in self.tree.body)


def split(target: str) -> tuple[str, str]:
    """`file.py::name` as file and name, which may be ""."""
    file, _, name = target.partition("::")
    return file, name


def read(file: str) -> Program:
    """Read a file.

    Raises:
        InvalidError: there is none, or it is not Python.
    """
    path = Path(file)
    try:
        source = path.read_bytes()
    except OSError as error:
        hint = f"did you mean {file}.py?" if Path(f"{file}.py").is_file() else "give the path of a Python file"
        raise InvalidError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}; {hint}") from error
    try:
        return Program(path.absolute(), source, ast.parse(source, str(path)))
    except SyntaxError as error:
        raise InvalidError(f"{file}, line {error.lineno}: {error.msg}; mend that line, nothing was run") from error
    except ValueError as error:  # a NUL byte
        raise InvalidError(f"{file} is not a Python file: {error}") from error


def _does_something(node: ast.stmt) -> bool:
    """Whether a top-level statement is more than a definition."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return False
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Pass():
            return False
        case ast.Expr(value=ast.Constant()):
            return False
        case ast.If(test=test):
            return "TYPE_CHECKING" not in ast.unparse(test)
        case _:
            return True


def load(program: Program, *, name: str = "") -> types.ModuleType:
    """Execute the file as a module; its folder comes first in sys.path, as if it had been started
    by `python`.

    What it raises comes out as it is: it is the user's own.
    """
    folder = str(program.path.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    module = _module(program, name or _free_name(program.path.stem))
    sys.modules[module.__name__] = module
    exec(compile(program.source, str(program.path), "exec", dont_inherit=True), module.__dict__)
    return module


def _module(program: Program, name: str) -> types.ModuleType:
    if name == "__main__":
        module = types.ModuleType(name)
        module.__file__ = str(program.path)
        return module
    spec = importlib.util.spec_from_file_location(name, program.path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def _free_name(stem: str) -> str:
    """A module name for the file: its own, so that what it defines can be pickled, unless another module has it."""
    return f"{stem}_" if stem in sys.modules or not stem.isidentifier() else stem


def members(module: types.ModuleType, kind: type[T]) -> dict[str, T]:
    """What a module has of a kind, by name, each thing once."""
    found: dict[str, T] = {}
    for name, value in vars(module).items():
        if isinstance(value, kind) and not any(value is other for other in found.values()):
            found[name] = value
    return found


def entrypoint(program: Program, module: types.ModuleType, name: str) -> Entrypoint:
    """The entrypoint of that name, or the only one.

    Raises:
        InvalidError: there is none of that name, none at all, or more than one to choose from.
    """
    from openmodal.app import App

    file = program.path.name
    found: dict[str, Entrypoint] = {}
    for app in members(module, App).values():
        found.update(app.entrypoints)
    names = ", ".join(found)
    if not found:
        raise InvalidError(
            f"{file} has no entrypoint; write @app.local_entrypoint() above the function to run, "
            "with app = openmodal.App(...) in the file"
        )
    if name and name not in found:
        raise InvalidError(f"{file} has no entrypoint {name!r}; it has {names}")
    if not name and len(found) > 1:
        raise InvalidError(
            f"{file} has several entrypoints: {names}; say which, for example {file}::{next(iter(found))}"
        )
    return found[name] if name else next(iter(found.values()))
