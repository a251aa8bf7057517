"""docs/reference, made of the docstrings. `python -m tests.docs.reference` writes it anew.

The pages are in the repository, so that they can be read on any forge, without a build. A docstring
is a text, then sections as Google writes them: `Args:`, `Returns:`, `Raises:`, `Attributes:`, each
with one item to a name; and `Example::` with code.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openmodal
from openmodal import _journal, _measured, _options, _spec, errors, housekeeping
from openmodal._dual import Call, dual
from openmodal.app import Run
from openmodal.sandbox.handle import Handle
from openmodal.volume import EphemeralVolume

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs/reference"

PAGES: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "sandbox": (
        "Sandbox",
        "A sandbox: made, found, used, ended. [Sandboxes](../sandboxes.md) tells how.",
        (
            openmodal.Sandbox,
            openmodal.Checkpoint,
            openmodal.Probe,
            _options.SpawnOptions,
            _options.ExecOptions,
            _options.AttachOptions,
        ),
    ),
    "commands": (
        "Commands",
        "What `exec`, `spawn`, `shell` and `interpreter` return. [Sandboxes](../sandboxes.md#run-commands) tells how.",
        (
            openmodal.Process,
            openmodal.StreamReader,
            openmodal.StreamWriter,
            openmodal.StreamType,
            openmodal.Shell,
            openmodal.ShellResult,
            openmodal.Interpreter,
            openmodal.Execution,
            openmodal.CodeError,
        ),
    ),
    "files": (
        "Files",
        "`sandbox.filesystem`. [Files](../files.md) tells how.",
        (openmodal.Filesystem, openmodal.FileInfo, openmodal.Watch, openmodal.FileEvent),
    ),
    "images": ("Images", "What a sandbox's files are. [Images](../images.md) tells how.", (openmodal.Image,)),
    "volumes": (
        "Volumes",
        "What outlives sandboxes. [Volumes and folders](../volumes.md) tells how.",
        (openmodal.Volume, EphemeralVolume, openmodal.VolumeUpload, openmodal.HostDirectory),
    ),
    "ports": (
        "Ports",
        "Reaching what listens in a sandbox. [Sandboxes](../sandboxes.md#connect-to-what-listens-in-it) tells how.",
        (openmodal.Connection, openmodal.Forward, openmodal.Tunnel),
    ),
    "apps": (
        "Apps, secrets, pools",
        "What sandboxes belong to, what they are told, where they wait.",
        (openmodal.App, Run, openmodal.Secret, openmodal.Pool),
    ),
    "results": (
        "Results",
        "Values that methods return; all of them are immutable.",
        (
            _spec.Status,
            _spec.EndRecord,
            _spec.Info,
            _spec.Usage,
            _spec.Change,
            _spec.Egress,
            _spec.CommandStatus,
            _spec.ExitRecord,
            _journal.Event,
            _measured.LogPiece,
            _spec.OutputGap,
            _spec.VolumeInfo,
            _spec.PoolStatus,
            _spec.Built,
        ),
    ),
    "housekeeping": (
        "Housekeeping",
        "`from openmodal import housekeeping`: what `openmodal gc`, `image` and `doctor` do, from Python.",
        (
            housekeeping.gc,
            housekeeping.images,
            housekeeping.prunable,
            housekeeping.prune,
            housekeeping.doctor,
            housekeeping.Collected,
            housekeeping.Prunable,
            housekeeping.Pruned,
            housekeeping.Check,
        ),
    ),
    "errors": (
        "Errors",
        "Every exception that OpenModal raises on purpose, in one tree.",
        tuple(getattr(openmodal, name) for name in openmodal.__all__ if name in vars(errors)),
    ),
}

# Their constructors are for users; other objects come from a method.
CONSTRUCTED = (openmodal.App, openmodal.HostDirectory, openmodal.Secret)
# What they are made of is nobody's business.
WHOLE = (openmodal.Checkpoint, openmodal.Image, openmodal.Probe)
# For engines.
INSIDE = {"Volume.mount", "HostDirectory.mount", "Secret.variables"}

SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$")
ITEM = re.compile(r"^ {4}(\S[^:]*?): (.*)$")
WIDTH = 88


@dataclass(frozen=True)
class Member:
    """Something public of a class, or a function: `home` is the class that defines it."""

    name: str
    value: Any
    home: type | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """What has the signature."""
        value = self.value
        while not inspect.isfunction(value):
            value = value.fget if isinstance(value, property) else getattr(value, "core", None) or value.__wrapped__
        return typing.cast("Callable[..., Any]", value)

    @property
    def both(self) -> bool:
        """Whether it also has the face for asyncio."""
        return isinstance(self.value, dual | Call)


def members(cls: type) -> Iterator[Member]:
    """The public methods and properties of a class, in the order of the source."""
    documented = {thing for _, _, things in PAGES.values() for thing in things} - {cls}
    homes = [home for home in cls.__mro__ if home.__module__.startswith("openmodal") and home not in documented]
    homes.sort(key=lambda home: (home is not cls, home is not Handle))  # else as they are inherited
    seen: set[str] = set()
    for home in homes:
        for name, value in vars(home).items():
            shown = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod | dual)
            if not name.startswith("_") and name not in seen and shown and f"{cls.__name__}.{name}" not in INSIDE:
                seen.add(name)
                yield Member(f"{cls.__name__}.{name}", value, home)


def signature(member: Member, name: str = "") -> str:
    """How it is called, in one line if that is short."""
    name = name or member.name
    parameters = list(inspect.signature(member.function).parameters.values())
    if member.home and not isinstance(member.value, staticmethod):
        parameters = parameters[1:]
    given = list(_parameters(parameters))
    returns = returned(member)
    end = (f" -> {returns}" if returns and name == member.name else "") + ("  # and .aio" if member.both else "")
    line = f"{name}({', '.join(given)}){end}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){end}"


def returned(member: Member) -> str:
    return str(member.function.__annotations__.get("return", "")).replace("builtins.", "")


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            yield "*"
        starred |= each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        if each.name == "unknown":  # catches what is misspelled
            continue
        prefix = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        kind = f": {each.annotation}" if each.annotation is not each.empty else ""
        default = "" if each.default is each.empty else f" = {shown(each.default)}"
        yield f"{prefix}{each.name}{kind}{default}".replace("builtins.", "")


def shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@functools.cache
def places() -> dict[str, str]:
    """Where a name is explained."""
    found: dict[str, str] = {}
    for page, (_, _, things) in PAGES.items():
        for thing in things:
            names = [named(thing)]
            names += [member.name for member in members(thing)] if inspect.isclass(thing) else []
            found |= {name: f"{page}.md#{name.lower().replace('.', '')}" for name in names}
    return found


def named(thing: Any) -> str:
    return str(thing.__name__ if inspect.isclass(thing) else f"housekeeping.{thing.core.__name__}")


def linked(text: str, own: str) -> str:
    """The text with links from names in backquotes, and to other pages."""

    def place(found: re.Match[str]) -> str:
        name = found[1]
        whole = next((each for each in (f"{own}.{name}", name, f"Sandbox.{name}") if each in places()), None)
        return f"[`{name}`]({places()[whole]})" if whole and whole != own else found[0]

    text = re.sub(r"`([A-Za-z_.]+)`", place, text)
    return re.sub(r"(?<!\]\()(?<![\w/])docs/([\w-]+)\.md", r"[\1](../\1.md)", text)


def rendered(doc: str | None, own: str) -> Iterator[str]:
    """A docstring as Markdown."""
    lines = inspect.cleandoc(doc or "").splitlines()
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        if found := SECTION.match(line):
            blocks.append((found[1], []))
        elif line.endswith("::"):
            blocks.append(("code", []))
        elif blocks[-1][0] and line and not line.startswith(" "):
            blocks.append(("", [line]))
        else:
            blocks[-1][1].append(line)
    for kind, inside in blocks:
        text = "\n".join(inside).strip("\n")
        if kind == "code":
            yield f"```python\n{inspect.cleandoc(text)}\n```\n"
        elif kind in ("", "Returns"):
            yield linked(inspect.cleandoc(text), own) + "\n" if text else ""
        else:
            yield from items(kind, inside, own)


def items(kind: str, lines: list[str], own: str) -> Iterator[str]:
    """A section as a list."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if item := ITEM.match(line):
            found.append((item[1], item[2]))
        elif line.startswith(" " * 8) and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif line.strip():
            found.append(("", line.strip()))
    title = {"Args": "", "Attributes": "", "Raises": "Raises:\n\n"}[kind]
    entries = []
    for names, text in found:
        quoted = ", ".join(f"`{name.strip()}`" for name in re.split(r"[,;]", names) if name.strip())
        head = linked(quoted, own) if kind == "Raises" else f"**{quoted}**"
        entries.append(f"- {head}: {linked(text, own)}" if names else f"- {linked(text, own)}")
    yield title + "\n".join(entries) + "\n"


def of_member(member: Member) -> Iterator[str]:
    yield f"### {member.name}\n"
    if isinstance(member.value, property):
        yield f"```python\n{member.name}: {returned(member)}\n```\n"
    else:
        yield f"```python\n{signature(member)}\n```\n"
    yield from rendered(member.function.__doc__, member.name.partition(".")[0])


def fields(cls: type) -> Iterator[str]:
    """The fields of a value, with their types."""
    if typing.is_typeddict(cls):
        own = dict(vars(cls)["__annotations__"])
    elif issubclass(cls, enum.Enum):
        own = {each.name: repr(each.value) for each in cls}
    else:
        known = {} if cls in WHOLE else vars(cls).get("__annotations__", {})
        shown = [name for name in getattr(cls, "__struct_fields__", ()) if name in known and name[0] != "_"]
        own = {name: known[name] for name in shown}
    if own:
        lines = [f"{name}: {getattr(kind, '__forward_arg__', kind)}" for name, kind in own.items()]
        yield "```python\n" + "\n".join(lines) + "\n```\n"


def of_class(cls: type) -> Iterator[str]:
    yield f"## {cls.__name__}\n"
    if issubclass(cls, BaseException):
        yield f"Derives from `{'`, `'.join(base.__name__ for base in cls.__bases__)}`.\n"
    yield from fields(cls)
    yield from rendered(cls.__doc__, cls.__name__)
    if cls in CONSTRUCTED:
        made = Member(f"{cls.__name__}.__init__", vars(cls)["__init__"], cls)
        yield f"```python\n{signature(made, cls.__name__)}\n```\n"
        yield from rendered(made.value.__doc__, cls.__name__)
    home: type = cls
    for member in members(cls):
        if member.home not in (None, home, Handle) and cls is openmodal.Sandbox:
            home = member.home
            yield f"**{inspect.cleandoc(home.__doc__ or '').splitlines()[0]}**\n"
        yield from of_member(member)


def of_function(call: Call[..., Any]) -> Iterator[str]:
    member = Member(named(call), call)
    yield f"## {member.name}\n"
    yield f"```python\n{signature(member)}\n```\n"
    yield from rendered(call.core.__doc__, "housekeeping")


MADE = "<!-- made by `python -m tests.docs.reference`, of the docstrings: change those -->\n"


def page(name: str) -> str:
    """The text of a page."""
    title, text, things = PAGES[name]
    parts = [f"# {title}\n", MADE, text + "\n"]
    if name == "errors":
        tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n")[2]
        drawn, _, rest = tree.partition("\n\nA failure")
        parts += [f"```text\n{inspect.cleandoc(drawn.strip(chr(10)))}\n```\n", f"A failure{rest}\n"]
    for thing in things:
        parts += of_class(thing) if inspect.isclass(thing) else of_function(thing)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(part for part in parts if part)).rstrip("\n") + "\n"


INDEX = """\
Every public name, made of its docstring. Methods with `# and .aio` have a second face for asyncio that takes the same
arguments: `sandbox.exec("ls")` blocks, `await sandbox.exec.aio("ls")` does not; so have `with` and `for`. Times are in
seconds, memory and disk in MiB, and paths are in the sandbox, unless it says otherwise. Wrong arguments are an
[`InvalidError`](errors.md#invaliderror), before anything is done; what an engine lacks is an
[`UnsupportedError`](errors.md#unsupportederror).
"""


def index() -> str:
    """The first page."""
    rows = ["| page | |", "| --- | --- |"]
    for name, (title, _, things) in PAGES.items():
        known = ", ".join(f"[{named(thing)}]({places()[named(thing)]})" for thing in things)
        rows.append(f"| [{title}]({name}.md) | {known} |")
    return "\n".join(["# Reference\n", MADE, INDEX, *rows]) + "\n"


def made() -> dict[str, str]:
    """All pages, by the names of their files."""
    return {"index.md": index()} | {f"{name}.md": page(name) for name in PAGES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in made().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
