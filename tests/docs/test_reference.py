"""The reference is what the docstrings say, has every public name, and becomes a site."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openmodal
from tests.docs import reference

ROOT = Path(__file__).resolve().parent.parent.parent

# A parameter of these names says itself what it is, or is explained where `Sandbox.create` is.
PLAIN = {"arguments", "engine", "local", "path", "reference", "requirements_txt", "user"}


def methods() -> Iterator[reference.Member]:
    for _, _, things in reference.PAGES.values():
        for thing in things:
            if inspect.isclass(thing):
                yield from reference.members(thing)
            else:
                yield reference.Member(reference.named(thing), thing)


def test_the_pages_are_what_the_docstrings_say() -> None:
    """If this fails: python -m tests.docs.reference"""
    there = {path.name: path.read_text("utf-8") for path in reference.FOLDER.glob("*.md")}
    made = reference.made()
    assert sorted(there) == sorted(made)
    old = [name for name in made if made[name] != there[name]]
    assert not old, "write them anew with: python -m tests.docs.reference"


def test_every_public_name_is_in_it() -> None:
    assert not [name for name in openmodal.__all__ if name != "__version__" and name not in reference.places()]


def test_every_method_and_its_parameters_are_explained() -> None:
    missing = []
    for member in methods():
        doc = member.function.__doc__ or ""
        missing += [] if doc else [member.name]
        if not isinstance(member.value, property):
            for other in re.findall(r"\b[Aa]s `(\w+)`", doc):  # which has the same
                doc += getattr(getattr(member.home, other, None), "__doc__", None) or ""
            names = set(inspect.signature(member.function).parameters) - {"self", "cls", "unknown"} - PLAIN
            missing += [f"{member.name}({name})" for name in names if not re.search(rf"\b{name}\b", doc)]
    assert not missing


def test_what_methods_return_is_explained() -> None:
    """Classes of ours in what they return; of iterators and aliases the method says all."""
    said = {name for member in methods() for name in re.findall(r"[A-Z]\w+", reference.returned(member))}
    plain = {"Any", "AnyStr", "Callable", "Iterable", "None", "Self"}
    assert not said - reference.places().keys() - plain - {"Entries", "Pieces"}


def test_the_site_is_built_and_all_its_links_lead_somewhere(tmp_path: Path) -> None:
    """mkdocs looks at links and anchors; with `strict` a broken one is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sandbox.create" in (tmp_path / "reference/sandbox.html").read_text("utf-8")
