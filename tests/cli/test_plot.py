"""The picture that `openmodal bench --plot` draws."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from openmodal.cli._plot import bars

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> tuple[list[float], list[str]]:
    """The lengths of its bars, and its words."""
    root = ET.fromstring(text)
    lengths = [float(bar.get("width", 0)) for bar in root.iter(f"{SVG}rect")]
    return lengths, [word.text or "" for word in root.iter(f"{SVG}text")]


def test_the_slowest_bar_of_a_step_is_the_longest_and_ratios_are_told() -> None:
    series = {"OpenModal": {"create": 10.0, "exec": 1.0}, "Docker": {"create": 200.0, "exec": 50.0}}
    lengths, words = drawn(bars("a title", series, "a note\nin two lines"))
    assert lengths == [16.0, 320.0, 6.4, 320.0]
    assert words == [
        "a title",
        *("create", "10.0 ms  OpenModal", "200 ms  Docker (20.0 x)"),
        *("exec", "1.0 ms  OpenModal", "50.0 ms  Docker (50.0 x)"),
        *("a note", "in two lines"),
    ]


def test_a_step_that_only_one_has_is_not_drawn() -> None:
    lengths, words = drawn(bars("t", {"a": {"create": 1.0, "files": 2.0}, "b": {"create": 2.0}}, ""))
    assert len(lengths) == 2 and "files" not in words


def test_one_alone_has_no_names_and_signs_of_xml_are_no_harm() -> None:
    _, words = drawn(bars("<t> & co", {"a": {"x < y": 0.0001}}, "&"))
    assert words == ["<t> & co", "x < y", "0.0 ms", "&"]
