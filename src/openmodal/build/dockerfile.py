"""Dockerfiles: read by e2b-dockerfile-utils, done as the same steps that `Image`'s methods make.

What cannot be done, or must not (files outside the context, secrets, other mounts), is refused with
the line's number; what has no meaning here (EXPOSE, LABEL, HEALTHCHECK…) is skipped. docs/images.md
has the table.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal import _config
from openmodal._binary import PATH
from openmodal._spec import Config, Dockerfile, Layered, Recipe, Run, Scratch
from openmodal.build import base, debian, local
from openmodal.build.copying import Context, Order, copy, owner_of
from openmodal.build.names import architecture, digest
from openmodal.build.reference import same_image
from openmodal.build.stages import SCRATCH, Stages
from openmodal.errors import ImageBuildError, InvalidError, RegistryError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.layers import Layers
    from openmodal.build.steps import Builder

Pairs = tuple[tuple[str, str], ...]

_LARGEST = 1 << 20
_SKIPPED = ("EXPOSE", "LABEL", "MAINTAINER", "STOPSIGNAL", "VOLUME", "HEALTHCHECK")
_SHELL = ("/bin/sh", "-c")
_PROXIES = tuple(
    name for kind in ("http", "https", "ftp", "no", "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
)
# What is in a cache is up to the cache, so that its name and who waits for it change nothing that a
# build may rely on.
_CACHE_OPTIONS = ("type", "target", "dst", "destination", "id", "sharing")

# A heredoc with a shebang is a program of its own. It travels as a variable, because a step has no
# standard input.
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
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidError(f"the Dockerfile {step.path!r} cannot be read: {reason}; check the path") from None


def _name(step: Dockerfile) -> str:
    return os.path.basename(step.path) if step.path else "dockerfile_commands()"


def content(step: Dockerfile, store: Layers) -> str:
    """What the result depends on: the text, and the whole context if anything is copied from it.

    Which files a COPY takes may depend on variables of the base image; each COPY's own key looks at
    its own files only.
    """
    files = local.scan(step.context, ignored(step), keep=True).digest(store) if reads_context(step) else ""
    return digest(text(step), files)


def reads_context(step: Dockerfile) -> bool:
    """Whether it copies anything from its context."""
    copies = [i for i in _parsed(step).instructions if i.name in ("COPY", "ADD")]
    return any(not any(flag.startswith("--from=") for flag in i.flags) for i in copies)


def stages(step: Dockerfile) -> Stages:
    """Its stages."""
    return _stages(step, _parsed(step))


def _stages(step: Dockerfile, ast: Any) -> Stages:
    try:
        return Stages(ast, dict(step.args))
    except (ValueError, InvalidError) as error:
        raise InvalidError(f"{_name(step)}, {error}") from error


def bases(step: Dockerfile) -> list[str]:
    """The images that it takes from registries, as far as they can be told without building."""
    return [name for name in dict(stages(step).images()) if not instead_of(step, name)]


def instead_of(step: Dockerfile, name: str) -> Recipe | None:
    """The image that was given for a name, however that is written."""
    return next((recipe for known, recipe in step.bases if same_image(known, name)), None)


def unavailable(step: Dockerfile, name: str, line: int, error: RegistryError) -> RegistryError:
    """The error for an image that no registry gives."""
    return RegistryError(
        f"{_name(step)}, line {line}: {name} is not to be had: {error}; give another image for it, "
        f'Image.from_dockerfile(…, bases={{{name!r}: image}}), or name another place, [bases] {json.dumps(name)} = "host/name:tag" '
        f"in {_config.config_file()}"
    )


def rebased(step: Dockerfile, images: Mapping[str, str]) -> str:
    """Its text with other names for images that it takes from registries."""
    lines = text(step).split("\n")
    known = stages(step)
    for stage in known.needed():
        if stage.base in images and not known.begun_with(stage):
            words = [images[stage.base] if word == stage.base else word for word in stage.words]
            # As many lines as before: errors name them.
            lines[stage.line - 1 : stage.end] = [f"FROM {' '.join(words)}", *[""] * (stage.end - stage.line)]
    for name, image in images.items():
        lines = [line.replace(f"--from={name} ", f"--from={image} ") for line in lines]
    return "\n".join(lines)


def ignored(step: Dockerfile) -> tuple[str, ...]:
    for path in (f"{step.path}.dockerignore" if step.path else "", os.path.join(step.context, ".dockerignore")):
        if path and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return tuple(line.rstrip("\n") for line in file)
    return ()


def count(step: Dockerfile) -> int:
    """How many steps progress will tell of."""
    ast = _parsed(step)
    needed = {stage.number for stage in _stages(step, ast).needed()} or {-1}
    number, steps = -1, 0
    for instruction in ast.instructions:
        number += instruction.name == "FROM"
        steps += number in needed and instruction.name not in ("ARG", "SHELL", *_SKIPPED)
    return steps


def apply(builder: Builder, root: Layered, step: Dockerfile) -> Layered:
    """The image after a Dockerfile, or after lines of one on top of `root`."""
    ast = _parsed(step)
    reading = _Reading(builder, step, root, ast)
    for instruction in ast.instructions:
        reading.do(instruction)
    if not reading.root.layers:
        raise InvalidError(f"{_name(step)} has no FROM")
    return reading.root


class _Reading:
    """A Dockerfile on the way through: the stage under way, and the stages before it."""

    def __init__(self, builder: Builder, step: Dockerfile, root: Layered, ast: Any) -> None:
        from e2b_dockerfile_utils import ShellLex

        self._lex = ShellLex
        self._escape = ast.escape_token
        self._builder = builder
        self._step = step
        self._context = Context(step.context, ignored(step))
        self._given = dict(step.args)
        self._stages = _stages(step, ast)
        self._needed = {stage.number for stage in self._stages.needed()}
        self._done: dict[int, tuple[Layered, dict[str, str]]] = {}
        self._number = -1
        self.root = self._begun(root) if root.layers else root
        self._args: dict[str, str] = {}
        self._has_cmd = False
        self._line = 0

    def do(self, instruction: Any) -> None:
        """One instruction."""
        self._line = instruction.start_line
        name = instruction.name
        self._number += name == "FROM"
        if name in _SKIPPED or (self._number >= 0 and self._number not in self._needed):
            return
        method = getattr(self, f"_on_{name.lower()}", None)
        if method is None:
            raise self._unsupported(f"{name} is not supported")
        if name not in ("FROM", "ARG") and not self.root.layers:
            raise self._wrong(f"{name} before FROM")
        method(instruction)
        self._done[self._number] = (self.root, self._args)

    # --------------------------------------------------------------------------------------- stages

    def _on_from(self, instruction: Any) -> None:
        if not self._step.path:
            raise self._wrong("FROM in dockerfile_commands(); begin with Image.from_registry() instead")
        for flag in instruction.flags:
            self._check_platform(self._expand(flag, self._stages.variables))
        stage, self._has_cmd = self._stages.all[self._number], False
        if before := self._stages.begun_with(stage):
            root, args = self._done[before.number]
            self.root, self._args = root, dict(args)
        else:
            self.root, self._args = self._begun(self._image(stage.base)), {}
            if self.root.onbuild:
                raise self._unsupported(
                    f"{stage.base} has ONBUILD instructions, which are not done; copy them into the Dockerfile"
                )

    def _begun(self, root: Layered) -> Layered:
        """What a stage begins with. To do it again, what follows is given other keys."""
        again = self._step.again
        return _with_path(msgspec.structs.replace(root, key=digest(root.key, "again", again)) if again else root)

    def _image(self, name: str) -> Layered:
        """An image that is no stage."""
        root = Layered("")
        if recipe := instead_of(self._step, name):
            for step in recipe.steps:
                root = self._builder.apply(root, step)
            return root
        if name == SCRATCH:
            return self._builder.apply(root, Scratch())
        try:
            return base.either(self._builder, name, debian.version_of(name))
        except RegistryError as error:
            raise unavailable(self._step, name, self._line, error) from error

    def _check_platform(self, flag: str) -> None:
        # As the kernel and some registries call them, too.
        other = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture(), "")
        names = (architecture(), other, *(("arm64/v8",) if other == "aarch64" else ()))
        ours = ("", "linux", *(f"linux/{name}" for name in names), *names)
        if not flag.startswith("--platform=") or flag.removeprefix("--platform=") not in ours:
            raise self._unsupported(f"FROM {flag} is not possible on linux/{architecture()}")

    # ------------------------------------------------------------------------------------ variables

    def _on_arg(self, instruction: Any) -> None:
        if self._number < 0 and self._step.path:
            return  # known before the first stage
        known = self._variables()  # as before this instruction
        for word in instruction.args:
            name, equals, value = word.partition("=")
            if name in self._given:
                self._args[name] = self._given[name]
            elif equals:
                self._args[name] = self._expand(value, known)
            elif name in self._stages.variables:
                self._args[name] = self._stages.variables[name]

    def _variables(self) -> dict[str, str]:
        return dict(self.root.env) | self._args

    def _expand(self, word: str, variables: dict[str, str] | None = None) -> str:
        variables = self._variables() if variables is None else variables
        try:
            return str(self._lex(self._escape, env=variables, skip_unset_env=False).process_word(word))
        except ValueError as error:
            raise self._wrong(f"{word!r}: {error}") from error

    def _on_env(self, instruction: Any) -> None:
        known = self._variables()  # as before this instruction
        triples = zip(instruction.args[::3], instruction.args[1::3], strict=False)
        pairs = tuple((self._expand(name, known), self._expand(value, known)) for name, value in triples)
        self._set(Config(env=pairs))
        # Of ARG and ENV, the later one counts.
        self._args = {name: value for name, value in self._args.items() if name not in dict(pairs)}

    # ------------------------------------------------------------------------------------- settings

    def _set(self, config: Config) -> None:
        self.root = self._builder.configure(self.root, config)

    def _on_workdir(self, instruction: Any) -> None:
        path = self._expand(" ".join(instruction.args))
        path = os.path.normpath(os.path.join("/", self.root.workdir, path))
        self._set(Config(workdir=path))
        self.root = self._builder.folder(self.root, path, owner_of(self._builder, self.root, self.root.user))

    def _on_user(self, instruction: Any) -> None:
        user = self._expand(" ".join(instruction.args))
        if user.count(":") > 1 or not user.strip(":") or any(c.isspace() for c in user):
            raise self._wrong(f"USER {user!r} is not of the form user or user:group")
        self._set(Config(user=user))

    def _shell_of(self, instruction: Any) -> tuple[str, ...]:
        if instruction.json:
            return tuple(instruction.args)
        return (*self._shell, " ".join(instruction.args)) if instruction.args else ()

    @property
    def _shell(self) -> tuple[str, ...]:
        return self.root.shell or _SHELL

    def _on_cmd(self, instruction: Any) -> None:
        self._set(Config(cmd=self._shell_of(instruction)))
        self._has_cmd = True

    def _on_entrypoint(self, instruction: Any) -> None:
        # A command of the base was made for another entrypoint.
        self._set(Config(entrypoint=self._shell_of(instruction), cmd=self.root.cmd if self._has_cmd else None))

    def _on_shell(self, instruction: Any) -> None:
        if not instruction.json or not instruction.args:
            raise self._wrong('SHELL takes a list in JSON, for example ["/bin/bash", "-c"]')
        self.root = msgspec.structs.replace(self.root, shell=tuple(instruction.args))

    # ------------------------------------------------------------------------------------- commands

    def _on_run(self, instruction: Any) -> None:
        caches = tuple(target for flag in instruction.flags if (target := self._cache(flag)))
        proxies = {name: self._given[name] for name in _PROXIES if name in self._given}
        env = tuple((proxies | self._args).items())
        line = " ".join(instruction.args)
        argv: tuple[str, ...] = tuple(instruction.args) if instruction.json else (*self._shell, line)
        if instruction.heredocs:
            argv, env = self._heredoc(instruction, env)
        root, secrets = self.root, self._step.secrets
        run = Run(argv, env=env, user=root.user, workdir=root.workdir, caches=caches, secrets=secrets)
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
        if (name, value) in (("--network", "default"), ("--security", "sandbox")):
            return ""
        if name != "--mount":
            raise self._unsupported(f"RUN {flag} is not supported")
        options = dict(_pair(option) for option in self._expand(value).split(","))
        if options.get("type") != "cache":
            kind = options.get("type", "bind")
            raise self._unsupported(f"RUN --mount=type={kind} is not supported; type=cache is, or COPY the file")
        if unknown := [name for name in options if name not in _CACHE_OPTIONS]:
            raise self._unsupported(f"RUN --mount=type=cache,{unknown[0]}= is not supported; leave it out")
        target = options.get("target") or options.get("dst") or options.get("destination") or ""
        target = os.path.normpath(os.path.join("/", self.root.workdir, target))
        if target == "/":
            raise self._wrong("RUN --mount=type=cache needs a target")
        return target

    # ---------------------------------------------------------------------------------------- files

    def _on_copy(self, instruction: Any) -> None:
        order = Order(
            instruction.name,
            tuple(self._expand(word) for word in instruction.args),
            tuple(_pair(self._expand(flag).removeprefix("--")) for flag in instruction.flags),
            tuple((document.name, self._document(document)) for document in instruction.heredocs),
        )
        try:
            stage = self._other(order.flag("from")) if order.flags_called("from") else None
            self.root = copy(self._builder, self.root, self._context, stage, order)
        except (InvalidError, UnsupportedError, ImageBuildError) as error:
            error.args = (f"{_name(self._step)}, line {self._line}: {error.args[0]}", *error.args[1:])
            raise

    def _other(self, name: str) -> Layered:
        """What `COPY --from` names: a stage, its number, or an image."""
        if stage := self._stages.named(name, self._number):
            return self._done[stage.number][0]
        if name.isdigit():
            raise InvalidError(f"COPY --from={name}: there is no such stage above")
        return self._image(name)

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
        self._on_copy(instruction)

    # --------------------------------------------------------------------------------------- errors

    def _wrong(self, text: str) -> InvalidError:
        return InvalidError(f"{_name(self._step)}, line {self._line}: {text}")

    def _unsupported(self, text: str) -> UnsupportedError:
        return UnsupportedError(f"{_name(self._step)}, line {self._line}: {text}")


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _with_path(root: Layered) -> Layered:
    """The image with a PATH, which Docker sees to as well: else `ENV PATH=/x:$PATH` would leave nothing else."""
    return root if "PATH" in dict(root.env) else msgspec.structs.replace(root, env=(*root.env, ("PATH", PATH)))


def _dedented(document: Any) -> str:
    from e2b_dockerfile_utils import chomp_heredoc_content

    return str(chomp_heredoc_content(document.content)) if document.chomp else str(document.content)
