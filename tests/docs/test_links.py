"""Links of the documents lead to files that are there, and to headings that they have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

CODE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:")


def links(text: str) -> Iterator[str]:
    """Where a page's links lead; what stands in code is no link."""
    for found in LINK.finditer(CODE.sub("", text)):
        if not ELSEWHERE.match(found[1]):
            yield found[1]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and GitLab make them."""
    fences = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1", re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.finditer(fences.sub("", text)):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@cache
def anchors_of(page: Path) -> set[str]:
    return anchors(page.read_text(encoding="utf-8"))


def broken(page: Path, text: str) -> Iterator[str]:
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no such file"
        elif anchor and (target.suffix != ".md" or anchor not in anchors_of(target)):
            yield f"{link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not list(broken(page, page.read_text(encoding="utf-8")))


def test_a_broken_link_is_seen() -> None:
    """The negative control: one of a file, one of a heading; code and other sites do not count."""
    text = "[a](no.md) [b](README.md#no) [c](README.md#frameworks) `[d](no.md)` [e](https://example.com/no)"
    assert [line.partition(":")[0] for line in broken(ROOT / "x.md", text)] == ["no.md", "README.md#no"]


def test_anchors_are_the_forges_own() -> None:
    text = "# A `b_c` (d), e\n## Twice\n```sh\n# no heading\n```\n## Twice\n## [Link](x.md)\n"
    assert anchors(text) == {"a-b_c-d-e", "twice", "twice-1", "link"}


def test_every_page_of_the_documents_is_found_from_the_first() -> None:
    """Whoever begins at docs/index.md gets everywhere by links."""
    first = ROOT / "docs/index.md"
    reached, ahead = {first}, [first]
    while ahead:
        page = ahead.pop()
        for link in links(page.read_text(encoding="utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert not [str(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in reached]


def test_every_page_of_the_documents_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages == {*re.findall(r": (\S+\.md)$", menu, re.MULTILINE)}
