"""Go templates, as far as people write them behind `--format`.

Fields, `index`, `json`, `range`, `if`, `with`, variables, pipes and the functions that docker adds.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from openmodal.docker_cli.failures import Failure
from openmodal.docker_cli.flags import Given

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<path>\$?\w*(?:\.\w+)+|\.|\$\w*)"""
    r"""|(?P<word>\w+)|(?P<mark>:=|=|[()|,]))"""
)
_BRANCHES = ("if", "range", "with")

Nodes = list[Any]  # texts, expressions (lists of tokens) and blocks


class _Block(msgspec.Struct):
    """`{{if …}} … {{else}} … {{end}}`."""

    kind: str
    tokens: list[tuple[str, str]]
    body: Nodes = []
    other: Nodes = []


class Template:
    """A template that was understood.

    Raises:
        Failure: it cannot be; the text says where.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = self._parsed()

    def render(self, value: object) -> str:
        """The text for a value. A field that it does not have is a Failure."""
        return "".join(self._rendered(self._nodes, value, {"$": value}))

    # ----------------------------------------------------------------------------------- reading

    def _parsed(self) -> Nodes:
        stack: list[tuple[_Block | None, Nodes]] = [(None, [])]
        at, trim = 0, False
        for found in _ACTION.finditer(self._text):
            text = self._text[at : found.start()]
            text = text.lstrip() if trim else text
            stack[-1][1].append(text.rstrip() if found[1] else text)
            at, trim = found.end(), bool(found[3])
            self._put(found[2].strip(), stack)
        rest = self._text[at:]
        if "{{" in rest or len(stack) > 1:
            raise self._bad("unclosed action" if "{{" in rest else "unexpected EOF")
        stack[-1][1].append(rest.lstrip() if trim else rest)
        return stack[-1][1]

    def _put(self, action: str, stack: list[tuple[_Block | None, Nodes]]) -> None:
        """Take in what stands between braces."""
        head, _, rest = action.partition(" ")
        block = stack[-1][0]
        if action.startswith("/*"):
            return
        if head in _BRANCHES:
            made = _Block(head, self._tokens(rest))
            stack[-1][1].append(made)
            stack.append((made, made.body))
        elif head == "else" and block:
            stack[-1] = (block, block.other)
            if rest.split(" ")[0] == "if":  # one `end` ends both
                inner = _Block("if", self._tokens(rest[3:]))
                block.other.append(inner)
                stack[-1] = (inner, inner.body)
        elif head == "end" and block:
            stack.pop()
        elif head in ("else", "end"):
            raise self._bad(f"unexpected {{{{{head}}}}}")
        else:
            stack[-1][1].append(self._tokens(action))

    def _tokens(self, text: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if not match:
                raise self._bad(f"unexpected {text[at:].strip()[:20]!r} in command")
            found.append((str(match.lastgroup), match[str(match.lastgroup)]))
            at = match.end()
        if not found:
            raise self._bad("missing value for command")
        return found

    def _bad(self, why: str) -> Failure:
        return Failure(f"template parsing error: template: :1: {why}; the template is {self._text!r}")

    # --------------------------------------------------------------------------------- rendering

    def _rendered(self, nodes: Nodes, dot: Any, names: dict[str, Any]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, str):
                yield node
            elif isinstance(node, _Block):
                yield from self._block(node, dot, names)
            else:
                yield from self._action(node, dot, names)

    def _action(self, tokens: list[tuple[str, str]], dot: Any, names: dict[str, Any]) -> Iterator[str]:
        if len(tokens) > 1 and tokens[0][1].startswith("$") and tokens[1][1] in (":=", "="):
            names[tokens[0][1]] = self._value(tokens[2:], dot, names)
        else:
            yield shown(self._value(tokens, dot, names))

    def _block(self, block: _Block, dot: Any, names: dict[str, Any]) -> Iterator[str]:
        variables, tokens = _variables(block.tokens)
        value = self._value(tokens, dot, names)
        if not truth(value):
            yield from self._rendered(block.other, dot, names)
        elif block.kind == "range":
            pairs = sorted(value.items()) if isinstance(value, Mapping) else enumerate(value)
            for pair in pairs:
                known = dict(zip(variables, pair if len(variables) > 1 else pair[1:], strict=False))
                yield from self._rendered(block.body, pair[1], names | known)
        else:
            known = dict.fromkeys(variables, value)
            yield from self._rendered(block.body, value if block.kind == "with" else dot, names | known)

    # -------------------------------------------------------------------------------- expressions

    def _value(self, tokens: list[tuple[str, str]], dot: Any, names: dict[str, Any]) -> Any:
        return self._pipe([*tokens], dot, names)

    def _pipe(self, rest: list[tuple[str, str]], dot: Any, names: dict[str, Any]) -> Any:
        """What a pipe gives, up to its end or to `)`: each command gets what the one before gave,
        as its last argument."""
        given: list[Any] = []
        while True:
            result = self._command(rest, given, dot, names)
            if not rest or rest[0][1] != "|":
                return result
            rest.pop(0)
            given = [result]

    def _command(self, rest: list[tuple[str, str]], given: list[Any], dot: Any, names: dict[str, Any]) -> Any:
        function: Callable[..., Any] | None = None
        if rest and rest[0][0] == "word" and rest[0][1] in FUNCTIONS:
            function = FUNCTIONS[rest.pop(0)[1]]
        operands: list[Any] = []
        while rest and rest[0][1] not in ("|", ")"):
            operands.append(self._operand(rest, dot, names))
        operands += given
        if function is None and operands and callable(operands[0]):
            function = operands.pop(0)
        if function is None:
            if len(operands) != 1:
                raise self._bad("there is no function of that name")
            return operands[0]
        try:
            return function(*operands)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise self._bad(f"error calling function: {error}") from error

    def _operand(self, rest: list[tuple[str, str]], dot: Any, names: dict[str, Any]) -> Any:
        kind, text = rest.pop(0)
        match kind, text:
            case "text", _:
                return text[1:-1] if text[0] == "`" else json.loads(text)
            case "number", _:
                return float(text) if "." in text else int(text)
            case "path", _:
                return self._path(text, dot, names)
            case _, "(":
                value = self._pipe(rest, dot, names)
                if not rest or rest.pop(0)[1] != ")":
                    raise self._bad("unclosed left paren")
                # `(index … 0).HostPort`
                return (
                    self._fields(value, rest.pop(0)[1])
                    if rest and rest[0][0] == "path" and rest[0][1] != "."
                    else value
                )
            case _, "true" | "false":
                return text == "true"
            case _, "nil":
                return None
            case _:
                raise self._bad(f"function {text!r} not defined")

    def _path(self, text: str, dot: Any, names: dict[str, Any]) -> Any:
        variable, _, path = text.partition(".")
        if variable and variable not in names:
            raise self._bad(f"undefined variable {variable!r}")
        return self._fields(names[variable] if variable else dot, f".{path}" if path else "")

    def _fields(self, value: Any, path: str) -> Any:
        for name in path.split(".")[1:]:
            if not isinstance(value, Mapping) or name not in value:
                raise self._bad(f'executing "" at <{path}>: map has no entry for key "{name}"')
            value = value[name]
        return value


def _variables(tokens: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """`$key, $value := .Labels` as its variables and the rest."""
    marks = [text for _, text in tokens]
    if ":=" not in marks:
        return [], tokens
    at = marks.index(":=")
    return [text for text in marks[:at] if text != ","], tokens[at + 1 :]


def truth(value: object) -> bool:
    """Go's: what is empty or zero is false."""
    return bool(value)


def shown(value: Any) -> str:
    """A value as Go prints it."""
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case Mapping():
            return f"map[{' '.join(f'{shown(key)}:{shown(each)}' for key, each in sorted(value.items()))}]"
        case list() | tuple():
            return f"[{' '.join(map(shown, value))}]"
        case _ if callable(value):
            raise Failure("template parsing error: a function lacks its argument")
        case _:
            return str(value)


def as_json(value: object) -> str:
    """A value as Go's encoder writes it on one line."""
    if isinstance(value, Mapping):
        value = {name: each for name, each in value.items() if not callable(each)}
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value[key]
    return value


def _printf(text: str, *values: Any) -> str:
    return re.sub(r"%[vq]", "%s", text) % values


def _print(*values: Any) -> str:
    return "".join(map(shown, values))


def _println(*values: Any) -> str:
    return " ".join(map(shown, values)) + "\n"


def _join(values: Sequence[Any], between: str) -> str:
    return between.join(map(shown, values))


def _slice(value: Sequence[Any], *ends: int) -> Any:
    begin, *end = ends
    return value[begin : end[0] if end else None]


def _truncate(text: str, most: int) -> str:
    return text[:most]


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _eq(first: Any, *others: Any) -> bool:
    return first in others


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "eq": _eq,
    "ge": operator.ge,
    "gt": operator.gt,
    "index": _index,
    "join": _join,
    "json": as_json,
    "le": operator.le,
    "len": len,
    "lower": str.lower,
    "lt": operator.lt,
    "ne": operator.ne,
    "not": operator.not_,
    "or": _or,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "slice": _slice,
    "split": str.split,
    "title": str.title,
    "truncate": _truncate,
    "upper": str.upper,
}


def show(given: Given, rows: Sequence[Mapping[str, Any]], usual: str, columns: Mapping[str, str]) -> int:
    """Print a list as `--quiet` (ids, each once) or `--format` says, else by the usual template."""
    quiet = given.on("quiet")
    ids = dict.fromkeys(row["ID"] for row in rows)
    for line in ids if quiet else lines(given.text("format", usual), rows, columns):
        print(line)
    return 0


def tell(given: Given, words: Iterable[str], described: Callable[[str], Mapping[str, Any]]) -> int:
    """Print what is known of things, as `--format` says or as JSON; what is not there is said on
    stderr."""
    wanted = given.text("format")
    template = Template(wanted) if wanted not in ("", "json") else None
    found: list[Mapping[str, Any]] = []
    code = 0
    for word in words:
        try:
            value = described(word)
        except Failure as failure:
            print(failure, file=sys.stderr)
            code = 1
            continue
        if template:
            print(template.render(value))
        found.append(value)
    if not template:
        print(json.dumps(found, indent=None if wanted == "json" else 4, ensure_ascii=False))
    return code


def lines(wanted: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[str]:
    """What `--format` makes of rows: `json`, a template, or `table` and a template.

    `columns` are the heads of a table by their fields.
    """
    if wanted == "json":
        yield from map(as_json, rows)
        return
    is_table = wanted.startswith("table")
    text = wanted.removeprefix("table").strip().replace("\\t", "\t").replace("\\n", "\n")
    template = Template(text)
    cells = [template.render(row).split("\t") for row in rows]
    if is_table:
        heads: dict[str, Any] = {**columns, "Label": str}
        yield from table([template.render(heads).split("\t"), *cells])
    else:
        yield from ("\t".join(row) for row in cells)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows with their cells below each other."""
    count = max(map(len, rows), default=0)
    widths = [max((len(row[n]) for row in rows if n < len(row)), default=0) for n in range(count)]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
