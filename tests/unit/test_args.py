"""The user's arguments: taken in their canonical form, or refused by name with the remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmodal import _args, _keywords
from openmodal._gate.policy import normal
from openmodal._spec import Network
from openmodal.errors import Error, InvalidError
from openmodal.secret import Secret


@pytest.mark.parametrize("name", ["a", "A9", "my-app", "a.b_c-d", "0", "x" * 63])
def test_names_are_letters_digits_and_a_few_signs(name: str) -> None:
    assert _args.name("name", name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a/b", "a b", "ä", "x" * 64, "a\n", "a\0", "..", None, 7, b"a"])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidError, match="the name of it"):
        _args.name("the name of it", name)


@given(st.text())
def test_a_name_that_is_taken_is_one_harmless_file_name(name: str) -> None:
    try:
        _args.name("name", name)
    except InvalidError:
        return
    assert name == Path(name).name
    assert name.isascii()
    assert name.isprintable()


@given(st.text())
def test_a_string_that_is_taken_can_be_encoded(text: str) -> None:
    try:
        _args.string("it", text)
    except InvalidError:
        return
    assert b"\0" not in text.encode("utf-8", "surrogateescape")


def test_strings_may_stand_for_bytes_that_are_not_utf8() -> None:
    assert _args.string("it", "\udc80\udcff") == "\udc80\udcff"
    for half in ("\ud800", "\udc7f", "\udd00", "\udfff"):
        with pytest.raises(InvalidError, match="surrogate"):
            _args.string("it", half)


@pytest.mark.parametrize("path", ["/", "/a/../b", "/a b", "/\n", "//x"])
def test_paths_are_absolute_or_relative(path: str) -> None:
    assert _args.path("path", path) == _args.absolute("path", path) == path
    assert _args.path("path", f".{path}") == f".{path}"


@pytest.mark.parametrize("path", ["", "/a\0", None, Path("/a"), 7])
def test_other_paths_are_refused(path: object) -> None:
    for check in (_args.path, _args.absolute):
        with pytest.raises(InvalidError, match="workdir"):
            check("workdir", path)


@pytest.mark.parametrize("path", ["a", "./a", "~", "a/b"])
def test_paths_in_an_image_are_absolute(path: str) -> None:
    with pytest.raises(InvalidError, match="remote_path"):
        _args.absolute("remote_path", path)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (0.001, 0.001), (366 * 86400, 31_622_400.0)])
def test_seconds_are_more_than_nothing(value: float, expected: float) -> None:
    assert _args.seconds("timeout", value) == expected
    assert isinstance(_args.seconds("timeout", value), float)


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), -float("inf"), 366 * 86400 + 1, True, "1", None, 1j, [1]]
)
def test_other_seconds_are_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="timeout"):
        _args.seconds("timeout", value)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_whatever_is_given_only_invalid_error_comes_of_it(value: Any) -> None:
    for check in (
        lambda: _args.name("x", value),
        lambda: _args.path("x", value),
        lambda: _args.optional_seconds("x", value),
        lambda: _args.cores(value),
        lambda: _args.mebibytes("x", value, 16),
        lambda: _args.variables("x", value),
        lambda: _args.tags(value),
    ):
        with contextlib.suppress(InvalidError):
            check()


def test_none_means_no_limit() -> None:
    assert _args.optional_seconds("x", None) is None
    assert _args.cores(None) is None
    assert _args.mebibytes("x", None, 16) is None
    assert _args.variables("x", None) == ()
    assert _args.tags(None) == ()


@pytest.mark.parametrize("value", [0, 0.001, -1, 5000, float("nan"), True, "1"])
def test_cores_that_cannot_be_are_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="cpu"):
        _args.cores(value)


@pytest.mark.parametrize("value", [15, 0, -1, 16.0, True, "16", (1 << 40) + 1])
def test_sizes_that_cannot_be_are_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="memory"):
        _args.mebibytes("memory", value, 16)


def test_variables_keep_their_order_and_any_value() -> None:
    values = {"B": "", "A_1": "a=b\nc", "_x": "ü", "1 a.b-c": "", "ä\n": "1"}
    assert _args.variables("env", values) == tuple(values.items())


@pytest.mark.parametrize("key", ["", "A=B", "=", "A\0", "\ud800", 7, None])
def test_variable_names_that_cannot_be_are_refused(key: Any) -> None:
    with pytest.raises(InvalidError, match="env"):
        _args.variables("env", {key: "x"})


def test_tags_are_sorted() -> None:
    assert _args.tags({"b": "1", "a": "2"}) == (("a", "2"), ("b", "1"))


@pytest.mark.parametrize(
    "tags", [{"": "x"}, {"a": ""}, {"a b": "c"}, {"a": "x" * 64}, {"a": 1}, {"OpenModal.x": "y"}, ["a"], "a"]
)
def test_other_tags_are_refused(tags: Any) -> None:
    with pytest.raises(InvalidError, match="tag"):
        _args.tags(tags)


def test_argv_names_the_argument_that_is_wrong() -> None:
    assert _args.argv("exec", ["ls", ""]) == ("ls", "")
    with pytest.raises(InvalidError, match=r"exec\(\) argument 3 must be a string, not int"):
        _args.argv("exec", ["a", "b", 3])
    for nothing in ([], [""]):
        with pytest.raises(InvalidError, match="needs a command"):
            _args.argv("exec", nothing)


def test_the_size_of_a_command_counts_bytes() -> None:
    longest = "x" * 131_071
    _args.command_size("exec", (longest,), (("A", longest[2:]),))
    with pytest.raises(InvalidError, match="131073 bytes, more than 131072"):
        _args.command_size("exec", (f"{longest}x",), ())
    with pytest.raises(InvalidError):
        _args.command_size("exec", ("ü" * 65_536,), ())
    with pytest.raises(InvalidError):
        _args.command_size("exec", ("x",), (("A", longest[1:]),))


def test_the_size_of_a_command_counts_each_string_and_its_pointer() -> None:
    _args.command_size("exec", ("",) * (2_097_152 // 9), ())
    with pytest.raises(InvalidError, match="2097153 bytes, more than 2097152"):
        _args.command_size("exec", ("",) * (2_097_152 // 9 + 1), ())


def test_an_unknown_keyword_gets_a_hint() -> None:
    _keywords.unknown("f", {"timeout": 1}, ("timeout",))
    with pytest.raises(InvalidError, match="did you mean timeout"):
        _keywords.unknown("f", {"timeot": 1}, ("timeout", "workdir"))
    with pytest.raises(InvalidError, match=r"help\(openmodal\.Sandbox\.f\)"):
        _keywords.unknown("f", {"xyz": 1}, ("timeout", "workdir"))


def test_a_secret_shows_nothing() -> None:
    secret = Secret({"KEY": "value"})
    assert secret.variables == {"KEY": "value"}
    assert "value" not in repr(secret)
    assert "KEY" not in repr(secret)
    secret.variables["KEY"] = "changed"
    assert secret.variables == {"KEY": "value"}, "it gives a copy"


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "x")
    monkeypatch.delenv("NO_TOKEN", raising=False)
    assert Secret.from_local_environ(["A_TOKEN"]).variables == {"A_TOKEN": "x"}
    with pytest.raises(InvalidError, match="NO_TOKEN"):
        Secret.from_local_environ(["A_TOKEN", "NO_TOKEN"])


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nexport B = 'two words' \nC=\"x=y\"\nD=\nE='odd\n")
    assert Secret.from_dotenv(file).variables == {"A": "1", "B": "two words", "C": "x=y", "D": "", "E": "'odd"}


@pytest.mark.parametrize("content", ["novalue\n", "A=1\nB\n", "A B=c\n"])
def test_a_line_that_is_no_variable_is_told_without_its_content(tmp_path: Path, content: str) -> None:
    file = tmp_path / "env"
    file.write_text(content)
    with pytest.raises(InvalidError):
        Secret.from_dotenv(file)


def test_a_secrets_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="nothing-here"):
        Secret.from_dotenv(tmp_path / "nothing-here")


@pytest.mark.parametrize("variables", [{"A": 1}, {"A=B": "c"}, ["A"], {"A": "b\0"}])
def test_a_secret_takes_variables_only(variables: Any) -> None:
    with pytest.raises(Error, match="secret"):
        Secret.from_dict(variables)


# -------------------------------------------------------------------------------------- allow lists


def test_networks_are_canonical_sorted_and_each_once() -> None:
    found = _args.network(False, ["203.0.113.7", "10.0.0.0/255.0.0.0", "2001:DB8::/32", "203.0.113.7/32"], None)
    assert found == Network(cidrs=("10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32"))
    assert found.listed


def test_domains_are_ascii_lower_case_and_each_once() -> None:
    found = _args.network(False, None, ["Example.COM.", "example.com", "*.B\u00fccher.example", "_dmarc.x"])
    assert found.domains == ("*.xn--bcher-kva.example", "_dmarc.x", "example.com")


def test_an_empty_list_is_a_list_and_none_is_none() -> None:
    assert _args.network(False, [], None) == Network(cidrs=())
    assert Network(cidrs=()).listed
    assert not _args.network(False, None, None).listed


@pytest.mark.parametrize(
    "text", ["", " ", "10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0", "::/129", "fe80::1%lo/64", None, b"x"]
)
def test_other_networks_are_refused(text: object) -> None:
    with pytest.raises(InvalidError, match="outbound_cidr_allowlist"):
        _args.network(False, [text], None)


@pytest.mark.parametrize(
    "text",
    ["", ".", "*", "*.", "*.*.example", "a.*.example", "http://a", "a:80", "a/b", "1.2.3.4", "[::1]", "::1", "a b", "a..b", "-a",
     "x" * 64, "a" + ".a" * 127, "user@a", "a%2e", None, 7],
)  # fmt: skip
def test_other_domains_are_refused(text: object) -> None:
    with pytest.raises(InvalidError, match="outbound_domain_allowlist"):
        _args.network(False, None, [text])


@given(st.lists(st.text()))
def test_domains_that_are_taken_are_names_that_a_gate_knows(texts: list[str]) -> None:
    try:
        found = _args.network(False, None, texts).domains
    except InvalidError:
        return
    assert found is not None
    assert [normal(name.removeprefix("*.")) for name in found] == [name.removeprefix("*.") for name in found]
