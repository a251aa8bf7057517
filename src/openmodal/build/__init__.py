"""A recipe made into layers: what an engine asks for, and what it must lend.

`lookup` finds an image that is made already, at the price of about one stat; `build` makes what is
missing. Everything here is plain blocking Python over one folder (`Layers`), safe from many
processes. It knows no engine: the command of a step is run by the callable that the engine passes
in, so that build steps are sandboxes like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from openmodal._hidden import NOTHING, Hidden
from openmodal._spec import Layered, Progress, Recipe, Report

if TYPE_CHECKING:
    from openmodal.build.layers import Layers


class RunRequest(msgspec.Struct, frozen=True):
    """One command of a build, to be run as process 1's child in a sandbox.

    Attributes:
        layers: folders of the layers below, topmost first; never empty, never written to.
        upper: an empty folder. When the call returns it holds the new layer, as overlayfs wrote it;
            owners on disk are 0-based.
        work: an empty folder on the same file system, for overlayfs; what is in it afterwards does
            not matter.
        argv, env, user, workdir: the command. `env` is complete but for what the engine adds for
            its own network and trust, and for `secrets`, which beat it and must get into no file.
            `user` is "" (root), a name, a number, or "user:group". A
            `workdir` that is missing is made.
        binds: (folder here, folder in the sandbox): writable, and no part of the layer. Missing
            targets are made by the engine; the builder removes the empty folders that this leaves
            in `upper`.
        output: takes what the command prints, stdout and stderr mixed, as it comes.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    workdir: str
    binds: tuple[tuple[str, str], ...]
    output: Callable[[bytes], None]
    secrets: Hidden = NOTHING


class Runner(Protocol):
    """Runs a command and returns its exit code, 128 + n for signal n. Raises only if the sandbox
    itself failed, or was ended because it filled the store's disk: a DiskFullError whose text goes
    on after the step's name.

    When it returns or raises, nothing writes to `upper` any more. If this process dies, the sandbox
    ends by itself.
    """

    def __call__(self, request: RunRequest, /) -> int: ...


class ForPeople(contextlib.ExitStack):
    """A report on stderr, which is made at the first news: most images are there already."""

    _report: Report | None = None

    def __call__(self, news: Progress) -> None:
        from openmodal.build.progress import terminal_report

        self._report = self._report or self.enter_context(terminal_report())
        self._report(news)


class Options(msgspec.Struct, frozen=True):
    """What a build may be told by the machine's configuration.

    Attributes:
        base: where `debian_slim` comes from: "registry", "packages", or "auto" (a registry where
            one can be reached).
        insecure: registries ("host:port") that are spoken to without TLS; loopback is always.
        docker_config: the folder of Docker's `config.json` with credentials; "": `$DOCKER_CONFIG`
            or `~/.docker`.
        cpu: what an image is named for, "amd64" or "arm64"; "": this machine's, which is the only
            one that it can build for.
        suites: where Debian packages are for each suite, as lines of a sources.list; empty:
            mmdebstrap's own choice.
    """

    base: str = "auto"
    insecure: tuple[str, ...] = ()
    docker_config: str = ""
    cpu: str = ""
    suites: tuple[tuple[str, tuple[str, ...]], ...] = ()


DEFAULTS = Options()


def lookup(recipe: Recipe, store: Layers, options: Options = DEFAULTS) -> Layered | None:
    """Return the image if it is made already. Local files that it adds are hashed (or known to be
    unchanged) first.

    Raises:
        InvalidError: a local file that the recipe names is not there.
    """
    from openmodal.build import names

    return store.image(names.chain(recipe, store, options)[-1])


def expire(store: Layers, *, check: bool = False, failed: list[str] | None = None) -> list[str]:
    """Remove the snapshots whose time is over, as `prune.expire`; return their keys."""
    from openmodal.build import prune

    return prune.expire(store, check=check, failed=failed)


def build(recipe: Recipe, store: Layers, run: Runner, report: Report, options: Options = DEFAULTS) -> Layered:
    """Make what is missing of the image, and return it. Of many processes that want the same step,
    one does it.

    Raises:
        InvalidError, UnsupportedError: the recipe cannot be built here; the text says what can.
        ImageBuildError: a step failed; `.step` and `.output` tell.
        RegistryError: the base image cannot be fetched.
        DiskFullError: the store's disk is full, or a step was ended before it filled that disk.

    In each case nothing half-made stays, also if this process is killed: finished steps are kept
    and used by the next build.
    """
    from openmodal.build.steps import build as build_steps

    return build_steps(recipe, store, run, report, options)
