"""Imports go down only (architecture: "Folders"). A violation is reported as the import path that makes it.

Imports inside functions count; those under `if TYPE_CHECKING:` do not: at run time, nothing depends on them.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"

LAYERS = (
    {
        "errors",
        "_spec",
        "_measured",
        "_units",
        "_wire",
        "_dual",
        "_args",
        "_keywords",
        "_ends",
        "_gate",
        "_files",
        "_hidden",
    },
    {"_binary", "_config", "_halfmade", "_idmap", "_journal", "_memory", "_planted", "_store", "_trash"},
    {"_link"},
    {"_agent"},
    {"_command"},
    {"build", "engines"},
    {"_image_args", "_installers", "_localcopy"},
    {"_packed"},
    {"app", "filesystem", "housekeeping", "image", "probe", "secret", "watch"},
    {"_sources", "process"},
    {"_talk", "connection", "tunnel"},
    {"interpreter", "shell"},
    {"_options"},
    {"_volumebox"},
    {"volume"},
    {"pool", "sandbox"},
    {"web"},
    {"serve"},
    {"__main__", "cli", "docker_cli", "integrations", "testing"},
)
"""Each module or package directly in openmodal, from the ground up. A new one must be put here."""

GROUND = LAYERS[0] | LAYERS[1]
GROUND_MAY_IMPORT = {"msgspec", "openmodal"}

# (importer, imported): no path of imports may lead from one to the other.
FORBIDDEN = (
    ("openmodal.build", "openmodal.engines"),  # the engine passes `run=` into it
    ("openmodal.engines.docker", "openmodal.engines.embedded"),
    ("openmodal.engines.kubernetes", "openmodal.engines.embedded"),
    ("openmodal.engines.embedded", "openmodal.engines.docker"),
    # The rooms of the Kubernetes engine: sandboxes ask for images; nothing else asks for sandboxes, and nobody for set-up.
    ("openmodal.engines.kubernetes.engine", "openmodal.engines.kubernetes.admin"),
    ("openmodal.engines.kubernetes.images", "openmodal.engines.kubernetes.engine"),
    ("openmodal.engines.kubernetes.images", "openmodal.engines.kubernetes.admin"),
    ("openmodal.engines.kubernetes.admin", "openmodal.engines.kubernetes.engine"),
    ("openmodal.engines.kubernetes.google", "openmodal.engines.kubernetes.engine"),
    ("openmodal.engines.kubernetes.google", "openmodal.engines.kubernetes.admin"),
)


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported} ({self.place})"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((SOURCE / "openmodal").rglob("*.py"))}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk, but not into `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
        else:
            yield node
            yield from nodes(node)


def imports_of(name: str) -> Iterator[Import]:
    path = FILES[name]
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name`: the name may be a module.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            imported = [name if name in FILES else node.module for name in full]
        else:
            continue
        for target in dict.fromkeys(imported):
            yield Import(name, target, f"{path.relative_to(SOURCE.parent)}:{node.lineno}")


IMPORTS = {name: list(imports_of(name)) for name in FILES}


def layer(name: str) -> int | None:
    parts = name.split(".")
    if len(parts) == 1:
        return None  # the package itself: lazy, it imports everything on demand
    return next((level for level, names in enumerate(LAYERS) if parts[1] in names), None)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def path_between(start: str, end: str) -> list[Import]:
    """The shortest chain of imports from one package to another, or []."""
    queue = deque([[edge] for name in FILES if is_within(name, start) for edge in IMPORTS[name]])
    seen: set[str] = set()
    while queue:
        chain = queue.popleft()
        last = chain[-1].imported
        if is_within(last, end):
            return chain
        if last in FILES and last not in seen:
            seen.add(last)
            queue.extend([*chain, edge] for edge in IMPORTS[last])
    return []


def test_every_module_has_a_layer() -> None:
    unknown = [name for name in FILES if name != "openmodal" and layer(name) is None]
    assert not unknown, f"put into LAYERS of {Path(__file__).name}: {', '.join(unknown)}"


def test_imports_go_down_only() -> None:
    wrong = []
    for edge in (edge for edges in IMPORTS.values() for edge in edges if is_within(edge.imported, "openmodal")):
        importer, imported = layer(edge.importer), layer(edge.imported)
        if importer is not None and imported is not None and imported > importer:
            wrong.append(str(edge))
    assert not wrong, "imports that go up:\n  " + "\n  ".join(wrong)


def test_modules_below_the_command_line_do_not_import_the_package_itself() -> None:
    """`import openmodal` in a module would hide what it depends on, and can make a circle."""
    wrong = [
        str(edge)
        for name, edges in IMPORTS.items()
        for edge in edges
        if edge.imported == "openmodal" and layer(name) not in (None, len(LAYERS) - 1)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_ground_needs_only_the_standard_library_and_msgspec() -> None:
    wrong = [
        str(edge)
        for name, edges in IMPORTS.items()
        for edge in edges
        if name.split(".")[-1] in GROUND
        and (root := edge.imported.split(".")[0]) not in GROUND_MAY_IMPORT
        and root not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("start", "end"), FORBIDDEN)
def test_no_path_leads_from_one_to_the_other(start: str, end: str) -> None:
    chain = path_between(start, end)
    assert not chain, f"{start} must not depend on {end}:\n  " + "\n  ".join(map(str, chain))
