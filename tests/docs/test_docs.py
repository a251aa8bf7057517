"""Runs the Python blocks of README.md, docs/*.md, the recipes and the mission page, as a user would
who copies them into a file. (docs/integrations has tests of its own, with each framework.)

The blocks of a page are one program: later ones may use names of earlier ones. In the pages:

    <!-- skip: reason -->    before a block: it is not run, and the test report names it with the reason
    <!-- output -->          before a `text` block: the program prints this ("..." stands for anything)
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import promises

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/recipes").glob("*.md")),
    ROOT / "tests/docs/mission.md",
]

# What a page says → what a machine without that network address runs instead. REPOSITORY is a bare
# repository on this machine; it is copied into the sandbox, whose network leads to nothing on this
# machine.
ELSEWHERE = {
    'sandbox.exec("bash", "-c", "git clone https://github.com/pallets/click.git ': (
        'sandbox.filesystem.copy_from_local(REPOSITORY, "/srv/click.git"); '
        'sandbox.exec("bash", "-c", "git clone /srv/click.git '
    ),
}

MISSION = "2388a6c004c3851d854b997ed786c514f3097d6a0fab53bf84757bbb4f262c0b"

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>\w*).*$")
MARK = re.compile(r"^\s*<!--\s*(?P<word>skip|output)\s*(?::\s*(?P<reason>.*?)\s*)?-->\s*$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line inside the fence, from 1
    language: str
    lines: tuple[str, ...]
    word: str = ""  # of the mark before it
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, each with the mark that stands before it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    word = reason = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if mark := MARK.match(line):
            word, reason = mark["word"], mark["reason"] or ""
        elif fence := FENCE.match(line):
            end = next(i for i in range(number, len(lines)) if lines[i].strip().startswith(fence["fence"]))
            inside = tuple(text.removeprefix(fence["indent"]) for text in lines[number:end])
            yield Block(page, number + 1, fence["language"], inside, word, reason)
            word, number = "", end + 1
        elif line.strip():
            word = ""


BLOCKS = [block for page in PAGES if page.exists() for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN = [block for block in PYTHON if block.word != "skip"]


def program_of(page: Path, repository: Path) -> str:
    """The page's blocks, each on its own lines, so that a traceback points into the page."""
    lines: list[str] = []
    for block in (block for block in RUN if block.page == page):
        lines += [""] * (block.line - 1 - len(lines)) + list(block.lines)
    text = "\n".join(lines) + "\n"
    for said, run in ELSEWHERE.items():
        text = text.replace(said, run.replace("REPOSITORY", repr(str(repository))))
    return text


def pattern_of(block: Block) -> str:
    return r".*?".join(re.escape(part) for part in "\n".join(block.lines).split("..."))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with one commit, in place of one on the network."""
    folder = tmp_path_factory.mktemp("git")
    (folder / "work/tests").mkdir(parents=True)
    (folder / "work/tests/test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=folder / "work", check=True)
    subprocess.run([*git, "clone", "-q", "--bare", "work", "click.git"], cwd=folder, check=True)
    return folder / "click.git"


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.timeout(900)  # the first one makes the base image
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_the_page_runs(page: Path, repository: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.name}.py"
    program.write_text(program_of(page, repository), encoding="utf-8")
    # A program of the modal client runs behind a door of its own.
    door = [sys.executable, "-m", "openmodal", "serve", "--"] if page.name == "coming-from-modal.md" else []
    done = subprocess.run(
        [*door, sys.executable, str(program)],
        cwd=tmp_path,
        env=os.environ | {"OPENMODAL_ENGINE": "embedded"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [block for block in BLOCKS if block.page == page and block.word == "output"]
    wanted = r".*?".join(pattern_of(block) for block in expected)
    assert re.match(rf".*?{wanted}", done.stdout, re.DOTALL), f"expected {wanted!r}, it printed:\n{done.stdout}"


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_the_block_is_python_and_runs_unless_a_reason_is_given(block: Block) -> None:
    compile("\n".join(block.lines), block.name, "exec")
    if block.word == "skip":
        assert block.reason, f"{block.name} is skipped without a reason"
        pytest.skip(block.reason)


def test_every_replaced_address_is_still_on_a_page() -> None:
    text = "\n".join(line for block in RUN for line in block.lines)
    assert not [said for said in ELSEWHERE if said not in text]


def test_the_mission_page_is_unchanged() -> None:
    """Its blocks must run as printed; whoever changes them changes what was asked for."""
    blocks = [block for block in blocks_of(ROOT / "tests/docs/mission.md") if block.language == "python"]
    text = "\n".join(line for block in blocks for line in block.lines)
    assert hashlib.sha256(text.encode()).hexdigest() == MISSION


@pytest.mark.parametrize("page", promises.TABLES)
def test_the_tables_of_promises_are_what_the_engines_say(page: str) -> None:
    """If this fails: python -m tests.docs.promises"""
    table = list(promises.TABLES[page]())
    assert promises.written(page, table[0]) == table
