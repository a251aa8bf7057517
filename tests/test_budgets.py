"""The budgets of CONTRIBUTING.md, held by a test: a budget that nothing checks is a wish.

An exception is named here with its reason. What the budgets cannot measure (a name, a sentence) is
for the reader of the change.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MEDIAN_FUNCTION, LONGEST_FUNCTION = 10, 60
LONGEST_FILE, LONGEST_TEST_FILE = 450, 600
WIDEST_PROSE = 100

LONG_FUNCTIONS = {
    "src/openmodal/sandbox/sandbox.py create": "22 keyword arguments, which it hands on one by one",
}

LONG_FILES = {
    "native/agent.c": "one story: the agent's loop, what is due in it, and its end",
    "native/box.c": "one story, from the plan to the end record, read top to bottom",
    "native/request.c": "a list of what an agent is asked, each by itself",
    "native/mounts.c": "one story, from the first mount to the new root, read top to bottom",
    "src/openmodal/engines/contract.py": "two lists, of promises and of verbs; nobody reads them top to bottom",
    "src/openmodal/engines/embedded/doctor.py": "a list of looks at the machine, each by itself",
    "src/openmodal/testing/exec.py": "a list of promises about one verb; nobody reads it top to bottom",
    "tests/embedded/test_faults.py": "a list of promises about one engine",
    "tests/native/test_agent.py": "a list of promises about one program",
    "tests/native/test_box.py": "a list of promises about one program",
}

# Lines of comments and docstrings that were written for 140 columns. New ones are narrower, and
# these counts only fall.
WIDE_PROSE = {"src": 434, "tests": 280, "benchmarks": 10, "examples": 7, "native": 8}

# A comment that stood behind a line which became too long: the formatter then breaks the code, not
# the comment.
ACCIDENT = re.compile(r"^\s*\)( as \w+)?:?  # (?!fmt: )")
DEFINITION = re.compile(r"\w[\w *]*?(\w+)\(")

PYTHON = sorted(
    path for folder in ("src", "tests", "benchmarks", "examples", "native") for path in (ROOT / folder).rglob("*.py")
)
NATIVE = sorted(path for pattern in ("*.c", "*.h") for path in (ROOT / "native").glob(pattern))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def docstrings(path: Path) -> Iterator[ast.Expr]:
    """All strings that are statements: also those below a constant."""
    for node in nodes(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a Python file with their lengths, docstrings left out."""
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = node.body[0] if ast.get_docstring(node) else None
            described = (text.end_lineno or 0) - text.lineno + 1 if text else 0
            yield f"{place(path)} {node.name}", (node.end_lineno or 0) - node.lineno + 1 - described


def native_functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a C file: each begins where the line begins, and ends with a brace in the first column."""
    begin, name = 0, ""
    for number, line in enumerate(lines(path)):
        if line == "}":
            yield f"{place(path)} {name}", number - begin + 1
        elif (word := DEFINITION.match(line)) and not line.endswith((";", ":")):
            begin, name = number, word[1]


def prose(path: Path) -> set[int]:
    """The numbers of the lines of comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for node in docstrings(path):
        found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def test_functions_are_short() -> None:
    found = [each for path in PYTHON for each in functions(path)]
    native = [each for path in NATIVE for each in native_functions(path)]
    assert len(native) > 100  # else the sources are written in another way, and nothing was measured
    long = [f"{name}: {length} lines" for name, length in found + native if length > LONGEST_FUNCTION]
    assert not [line for line in long if line.partition(":")[0] not in LONG_FUNCTIONS]
    for lengths in ([length for _, length in found], [length for _, length in native]):
        assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_files_are_short() -> None:
    long = []
    for path in (*PYTHON, *NATIVE):
        most = LONGEST_TEST_FILE if place(path).startswith("tests/") else LONGEST_FILE
        if len(lines(path)) > most and place(path) not in LONG_FILES:
            long.append(f"{place(path)}: {len(lines(path))} lines of {most}; a folder when a noun grows")
    assert not long


def test_new_prose_is_narrow() -> None:
    wide = Counter(
        place(path).partition("/")[0]
        for path in PYTHON
        for number in prose(path)
        if len(lines(path)[number - 1]) > WIDEST_PROSE
    )
    more = {folder: count for folder, count in wide.items() if count > WIDE_PROSE.get(folder, 0)}
    assert not more, f"comments and docstrings wider than {WIDEST_PROSE} columns: {more}; allowed: {WIDE_PROSE}"


def test_comments_stand_above_their_lines() -> None:
    found = [
        f"{place(path)}:{number}: {line.strip()}"
        for path in PYTHON
        for number, line in enumerate(lines(path), 1)
        if ACCIDENT.match(line)
    ]
    assert not found


def test_native_sources_are_in_one_dialect() -> None:
    """A pointer is true or not, and a heading is `/* ---- name ---- */`."""
    assert not [
        f"{place(path)}:{number}: {line.strip()}"
        for path in NATIVE
        for number, line in enumerate(lines(path), 1)
        if re.search(r"[!=]= NULL\b", line)
        or (line.startswith("/* --") and not re.fullmatch(r"/\* ---- .* ---- \*/", line))
    ]


def test_no_handler_catches_every_exception() -> None:
    """`Exception` would hide our own mistakes; `BaseException` cleans up and raises again (ruff's BLE001)."""
    assert not [
        f"{place(path)}:{node.lineno}"
        for path in PYTHON
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or _names_exception(node.type))
    ]


def _names_exception(caught: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Exception" for node in ast.walk(caught))
