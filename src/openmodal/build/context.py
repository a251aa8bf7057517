"""A recipe as Docker's builders take it: parts, each a Dockerfile and the files that it copies.

A part is as long as possible, so that the builder sees many steps at once. It ends where the user's
own Dockerfile begins, which is handed over as it is, with its own context. Pure, but for local
files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from openmodal import _idmap
from openmodal._spec import AnyStep, Config, Copy, Dockerfile, Origin, Run
from openmodal.build import dockerfile, local
from openmodal.build.base import BUNDLE, TRUST_VARIABLES
from openmodal.build.layers import Layers
from openmodal.build.steps import cache_name
from openmodal.build.titles import title
from openmodal.errors import InvalidError

DOCKERFILE = ".openmodal.Dockerfile"
_AUTHORITIES = ".openmodal-ca.crt"

# The command is not process 1: to that one the kernel delivers no default signals, and it would
# have to reap orphans. `exit` keeps the shell from replacing itself by the command.
_WRAPPED = '"$@"; exit $?'


@dataclass(frozen=True)
class Part:
    """One Dockerfile. `last`: the index of its last step; `titles`: of its instructions after FROM.

    `dockerfile` is the Dockerfile's name among the files. If it is not one of the user's files,
    `COPY .` copies it, too: in one tar, Docker's builders do not tell context and Dockerfile apart.
    `again`: nothing is taken from the builder's cache.
    """

    last: int
    text: str
    files: tuple[tuple[str, local.Scan, int | None], ...] = ()
    titles: tuple[str, ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    dockerfile: str = DOCKERFILE
    again: bool = False

    @property
    def remark(self) -> str:
        """What is left out, in lines."""
        return "".join(scan.remark for _, scan, _ in self.files)


@dataclass
class _Lines:
    """A Dockerfile being written."""

    user: str
    authorities: str
    lines: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    files: list[tuple[str, local.Scan, int | None]] = field(default_factory=list)
    current: str = ""

    def __post_init__(self) -> None:
        self.current = self.user

    def add(self, step: Run | Copy | Config) -> None:
        match step:
            case Run():
                self._run(step)
            case Copy():
                self._copy(step)
            case Config():
                self._config(step)

    def become(self, user: str) -> None:
        if self.current != user:
            self.lines.append(f"USER {_escaped(user or '0')}")
            self.current = user

    def _run(self, step: Run) -> None:
        self.become(step.user)
        mounts = [_cache_mount(target) for target in step.caches]
        env = dict(step.env)
        if self.authorities:
            mounts.append(f"--mount=type=bind,source={_AUTHORITIES},target=/{BUNDLE}")
            env = {**TRUST_VARIABLES, **env}
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items())
        where = f"cd {shlex.quote(step.workdir)} && " if step.workdir else ""
        argv = ["/bin/sh", "-c", exports + where + _WRAPPED, "sh", *step.argv]
        self.lines.append(" ".join(("RUN", *mounts, json.dumps(argv))))
        self.titles.append(title(step))

    def _copy(self, step: Copy) -> None:
        scan = local.scan_of(step)
        name, own = f"c{len(self.files)}", local.base_name(step.source)
        single = not scan.entries[0].is_folder
        owner = f"--chown={step.owner} " if step.owner != "0:0" else ""
        source, target = (f"{name}/{own}", step.target) if single else (f"{name}/", step.target.rstrip("/") + "/")
        self.lines.append(f"COPY {owner}{json.dumps([_literally(source), _escaped(target)])}")
        self.titles.append(title(step))
        self.files.append((f"{name}/{own}" if single else name, scan, step.mode))

    def _config(self, step: Config) -> None:
        for name, value in step.env:
            if "\n" in name + value:
                raise InvalidError(
                    f"env: {name} has a line break, which Docker cannot keep in an image; give it to create()"
                )
            key = name if name.isidentifier() and name.isascii() else f'"{_escaped(name, quoted=True)}"'
            self.lines.append(f'ENV {key}="{_escaped(value, quoted=True)}"')
        if step.workdir is not None:
            self.lines.append(f"WORKDIR {_escaped(step.workdir)}")
            self.titles.append(title(Config(workdir=step.workdir)))
        if step.user is not None:
            self.user = step.user
        if step.entrypoint is not None:
            self.lines.append(f"ENTRYPOINT {json.dumps(step.entrypoint)}")
        if step.cmd is not None or step.entrypoint is not None:
            self.lines.append(f"CMD {json.dumps(step.cmd or ())}")


def _cache_mount(target: str) -> str:
    # apt's lock of its lists gives up at once; pip and uv share theirs.
    sharing = "shared" if "/.cache/" in target else "locked"
    return f"--mount=type=cache,id=openmodal-{cache_name(target)},target={target},sharing={sharing}"


def _literally(path: str) -> str:
    """A source without wildcards and variables."""
    return _escaped(re.sub(r"[*?[]", r"[\g<0>]", path.replace("\\", "\\\\")))


def _escaped(text: str, *, quoted: bool = False) -> str:
    """Without what Docker would expand."""
    for character in '\\$"' if quoted else "\\$":
        text = text.replace(character, f"\\{character}")
    return text


def parts(steps: Sequence[AnyStep], start: int, user: str, authorities: str) -> Iterator[Part]:
    """The parts from step `start` on, on top of an image whose user is `user`."""
    index = start
    while index < len(steps):
        step = steps[index]
        if isinstance(step, Origin):
            raise InvalidError("an image has one beginning; start another Image for another base")
        if isinstance(step, Dockerfile):
            yield _own(step, index)
            index += 1
            continue
        lines = _Lines(user, authorities)
        while index < len(steps) and isinstance(step := steps[index], Run | Copy | Config):
            lines.add(step)
            index += 1
        lines.become(lines.user)
        user = lines.user
        yield Part(index - 1, "\n".join(lines.lines) + "\n", tuple(lines.files), tuple(lines.titles))


def _own(step: Dockerfile, index: int) -> Part:
    scan = local.scan(step.context, dockerfile.ignored(step), keep=True) if dockerfile.reads_context(step) else None
    files = (("", scan, None),) if scan else ()
    name = os.path.relpath(step.path, step.context) if step.path else ""
    is_copied = (
        bool(name) and scan is not None and any(entry.name == name for entry in scan.entries if not entry.is_link)
    )
    file = name if is_copied else DOCKERFILE
    return Part(index, dockerfile.text(step), files, args=step.args, dockerfile=file, again=bool(step.again))


def archive(part: Part, first: str, authorities: bytes) -> Iterator[bytes]:
    """The part's context as a tar: its files as in the image, `first`, and its Dockerfile."""
    out = _Out()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        if part.dockerfile == DOCKERFILE:
            _add(tar, DOCKERFILE, (first + part.text).encode("utf-8", "surrogateescape"))
        if authorities and _AUTHORITIES in part.text:
            _add(tar, _AUTHORITIES, authorities)
        for name, scan, mode in part.files:
            for entry in scan.entries:
                _add_entry(tar, name, entry, mode)
                yield out.take()
    yield out.take()


@contextmanager
def unchanged(part: Part, store: Layers) -> Iterator[None]:
    """Read the part's files in this block. ImageBuildError if somebody writes to them meanwhile."""
    before = [scan.digest(store) for _, scan, _ in part.files]
    yield
    for (_, scan, _), content in zip(part.files, before, strict=True):
        if scan.digest(store) != content:
            raise local.changed(scan.source)


class _Out(BytesIO):
    """A file that is taken away piece by piece."""

    def take(self) -> bytes:
        data = self.getvalue()
        self.seek(0)
        self.truncate()
        return data


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, BytesIO(data))


def _add_entry(tar: tarfile.TarFile, prefix: str, entry: local.Entry, mode: int | None) -> None:
    info = tarfile.TarInfo("/".join(filter(None, (prefix, entry.name))) or ".")
    info.mode = entry.permissions if mode is None or entry.is_folder else mode
    # Whole seconds: a fraction needs a PAX header first, and Docker does not take that for a tar.
    info.mtime = entry.changed // 10**9
    if entry.is_folder:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif entry.is_link:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        tar.addfile(info)
    else:
        with os.fdopen(local.opened(entry), "rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            tar.addfile(info, file)


def folder(path: str) -> Iterator[bytes]:
    """A layer's folder as a tar, owners by number."""
    out = _Out()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, directories, files in os.walk(path):
            for entry in sorted((*directories, *files)):
                full = os.path.join(name, entry)
                tar.add(full, os.path.relpath(full, path), recursive=False, filter=_by_number)
                yield out.take()
    yield out.take()


def _by_number(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uname = info.gname = ""
    info.uid, info.gid = _idmap.inside(info.uid, info.gid)
    return info


def empty() -> bytes:
    """A tar of nothing."""
    return bytes(10240)


def flat(text: str, contents: Sequence[bytes]) -> Iterator[bytes]:
    """A context of executable files f0, f1 …, and a Dockerfile."""
    out = _Out()
    with tarfile.open(fileobj=out, mode="w|") as tar:
        _add(tar, DOCKERFILE, text.encode())
        for number, data in enumerate(contents):
            _add(tar, f"f{number}", data, 0o755)
    yield out.take()
