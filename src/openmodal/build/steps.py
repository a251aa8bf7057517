"""Doing the steps of a recipe, one after the other, each at most once on this machine.

`Builder` goes from image to image: `apply(root, step)` returns the image after the step, from the
store if it is there. An image has keys for layers; folders appear only where something is read or
run.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from openmodal._binary import PATH
from openmodal._spec import (
    AnyStep,
    Config,
    Copy,
    Dockerfile,
    Layered,
    Origin,
    Progress,
    Recipe,
    Report,
    Run,
)
from openmodal._store import make_folder
from openmodal.build import Options, Runner, RunRequest, local, names, origin, put
from openmodal.build.layers import Layers, Meta
from openmodal.build.merged import Merged, is_opaque
from openmodal.build.names import digest, facts
from openmodal.build.output import Tail
from openmodal.build.titles import title
from openmodal.errors import DiskFullError, ImageBuildError, InvalidError, disk_full, disk_full_named

_T = TypeVar("_T")

MOST_LAYERS = 256
"""More do not fit: overlayfs takes 500 folders, and each costs every look-up."""

_NO_SPACE = 8 << 20  # bytes; a command that failed with less than this left failed for want of space


def build(recipe: Recipe, store: Layers, run: Runner, report: Report, options: Options) -> Layered:
    """See `openmodal.build.build`."""
    chain = names.chain(recipe, store, options)
    with disk_full_named(store.path), Builder(store, run, report, options, count(recipe)) as builder:
        store.collect()
        root, done = builder.begin(chain, recipe)
        recipe = names.afresh(recipe, done)
        chain = names.chain(recipe, store, options)
        for step, last in _grouped(recipe.steps[done:], done):
            root = builder.apply(root, step)
            store.remember(chain[last], root)
        return root


def count(recipe: Recipe) -> int:
    """How many steps progress tells of."""
    return sum(_weight(step) for step in recipe.steps)


def _weight(step: AnyStep) -> int:
    if isinstance(step, Dockerfile):
        from openmodal.build import dockerfile

        return dockerfile.count(step)
    return 1


def _grouped(steps: Iterable[AnyStep], start: int) -> list[tuple[AnyStep | tuple[Copy, ...], int]]:
    """Steps with the index of their name; copies in a row become one layer."""
    groups: list[tuple[AnyStep | tuple[Copy, ...], int]] = []
    for index, step in enumerate(steps, start):
        if isinstance(step, Copy) and groups and isinstance(previous := groups[-1][0], tuple):
            groups[-1] = ((*previous, step), index)
        else:
            groups.append(((step,) if isinstance(step, Copy) else step, index))
    return groups


class Builder:
    """One build. What it made or used stays safe from `prune` until the end of its `with` block."""

    def __init__(self, store: Layers, run: Runner, report: Report, options: Options, total: int) -> None:
        self.store = store
        self.options = options
        self._run = run
        self._report = report
        self._total = total
        self._number = 0
        self._claims = ExitStack()

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *unused: object) -> None:
        self._claims.close()

    # ------------------------------------------------------------------------------------- progress

    def starts(self, text: str, weight: int = 1) -> None:
        """A step begins; what follows is about it."""
        self._number = min(self._number + weight, self._total)
        self._tell("start", text)

    def prints(self, text: str) -> None:
        """The step says something."""
        self._tell("output", text)

    def remarks(self, text: str) -> None:
        """Say something that the user should know, whatever the step prints."""
        self._tell("remark", text)

    def waits(self) -> None:
        """Another build is making the step."""
        self._tell("waiting", "another build is making this; waiting for it\n")

    def ends(self, text: str, *, cached: bool = False) -> None:
        """The step is done."""
        self._tell("cached" if cached else "done", text)

    def _tell(self, event: str, text: str) -> None:
        self._report(
            msgspec.convert({"event": event, "step": self._number, "steps": self._total, "text": text}, Progress)
        )

    # ---------------------------------------------------------------------------------------- steps

    def begin(self, chain: tuple[str, ...], recipe: Recipe) -> tuple[Layered, int]:
        """The longest part of the recipe that is made already, and how many steps that is."""
        for done in range(len(chain), 0, -1):
            if known := self.known(chain[done - 1]):
                for step in recipe.steps[:done]:
                    self.starts(title(step), _weight(step))
                    self.ends(title(step), cached=True)
                return known, done
        return Layered(""), 0

    def known(self, name: str) -> Layered | None:
        """The image of that name, if it is made. It is safe from `prune` from now on."""
        found = self.store.image(name)
        return found if found is not None and self._keep(found) else None

    def _keep(self, root: Layered) -> bool:
        claim = self.store.claim(root.layers[0])
        self._claims.callback(claim.held.close)
        if not claim.made:
            claim.held.close()
        return claim.made

    def apply(self, root: Layered, step: AnyStep | tuple[Copy, ...]) -> Layered:
        """The image after the step."""
        if isinstance(step, Origin):
            return origin.make(self, step)
        if not root.layers and not isinstance(step, Dockerfile):
            raise InvalidError(origin.REQUIRED)
        match step:
            case Dockerfile():
                from openmodal.build import dockerfile

                return dockerfile.apply(self, root, step)
            case Config():
                return self.configure(root, step)
            case Run():
                return self.command(root, step)
            case Copy():
                return self.copy(root, (step,))
            case _:
                return self.copy(root, step)

    def configure(self, root: Layered, step: Config) -> Layered:
        """Change what commands run with; no layer."""
        self.starts(title(step))
        self.ends(title(step), cached=True)
        return configured(root, step)

    def copy(self, root: Layered, group: tuple[Copy, ...]) -> Layered:
        """Put local files in, as one layer."""
        text = "; ".join(title(step) for step in group)
        tree = Merged(self.folders(root))
        group = tuple(_into_folder(tree, step) for step in group)
        scans = [local.scan_of(step) for step in group]
        contents = [scan.digest(self.store) for scan in scans]
        key = digest(root.key, [facts(step, content) for step, content in zip(group, contents, strict=True)])
        earlier = [put.Earlier(self.store, step) for step in group]

        def make(upper: Path) -> None:
            for remark in filter(None, (scan.remark for scan in scans)):
                self.prints(remark)
            writer = put.Upper(str(upper), self.folders(root))
            for step, content, copies in zip(group, contents, earlier, strict=True):
                put.copy_local(writer, step, content, copies)

        made = self.layer(root, key, text, make, weight=len(group))
        for copies in earlier:
            copies.remember(key)
        return made

    def folder(self, root: Layered, path: str, owner: str) -> Layered:
        """The image with a folder in it, as WORKDIR makes one; `owner` is "uid:gid", or "" for root."""
        if Merged(self.folders(root)).find(path):
            return root

        def make(upper: Path) -> None:
            writer = put.Upper(str(upper), self.folders(root))
            numbers = put.numbers(owner or "0:0")
            writer.folder(writer.place(path, folder=True, name="", owner=numbers), owner=numbers)

        return self.layer(root, digest(root.key, "folder", owner), f"WORKDIR {path}", make, weight=0)

    def command(self, root: Layered, step: Run, text: str = "") -> Layered:
        """Run a command and keep what it changes."""
        text = text or title(step)

        def make(upper: Path) -> None:
            self._run_in(root, step, text, upper)

        return self.layer(root, digest(root.key, facts(step)), text, make)

    # --------------------------------------------------------------------------------------- layers

    def folders(self, root: Layered) -> tuple[str, ...]:
        """The image's layers as folders."""
        return self.store.folders(root)

    def layer(self, root: Layered, key: str, text: str, make: Callable[[Path], None], *, weight: int = 1) -> Layered:
        """The image with one more layer, which `make` writes into an empty folder if nobody has made it before."""
        if len(root.layers) >= MOST_LAYERS:
            raise InvalidError(f"an image can have {MOST_LAYERS} layers; join commands with && to need fewer")
        self.starts(text, weight)
        cached = self.ensure(key, Meta(root.layers[0] if root.layers else "", text), make)
        self.ends(text, cached=cached)
        return msgspec.structs.replace(root, key=key, layers=(key, *root.layers))

    def ensure(self, key: str, meta: Meta, make: Callable[[Path], None]) -> bool:
        """Make a layer unless it is there; whether it was. It is safe from `prune` from now on."""
        claim = self.store.claim(key, self.waits)
        self._claims.callback(claim.held.close)
        if claim.made:
            return True
        try:
            with self.store.scratch() as scratch:
                upper = make_folder(scratch / "upper")
                self._as_below(upper, meta.parent)
                make(upper)
                self.store.publish(upper, key, meta)
        except BaseException as error:
            if isinstance(error, ImageBuildError):
                self.store.fail(claim, error)
            claim.held.close()  # at once: others may try
            raise
        claim.held.share()
        return False

    def _as_below(self, upper: Path, parent: str) -> None:
        """The topmost layer's own folder is the image's /: without this each layer would reset its mode and owner."""
        below = self.store.folder(parent).stat() if parent else None
        if below is not None and os.geteuid() == 0:
            os.chown(upper, below.st_uid, below.st_gid)
        upper.chmod(stat.S_IMODE(below.st_mode) if below is not None else 0o755)

    def _run_in(self, root: Layered, step: Run, text: str, upper: Path) -> None:
        work = make_folder(upper.parent / "work")
        with ExitStack() as stack:
            binds = tuple((self._cache(stack, target), target) for target in step.caches)
            tail = Tail(self.prints, step.secrets.variables.values())
            request = RunRequest(
                layers=self.folders(root),
                upper=str(upper),
                work=str(work),
                argv=step.argv,
                env=merged_env((("PATH", PATH),), root.env, step.env),
                user=step.user,
                workdir=step.workdir or root.workdir or "/",
                binds=binds,
                output=tail.write,
                secrets=step.secrets,
            )
            try:
                code = self._run(request)
            except DiskFullError as error:
                raise DiskFullError(f"{self._where(text)}, {error}") from error
        tail.close()
        if code != 0:
            raise self._failure(code, text, tail)
        for target in (*step.caches, "/etc/resolv.conf"):
            drop_mount_point(upper, target)

    def _cache(self, stack: ExitStack, target: str) -> str:
        # apt's lock of its lists gives up at once, so concurrent builds get folders of their own.
        # pip and uv share theirs.
        return str(stack.enter_context(self.store.cache(cache_name(target), exclusive="/.cache/" not in target)))

    def _failure(self, code: int, text: str, tail: Tail) -> Exception:
        space = os.statvfs(self.store.path)
        if "No space left on device" in tail.text or space.f_bavail * space.f_frsize < _NO_SPACE:
            return DiskFullError(f"{self._where(text)}, failed: {disk_full(self.store.path)}")
        return self.failure(code, text, tail)

    def _where(self, text: str) -> str:
        return f"step {self._number} of {self._total}, {text}"

    def failure(self, code: int, text: str, tail: Tail) -> ImageBuildError:
        """The exception for a step whose command failed."""
        printed = f"; {tail.why}" if tail.why else ""
        return ImageBuildError(
            f"{self._where(text)}, failed with exit code {code}{printed}", step=text, output=tail.text
        )


def _into_folder(tree: Merged, step: Copy) -> Copy:
    """The step with a slash after its target, if that is a folder into which a file goes: then the file's name is part of the key."""
    found = None if step.target.endswith("/") or os.path.isdir(step.source) else tree.find(step.target)
    is_folder = found is not None and found.is_folder
    return msgspec.structs.replace(step, target=f"{step.target}/") if is_folder else step


def cache_name(target: str) -> str:
    """The name under which a cache folder is kept."""
    return f"{re.sub('[^a-z0-9]+', '-', target.lower()).strip('-')[:40]}-{digest(target)[:8]}"


def drop_mount_point(upper: Path, target: str) -> None:
    """Remove the empty folders (or file) that mounting something left in the layer."""
    path = target.strip("/")
    if not path or ".." in path.split("/"):
        return
    parts = path.split("/")
    # Not through a link: that would be some other folder, perhaps not even in the layer.
    if any((upper / "/".join(parts[:n])).is_symlink() for n in range(1, len(parts) + 1)):
        return
    with suppress(OSError):
        if (file := upper / path).is_file() and file.stat().st_size == 0:
            file.unlink()
            parts.pop()
        while parts and not is_opaque(folder := str(upper / "/".join(parts))):
            os.rmdir(folder)
            parts.pop()


def configured(root: Layered, step: Config) -> Layered:
    """The image with other settings."""

    def pick(new: _T | None, old: _T) -> _T:
        return old if new is None else new

    return Layered(
        key=digest(root.key, facts(step)),
        layers=root.layers,
        env=merged_env(root.env, step.env),
        workdir=pick(step.workdir, root.workdir),
        user=pick(step.user, root.user),
        entrypoint=pick(step.entrypoint, root.entrypoint),
        # As Docker: the command was made for the other entrypoint.
        cmd=pick(step.cmd, root.cmd if step.entrypoint is None else ()),
        shell=root.shell,
    )


def merged_env(*groups: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Variables of several origins, later ones winning, each in the place where it appeared first."""
    values: dict[str, str] = {}
    for group in groups:
        values.update(group)
    return tuple(values.items())
