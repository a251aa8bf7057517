"""Dockerfiles: read by e2b-dockerfile-utils, done as the same steps that `Image`'s methods make.

Only this file knows that library. What cannot be done, or must not (files outside the context, secrets, other mounts), is refused with
the line's number; what has no meaning here (EXPOSE, LABEL, HEALTHCHECK…) is skipped.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from openmodal._spec import Config, Dockerfile, Registry, Root, Run, Scratch
from openmodal.build import local
from openmodal.build.copying import Context, copy
from openmodal.build.names import architecture, digest
from openmodal.errors import ImageBuildError, InvalidError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers
    from openmodal.build.steps import Builder

Pairs = tuple[tuple[str, str], ...]

_LARGEST = 1 << 20
_SKIPPED = ("EXPOSE", "LABEL", "MAINTAINER", "STOPSIGNAL", "VOLUME", "HEALTHCHECK")
_SHELL = ("/bin/sh", "-c")

# A heredoc with a shebang is a program of its own. It travels as a variable, because a step has no standard input.
_SCRIPT = (
    'f=$(mktemp) && printf %s "$OPENMODAL_SCRIPT" >"$f" && chmod 700 "$f" && unset OPENMODAL_SCRIPT && "$f"; '
    's=$?; rm -f "$f"; exit $s'
)


def _parsed(step: Dockerfile) -> Any:
    """The instructions of a step."""
    from e2b_dockerfile_utils import DockerfileSyntaxError, parse_dockerfile_ast

    content = text(step)
    if "\0" in content or len(content) > _LARGEST:
        raise InvalidError(f"{_name(step)} has a NUL or more than {_LARGEST} characters; it is no Dockerfile")
    try:
        ast = parse_dockerfile_ast(content)
    except (DockerfileSyntaxError, RecursionError) as error:
        raise InvalidError(f"{_name(step)}: {error}") from error
    return ast


def text(step: Dockerfile) -> str:
    """The Dockerfile, or the lines of one."""
    if not step.path:
        return "\n".join(step.lines) + "\n"
    try:
        with open(step.path, encoding="utf-8") as file:
            return file.read(_LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"the Dockerfile {step.path!r} cannot be read: {error}") from error


def _name(step: Dockerfile) -> str:
    return os.path.basename(step.path) if step.path else "dockerfile_commands()"


def content(step: Dockerfile, store: Layers) -> str:
    """What the result depends on: the text, and the whole context if anything is copied from it.

    Which files a COPY takes may depend on variables of the base image; each COPY's own key looks at its own files only.
    """
    files = local.scan(step.context, ignored(step)).digest(store) if reads_context(step) else ""
    return digest(text(step), files)


def reads_context(step: Dockerfile) -> bool:
    """Whether it copies anything from its context."""
    copies = [i for i in _parsed(step).instructions if i.name in ("COPY", "ADD")]
    return any(not any(flag.startswith("--from=") for flag in i.flags) for i in copies)


def bases(step: Dockerfile) -> list[str]:
    """The images that it begins its stages with, as far as they can be told without building; other stages' names are none."""
    from e2b_dockerfile_utils import ShellLex

    ast = _parsed(step)
    given, stages = dict(step.args), {"scratch"}
    known = dict(_platform())
    found: list[str] = []
    for instruction in ast.instructions:
        if instruction.name == "ARG" and not found:
            for word in instruction.args:
                name, _, value = word.partition("=")
                known[name] = str(given.get(name, value))
        if instruction.name == "FROM" and instruction.args:
            name = str(ShellLex(ast.escape_token, env=known, skip_unset_env=False).process_word(instruction.args[0]))
            found += [] if name.lower() in stages else [name]
            stages |= {instruction.args[2].lower()} if len(instruction.args) == 3 else set()
    return list(dict.fromkeys(found))


def ignored(step: Dockerfile) -> tuple[str, ...]:
    for path in (f"{step.path}.dockerignore" if step.path else "", os.path.join(step.context, ".dockerignore")):
        if path and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                return tuple(line.rstrip("\n") for line in file)
    return ()


def count(step: Dockerfile) -> int:
    """How many steps progress will tell of."""
    return sum(i.name not in ("ARG", "SHELL", *_SKIPPED) for i in _parsed(step).instructions)


def apply(builder: Builder, root: Root, step: Dockerfile) -> Root:
    """The image after a Dockerfile, or after lines of one on top of `root`."""
    ast = _parsed(step)
    reading = _Reading(builder, step, root, ast.escape_token)
    for instruction in ast.instructions:
        reading.do(instruction)
    if not reading.root.layers:
        raise InvalidError(f"{_name(step)} has no FROM")
    return reading.root


class _Reading:
    """A Dockerfile on the way through: the stage under way, and the stages before it."""

    def __init__(self, builder: Builder, step: Dockerfile, root: Root, escape: str) -> None:
        from e2b_dockerfile_utils import ShellLex

        self._lex = ShellLex
        self._escape = escape
        self._builder = builder
        self._step = step
        self._context = Context(step.context, ignored(step))
        self._given = dict(step.args)
        self._global: dict[str, str] = {**_platform(), **self._given_of(_platform())}
        self._stages: dict[str, Root] = {}
        self._stage = ""
        self._number = -1
        self.root = root
        self._args: dict[str, str] = {}
        self._shell = _SHELL
        self._line = 0

    def _given_of(self, names: Any) -> dict[str, str]:
        return {name: self._given[name] for name in names if name in self._given}

    def do(self, instruction: Any) -> None:
        """One instruction."""
        self._line = instruction.start_line
        name = instruction.name
        if name in _SKIPPED:
            return
        method = getattr(self, f"_on_{name.lower()}", None)
        if method is None:
            raise self._unsupported(f"{name} is not supported")
        if name not in ("FROM", "ARG") and not self.root.layers:
            raise self._wrong(f"{name} before FROM")
        method(instruction)

    # ------------------------------------------------------------------------------------------------ stages

    def _on_from(self, instruction: Any) -> None:
        if not self._step.path:
            raise self._wrong("FROM in dockerfile_commands(); begin with Image.from_registry() instead")
        self._end_stage()
        self._number += 1
        words = [self._expand(word, self._global) for word in instruction.args]
        for flag in instruction.flags:
            self._check_platform(self._expand(flag, self._global))
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as") or not words[0]:
            raise self._wrong("FROM takes an image, and perhaps AS and a name")
        self._stage = words[2].lower() if len(words) == 3 else ""
        self.root = self._base(words[0])
        self._args, self._shell = {}, _SHELL

    def _end_stage(self) -> None:
        if self._number >= 0:
            self._stages[str(self._number)] = self.root
            if self._stage:
                self._stages[self._stage] = self.root

    def _base(self, name: str) -> Root:
        if name.lower() in self._stages:
            return self._stages[name.lower()]
        base = Scratch() if name == "scratch" else Registry(name)
        return self._builder.apply(Root(key="", layers=()), base)

    def _check_platform(self, flag: str) -> None:
        ours = ("", f"linux/{architecture()}", "linux")
        if not flag.startswith("--platform=") or flag.removeprefix("--platform=") not in ours:
            raise self._unsupported(f"FROM {flag} is not possible on linux/{architecture()}")

    # --------------------------------------------------------------------------------------------- variables

    def _on_arg(self, instruction: Any) -> None:
        for word in instruction.args:
            name, equals, value = word.partition("=")
            scope = self._global if self._number < 0 and self._step.path else self._args
            if name in self._given:
                scope[name] = self._given[name]
            elif equals:
                scope[name] = self._expand(value)
            elif name in self._global and scope is self._args:
                scope[name] = self._global[name]

    def _variables(self) -> dict[str, str]:
        return self._args | dict(self.root.env)

    def _expand(self, word: str, variables: dict[str, str] | None = None) -> str:
        if variables is None:
            variables = self._variables() if self.root.layers else self._global
        try:
            return str(self._lex(self._escape, env=variables, skip_unset_env=False).process_word(word))
        except ValueError as error:
            raise self._wrong(f"{word!r}: {error}") from error

    def _on_env(self, instruction: Any) -> None:
        known = self._variables()  # as before this instruction
        triples = zip(instruction.args[::3], instruction.args[1::3], strict=False)
        self._set(Config(env=tuple((self._expand(name, known), self._expand(value, known)) for name, value in triples)))

    # ---------------------------------------------------------------------------------------------- settings

    def _set(self, config: Config) -> None:
        self.root = self._builder.configure(self.root, config)

    def _on_workdir(self, instruction: Any) -> None:
        path = self._expand(" ".join(instruction.args))
        path = os.path.normpath(os.path.join("/", self.root.workdir, path))
        self._set(Config(workdir=path))

    def _on_user(self, instruction: Any) -> None:
        user = self._expand(" ".join(instruction.args))
        if user.count(":") > 1 or not user.strip(":") or any(c.isspace() for c in user):
            raise self._wrong(f"USER {user!r} is not of the form user or user:group")
        self._set(Config(user=user))

    def _shell_of(self, instruction: Any) -> tuple[str, ...]:
        if instruction.json:
            return tuple(instruction.args)
        return (*self._shell, " ".join(instruction.args)) if instruction.args else ()

    def _on_cmd(self, instruction: Any) -> None:
        self._set(Config(cmd=self._shell_of(instruction)))

    def _on_entrypoint(self, instruction: Any) -> None:
        self._set(Config(entrypoint=self._shell_of(instruction)))

    def _on_shell(self, instruction: Any) -> None:
        if not instruction.json or not instruction.args:
            raise self._wrong('SHELL takes a list in JSON, for example ["/bin/bash", "-c"]')
        self._shell = tuple(instruction.args)

    # ---------------------------------------------------------------------------------------------- commands

    def _on_run(self, instruction: Any) -> None:
        caches = tuple(target for flag in instruction.flags if (target := self._cache(flag)))
        env = tuple((name, value) for name, value in self._args.items() if name not in dict(self.root.env))
        line = " ".join(instruction.args)
        argv: tuple[str, ...] = tuple(instruction.args) if instruction.json else (*self._shell, line)
        if instruction.heredocs:
            argv, env = self._heredoc(instruction, env)
        run = Run(argv, env=env, user=self.root.user, workdir=self.root.workdir, caches=caches)
        self.root = self._builder.command(self.root, run)

    def _heredoc(self, instruction: Any, env: Pairs) -> tuple[tuple[str, ...], Pairs]:
        first = instruction.heredocs[0]
        line = " ".join(instruction.args)
        if len(instruction.heredocs) > 1 or not line.startswith("<<") or len(shlex.split(line, posix=False)) > 1:
            documents = "".join(f"{doc.content}{doc.name}\n" for doc in instruction.heredocs)
            return (*self._shell, f"{line}\n{documents}"), env
        text = _dedented(first)
        if text.startswith("#!"):
            return ("/bin/sh", "-c", _SCRIPT), (*env, ("OPENMODAL_SCRIPT", text))
        return (*self._shell, text), env

    def _cache(self, flag: str) -> str:
        """The target of `--mount=type=cache`, "" for a flag that changes nothing."""
        name, _, value = flag.partition("=")
        if name in ("--network", "--security") and value in ("default", "host", "sandbox"):
            return ""
        if name != "--mount":
            raise self._unsupported(f"RUN {flag} is not supported")
        options = _pairs(self._expand(value).split(","))
        if options.get("type") != "cache":
            kind = options.get("type", "bind")
            raise self._unsupported(f"RUN --mount=type={kind} is not supported; type=cache is, or COPY the file")
        target = options.get("target") or options.get("dst") or options.get("destination") or ""
        target = os.path.normpath(os.path.join("/", self.root.workdir, target))
        if target == "/":
            raise self._wrong("RUN --mount=type=cache needs a target")
        return target

    # ------------------------------------------------------------------------------------------------- files

    def _on_copy(self, instruction: Any) -> None:
        flags = _pairs([self._expand(flag).removeprefix("--") for flag in instruction.flags])
        words = [self._expand(word) for word in instruction.args]
        documents = {f"<<{doc.name}": doc for doc in instruction.heredocs}
        texts = {doc.name: self._document(doc) for doc in documents.values()}
        try:
            self.root = copy(self._builder, self.root, self._context, self._stages, flags, words, texts)
        except (InvalidError, UnsupportedError, ImageBuildError) as error:
            error.args = (f"{_name(self._step)}, line {self._line}: {error.args[0]}", *error.args[1:])
            raise

    def _document(self, document: Any) -> str:
        text = _dedented(document)
        return self._expand_text(text) if document.expand else text

    def _expand_text(self, text: str) -> str:
        # Quotes are ordinary characters in a document.
        quoted = text.replace('"', '\\"').replace("'", "\\'")
        lexer = self._lex(self._escape, env=self._variables(), skip_unset_env=False)
        return "\n".join(str(lexer.process_word(line)) for line in quoted.split("\n"))

    def _on_add(self, instruction: Any) -> None:
        for word in instruction.args[:-1]:
            source = self._expand(word)
            if "://" in source or source.startswith("git@"):
                raise self._unsupported(f"ADD {source} fetches from the network; use RUN with curl or git")
            if source.endswith((".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")):
                raise self._unsupported(f"ADD {source} would unpack an archive; use COPY, and RUN with tar")
        self._on_copy(instruction)

    # ------------------------------------------------------------------------------------------------ errors

    def _wrong(self, text: str) -> InvalidError:
        return InvalidError(f"{_name(self._step)}, line {self._line}: {text}")

    def _unsupported(self, text: str) -> UnsupportedError:
        return UnsupportedError(f"{_name(self._step)}, line {self._line}: {text}")


def _pairs(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _dedented(document: Any) -> str:
    from e2b_dockerfile_utils import chomp_heredoc_content

    return str(chomp_heredoc_content(document.content)) if document.chomp else str(document.content)


def _platform() -> dict[str, str]:
    platform = {"OS": "linux", "ARCH": architecture(), "VARIANT": ""}
    named = {f"{kind}{name}": value for kind in ("TARGET", "BUILD") for name, value in platform.items()}
    return {**named, "TARGETPLATFORM": f"linux/{architecture()}", "BUILDPLATFORM": f"linux/{architecture()}"}
