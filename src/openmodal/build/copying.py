"""COPY as Dockerfiles mean it: several sources with wildcards, out of a context that nothing leaves, or out of another stage."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal._spec import Copy, Layered
from openmodal.build import local, put, wildcard
from openmodal.build.merged import Merged
from openmodal.build.names import digest
from openmodal.errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

_FLAGS = ("from", "chown", "chmod", "link", "exclude")
_DATABASE = 1 << 20  # bytes of /etc/passwd that are looked at
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


class Order(msgspec.Struct, frozen=True):
    """A COPY or ADD: its words and flags without variables, and its heredocs by their names."""

    name: str
    words: tuple[str, ...]
    flags: tuple[tuple[str, str], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()

    def flag(self, name: str) -> str:
        """The value that was given last, "" for none."""
        return dict(self.flags).get(name, "")

    def flags_called(self, name: str) -> tuple[str, ...]:
        """Every value of a flag that may be repeated."""
        return tuple(value for flag, value in self.flags if flag == name)


class Context:
    """The folder that a Dockerfile may read from, without what its .dockerignore names."""

    def __init__(self, folder: str, ignore: tuple[str, ...]) -> None:
        self._folder = os.path.realpath(folder)
        self._ignore = ignore
        self._matcher = local.matcher(ignore)

    def find(self, pattern: str) -> list[str]:
        """The names in the context that a source means.

        Raises:
            InvalidError: it is none, or outside.
        """
        inside = posixpath.normpath("/" + pattern).lstrip("/")
        if ".." in pattern.split("/"):
            raise InvalidError(f"{pattern!r} leaves the build context; copy what is inside only")
        if wildcard.is_pattern(inside):
            return [name for name in wildcard.expand(inside, self._listing) if self._has(name)]
        if not self._has(inside):
            raise InvalidError(f"there is no {pattern!r} in the build context (or .dockerignore leaves it out)")
        return [inside]

    def copy(self, name: str, target: str, exclude: tuple[str, ...], mode: int | None, owner: str) -> Copy:
        """The step that copies one of the context's files or folders; its own name stays, wherever it is a link to."""
        below = os.path.relpath(self.inside(name), self._folder)
        below = "" if below == "." else below
        left_out = tuple(posixpath.join(_literally(below), pattern) for pattern in exclude)
        return Copy(self._path(name), target, (*self._ignore, *left_out), mode, owner, keep=True, below=below)

    def inside(self, name: str) -> str:
        """The real file; a link in the context may lead to another file of the context only."""
        real = os.path.realpath(self._path(name))
        if real != self._folder and not real.startswith(self._folder.rstrip("/") + "/"):
            raise InvalidError(f"{name!r} is a link that leaves the build context; copy what is inside only")
        return real

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name) if name else self._folder

    def _listing(self, folder: str) -> Iterator[tuple[str, bool]]:
        real = self.inside(folder)
        if os.path.isdir(real):
            with os.scandir(real) as entries:
                yield from sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)

    def _has(self, name: str) -> bool:
        if not os.path.lexists(self._path(name)):
            return False
        ignored = bool(name and self._matcher.matches(name))
        # A folder may be ignored and yet have something in it that is not.
        return not ignored or (os.path.isdir(self._path(name)) and self._matcher.may_match_under(name))


def _literally(name: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", name)


def copy(builder: Builder, root: Layered, context: Context, stage: Layered | None, order: Order) -> Layered:
    """The image after COPY or ADD; `stage` is the other image that `--from` names.

    Raises:
        InvalidError, UnsupportedError: it cannot be done as written.
    """
    unknown = [flag for flag, _ in order.flags if flag not in _FLAGS]
    if unknown:
        raise UnsupportedError(f"{order.name} --{unknown[0]} is not supported")
    if len(order.words) < 2:
        raise InvalidError(f"{order.name} needs a source and a target")
    *sources, target = order.words
    target = _target(root, target)
    if len(sources) > 1 and not target.endswith("/"):
        raise InvalidError(f"{order.name} of several files needs a folder, so write {target + '/'!r}")
    mode, owner = _mode(order), owner_of(builder, root, order.flag("chown"))
    if stage is not None:
        if order.flags_called("exclude"):
            raise UnsupportedError(f"{order.name} --from with --exclude is not supported; remove the files with RUN")
        return _from_stage(builder, root, stage, order, sources, target, mode, owner)
    steps = tuple(_local_copies(context, order, sources, target, mode, owner or "0:0"))
    root = builder.copy(root, steps) if steps else root
    return _documents(builder, root, dict(order.texts), target, mode, owner or "0:0") if order.texts else root


def _local_copies(
    context: Context, order: Order, sources: Iterable[str], target: str, mode: int | None, owner: str
) -> Iterator[Copy]:
    exclude = order.flags_called("exclude")
    excluded = local.matcher(exclude)
    for source in sources:
        if source.startswith("<<") and order.texts:
            continue
        found = context.find(source)
        if len(found) > 1 and not target.endswith("/"):
            raise InvalidError(f"{order.name} of several files needs a folder, so write {target + '/'!r}")
        for name in found:
            real = context.inside(name)
            if order.name == "ADD" and _is_archive(real):
                raise UnsupportedError(f"ADD {source} would unpack an archive; use COPY, and RUN with tar")
            if os.path.isdir(real) or not excluded.matches(posixpath.basename(name)):
                yield context.copy(name, target, exclude, mode, owner)


def _is_archive(file: str) -> bool:
    """Whether Docker would unpack it: it looks at the content, not at the name."""
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as opened:
        return opened.read(len(_ZSTANDARD)) == _ZSTANDARD or _holds_tar(file)


def _holds_tar(file: str) -> bool:
    try:
        with tarfile.open(file) as tar:
            return tar.next() is not None
    except (tarfile.TarError, EOFError, OSError):
        return False


def _target(root: Layered, target: str) -> str:
    path = posixpath.normpath(posixpath.join("/", root.workdir, target))
    return path + "/" if (target.endswith(("/", "/.")) and path != "/") or target in (".", "./") else path


def _mode(order: Order) -> int | None:
    text = order.flag("chmod")
    if not text:
        return None
    if not all(c in "01234567" for c in text) or len(text) > 4:
        raise UnsupportedError(f"{order.name} --chmod={text} is not supported; write the mode as digits, such as 755")
    return int(text, 8)


def owner_of(builder: Builder, root: Layered, text: str) -> str:
    """ "uid:gid" of --chown or USER, where names are the image's; "" for no owner."""
    if not text:
        return ""
    user, _, group = text.partition(":")
    image = Merged(builder.folders(root))
    uid, own_group = _named(image, "/etc/passwd", user or "0")
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
    root: Layered,
    stage: Layered,
    order: Order,
    sources: list[str],
    target: str,
    mode: int | None,
    owner: str,
) -> Layered:
    key = digest(root.key, "copy-from", stage.key, sources, target, mode, owner)

    def make(upper: Path) -> None:
        tree = Merged(builder.folders(stage))
        found = [path for source in sources for path in _in_stage(tree, source)]
        if len(found) > 1 and len(sources) == 1 and not target.endswith("/"):
            raise InvalidError(f"{order.name} of several files needs a folder, so write {target + '/'!r}")
        put.copy_image(put.Upper(str(upper), builder.folders(root)), tree, found, target, mode, owner)

    text = f"COPY --from={order.flag('from')} {' '.join(sources)} {target}"
    return builder.layer(root, key, text, make)


def _in_stage(tree: Merged, source: str) -> list[str]:
    """The paths in another image that a source means."""
    path = posixpath.normpath("/" + source)
    if not wildcard.is_pattern(path):
        return [path]

    def listing(folder: str) -> Iterator[tuple[str, bool]]:
        found = tree.find(folder or "/")
        children: Any = tree.children(found) if found is not None and found.is_folder else ()
        return ((posixpath.basename(child.name), child.is_folder) for child in children)

    return wildcard.expand(path, listing)


def _documents(
    builder: Builder, root: Layered, texts: dict[str, str], target: str, mode: int | None, owner: str
) -> Layered:
    key = digest(root.key, "documents", texts, target, mode, owner)

    def make(upper: Path) -> None:
        writer = put.Upper(str(upper), builder.folders(root))
        for name, text in texts.items():
            file = writer.clear(writer.place(target, folder=False, name=name))
            Path(file).write_text(text, encoding="utf-8")
            put.own(file, put.numbers(owner), 0o644 if mode is None else mode)

    return builder.layer(root, key, f"COPY <<{' <<'.join(texts)} {target}", make)
