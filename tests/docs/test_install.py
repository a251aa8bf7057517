"""No text of ours tells anybody to install OpenModal from an index.

There, `openmodal` is another project, whose code would run, and `openmodal-sandboxes` is nobody's:
whoever takes that name could say what runs. So a sentence says where the wheel or checkout is.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from openmodal.errors import extra

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("src", "docs", "examples", "native", ".ci", "benchmarks")
KINDS = {".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".html", ".js", ".c", ".h", ""}

INSTALLED = re.compile(
    r"\b(?:uvx|(?:pip3?|pipx|uv|poetry|pdm|conda|rye)\b[^\n`#]*\b(?:install|add|run))\b"
    r"[^\n`#]*[ '\"=]openmodal(?:-sandboxes)?(?![\w./-])"
)


def texts() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [*ROOT.glob("*.md"), ROOT / "Makefile", *(path for path in files if path.suffix in KINDS)]


@pytest.mark.parametrize(
    "line",
    [
        "pip install openmodal",
        "python -m pip install --upgrade 'openmodal[serve]'",
        "pip install openmodal==1.0",
        "uv add openmodal-sandboxes",
        "uv pip install openmodal",
        "pipx install openmodal-sandboxes[kubernetes]",
        "uvx openmodal doctor",
        'subprocess.run(["pip", "install", "openmodal"])',
    ],
)
def test_the_wrong_sentence_is_seen(line: str) -> None:
    assert INSTALLED.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install .",
        "pip install .\nopenmodal doctor",
        "pip install '.[serve]'  # openmodal's extra",
        "pip install wheels/openmodal_sandboxes-0.1.0-py3-none-any.whl",
        "`pip install` this checkout (there `openmodal` is another project's name)",
    ],
)
def test_the_right_sentence_is_not(line: str) -> None:
    assert not INSTALLED.search(line)


def test_no_text_tells_to_install_a_name_that_is_not_ours() -> None:
    files = texts()
    assert len(files) > 300  # else it looked in the wrong place
    wrong = []
    for path in files:
        found = INSTALLED.search(path.read_text("utf-8", errors="replace"))
        wrong += [f"{path.relative_to(ROOT)}: {found[0]}"] if found else []
    assert not wrong


def test_remedies_name_the_checkout_or_the_wheel() -> None:
    assert "checkout" in extra("serve") and "'.[serve]'" in extra("serve") and "wheel" in extra("serve")


def test_the_distribution_has_a_name_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "openmodal-sandboxes"
    assert project["scripts"] == {"openmodal": "openmodal.cli:main", "openmodal-docker": "openmodal.docker_cli:main"}
