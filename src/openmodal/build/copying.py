"""COPY as Dockerfiles mean it: several sources with wildcards, out of a context that nothing leaves, or out of another stage."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING

from openmodal._spec import Copy, Root
from openmodal.build import put
from openmodal.build.merged import Merged
from openmodal.build.names import digest
from openmodal.errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

_FLAGS = ("from", "chown", "chmod", "link", "exclude")
_DATABASE = 1 << 20  # bytes of /etc/passwd that are looked at


class Context:
    """The folder that a Dockerfile may read from, without what its .dockerignore names."""

    def __init__(self, folder: str, ignore: tuple[str, ...]) -> None:
        self._folder = os.path.realpath(folder)
        self._ignore = ignore

    def find(self, pattern: str) -> list[tuple[str, tuple[str, ...]]]:
        """Paths that a source names, each with the ignore patterns for what is below it.

        Raises:
            InvalidError: none, or one that is outside.
        """
        inside = posixpath.normpath("/" + pattern).lstrip("/")
        if ".." in pattern.split("/"):
            raise InvalidError(f"{pattern!r} leaves the build context; copy what is inside only")
        names = self._glob(inside.split("/")) if any(c in inside for c in "*?[") else [inside]
        found = [name for name in names if not self._is_ignored(name) and os.path.lexists(self._path(name))]
        if not found:
            raise InvalidError(f"there is no {pattern!r} in the build context (or .dockerignore leaves it out)")
        return [(self._inside(name), self._below(name)) for name in found]

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name) if name else self._folder

    def _inside(self, name: str) -> str:
        """The real file; a link in the context may lead to another file of the context only."""
        real = os.path.realpath(self._path(name))
        if real != self._folder and not real.startswith(self._folder.rstrip("/") + "/"):
            raise InvalidError(f"{name!r} is a link that leaves the build context; copy what is inside only")
        return real

    def _glob(self, parts: list[str], name: str = "") -> list[str]:
        if not parts:
            return [name]
        if not any(c in parts[0] for c in "*?["):
            return self._glob(parts[1:], posixpath.join(name, parts[0]))
        folder = self._inside(name)
        matches = fnmatch.filter(sorted(os.listdir(folder)), parts[0]) if os.path.isdir(folder) else []
        return [path for match in matches for path in self._glob(parts[1:], posixpath.join(name, match))]

    def _is_ignored(self, name: str) -> bool:
        from e2b_dockerfile_utils import PatternMatcher

        # A folder may be ignored and yet have something in it that is not.
        matcher = PatternMatcher(list(self._ignore))
        return bool(name and matcher.matches(name) and not os.path.isdir(self._path(name)))

    def _below(self, name: str) -> tuple[str, ...]:
        """The ignore patterns as they are seen from a folder of the context."""
        if not name:
            return self._ignore
        return tuple(pattern for line in self._ignore for pattern in _rebased(line.strip(), name.split("/")))


def _rebased(line: str, folder: list[str]) -> list[str]:
    """A pattern of the context, for paths relative to a folder in it."""
    sign, pattern = ("!", line[1:].strip()) if line.startswith("!") else ("", line)
    if not pattern or pattern.startswith("#"):
        return []
    parts = posixpath.normpath(pattern).lstrip("/").split("/")
    return [f"{sign}{rest}" for rest in _remaining(parts, folder)]


def _remaining(parts: list[str], folder: list[str]) -> list[str]:
    if not folder:
        return ["/".join(parts)] if parts else ["**"]
    if not parts:
        return ["**"]  # a parent of the folder matched: everything in it does
    if parts[0] == "**":
        return [*_remaining(parts[1:], folder), *_remaining(parts, folder[1:])] if len(parts) > 1 else ["**"]
    return _remaining(parts[1:], folder[1:]) if fnmatch.fnmatchcase(folder[0], parts[0]) else []


def copy(
    builder: Builder,
    root: Root,
    context: Context,
    stages: dict[str, Root],
    flags: dict[str, str],
    words: list[str],
    texts: dict[str, str],
) -> Root:
    """The image after COPY or ADD. `texts` are heredocs by their names.

    Raises:
        InvalidError, UnsupportedError: it cannot be done as written.
    """
    unknown = [flag for flag in flags if flag not in _FLAGS]
    if unknown or len(words) < 2:
        raise UnsupportedError(
            f"COPY --{unknown[0]} is not supported" if unknown else "COPY needs a source and a target"
        )
    *sources, target = words
    target = _target(root, target, len(sources))
    mode = int(flags["chmod"], 8) if _is_mode(flags.get("chmod", "")) else None
    owner = _owner(builder, root, flags.get("chown", ""))
    if "from" in flags:
        return _from_stage(builder, root, stages, flags["from"], sources, target, mode, owner)
    if texts:
        return _documents(builder, root, texts, target, mode, owner or "0:0")
    found = [item for source in sources for item in context.find(source)]
    if len(found) > 1 and not target.endswith("/"):
        raise InvalidError(f"COPY of several files needs a folder, so write {target + '/'!r}")
    exclude = (flags["exclude"],) if flags.get("exclude") else ()
    steps = tuple(Copy(path, target, (*ignore, *exclude), mode=mode, owner=owner or "0:0") for path, ignore in found)
    return builder.copy(root, steps)


def _target(root: Root, target: str, count: int) -> str:
    path = posixpath.normpath(posixpath.join("/", root.workdir, target))
    return path + "/" if (target.endswith(("/", "/.")) and path != "/") or target in (".", "./") else path


def _is_mode(text: str) -> bool:
    if not text:
        return False
    if not all(c in "01234567" for c in text) or len(text) > 4:
        raise UnsupportedError(f"COPY --chmod={text} is not supported; write the mode as digits, such as 755")
    return True


def _owner(builder: Builder, root: Root, text: str) -> str:
    """ "uid:gid" of --chown, where names are the image's."""
    if not text:
        return ""
    user, _, group = text.partition(":")
    image = Merged(builder.folders(root))
    uid, own_group = _named(image, "/etc/passwd", user)
    gid = _named(image, "/etc/group", group)[0] if group else own_group
    return f"{uid}:{gid}"


def _named(image: Merged, database: str, name: str) -> tuple[str, str]:
    """A number stays itself and is never looked up as a name."""
    if name.isascii() and name.isdigit():
        return name, name
    for line in image.read(database, _DATABASE).decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) > 3 and fields[2].isdigit():
            return fields[2], fields[3] if fields[3].isdigit() else fields[2]
    raise InvalidError(f"the image has no {name!r} in {database}; use numbers")


def _from_stage(
    builder: Builder,
    root: Root,
    stages: dict[str, Root],
    name: str,
    sources: list[str],
    target: str,
    mode: int | None,
    owner: str,
) -> Root:
    stage = stages.get(name.lower())
    if stage is None:
        raise UnsupportedError(
            f"COPY --from={name}: there is no such stage; for another image, write FROM {name} AS … above"
        )
    key = digest(root.key, "copy-from", stage.key, sources, target, mode, owner)

    def make(upper: Path) -> None:
        writer = put.Upper(str(upper), builder.folders(root))
        into = target if len(sources) == 1 else target.rstrip("/") + "/"
        put.copy_image(writer, Merged(builder.folders(stage)), sources, into, mode, owner)

    return builder.layer(root, key, f"COPY --from={name} {' '.join(sources)} {target}", make)


def _documents(builder: Builder, root: Root, texts: dict[str, str], target: str, mode: int | None, owner: str) -> Root:
    key = digest(root.key, "documents", texts, target, mode, owner)

    def make(upper: Path) -> None:
        writer = put.Upper(str(upper), builder.folders(root))
        for name, text in texts.items():
            file = writer.clear(writer.place(target, folder=False, name=name))
            Path(file).write_text(text, encoding="utf-8")
            put.own(file, put.numbers(owner), 0o644 if mode is None else mode)

    return builder.layer(root, key, f"COPY <<{' <<'.join(texts)} {target}", make)
