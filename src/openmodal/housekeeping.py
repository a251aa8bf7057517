"""Housekeeping: what is left behind, which images there are, and what this machine can do.
`openmodal gc`, `image` and `doctor` show it.

    from openmodal import housekeeping

    housekeeping.gc()              # blocks
    await housekeeping.gc.aio()    # in asyncio

What runs is `Sandbox.list`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openmodal import _args, _config, _trash
from openmodal._dual import Blocking, Call
from openmodal._spec import Built, BuiltStep, Layer
from openmodal.build.prune import Prunable, Pruned
from openmodal.build.prune import prunable as _prunable
from openmodal.engines import ON_THIS_MACHINE, Engine, choose, examine, here, load, require
from openmodal.engines.check import Check
from openmodal.errors import Error


@dataclass(frozen=True)
class Collected:
    """What `gc` has removed, or would remove, and why it could not remove the rest."""

    removed: tuple[str, ...]
    failed: tuple[str, ...] = ()


@Call
async def gc(*, check: bool = False, engine: str | Engine | None = None) -> Collected:
    """Remove what crashes and power cuts left behind. Running sandboxes are left alone.

    Args:
        check: only tell what would be removed.
        engine: as in `Sandbox.create`. "local", and None where nothing else is configured: every
            engine of this machine.

    Raises:
        UnsupportedError: the engine has no gc.
    """
    name = engine or _config.engine() or "local"
    engines = here() if name == "local" else [choose(engine)]
    removed: list[str] = []
    failed: list[str] = []
    for each in engines:
        require(each, "gc")
        with _trash.going_on(failed):
            removed += await Blocking(each.gc, check=check)
    return Collected(tuple(removed), tuple(failed))


@Call
async def images(*, engine: str | Engine | None = None) -> list[Built]:
    """Return the images that are built, the newest use first.

    Raises:
        UnsupportedError: the engine keeps no images of its own.
    """
    chosen = choose(engine)
    require(chosen, "images")
    return sorted(await Blocking(chosen.images), key=lambda image: -image.used)


@Call
async def history(key: str, *, engine: str | Engine | None = None) -> list[BuiltStep]:
    """Return the steps of an image that is built, the last one first.

    Args:
        key: the image's, as `images` tells it.
        engine: as in `Sandbox.create`.

    Raises:
        NotFoundError: there is no image of that key.
        UnsupportedError: the engine keeps no images of its own.
    """
    chosen = choose(engine)
    require(chosen, "images")
    return list(await Blocking(chosen.history, _args.string("key", key)))


@Call
async def prune(*, unused_for: float = 7 * 86400.0, caches: bool = False, engine: str | Engine | None = None) -> Pruned:
    """Remove images that were not used for so many seconds; those of running sandboxes stay.

    Args:
        unused_for: seconds; 0: all that no running sandbox uses.
        caches: the downloads of apt and pip, and disks that are kept ready, too.
        engine: as in `Sandbox.create`.

    Raises:
        UnsupportedError: the engine keeps no images of its own.
        EngineError: something could not be removed; all else is.
    """
    seconds, chosen = _args.age("unused_for", unused_for), choose(engine)
    require(chosen, "images")
    removed: Pruned = await Blocking(chosen.prune, unused_for=seconds, caches=caches)
    return removed


@Call
async def prunable(*, unused_for: float = 7 * 86400.0, engine: str | Engine | None = None) -> Prunable:
    """Tell which images `prune` would remove, and how many bytes become free.

    Args:
        unused_for: as in `prune`.
        engine: as in `Sandbox.create`.

    Raises:
        UnsupportedError: the engine keeps no images of its own.
    """
    seconds, chosen = _args.age("unused_for", unused_for), choose(engine)
    built = await images.core(engine=chosen)
    return _prunable(built, {status.image for status in await chosen.list()}, seconds)


@Call
async def doctor(*, network: bool = False, engine: str | None = None) -> list[Check]:
    """Find out what this machine can do, what is missing, and the command that adds it: of each
    engine of this machine, and of `engine`.

    Sandboxes can run here if every check that is `required` is `ok`.

    Args:
        network: also try to reach registries, and whether a cluster keeps its policies (two pods).
        engine: the name of another engine; None: as configured.
    """
    name = engine or _config.engine() or "local"
    others = () if name in ("local", *ON_THIS_MACHINE) else (name,)
    checks = [_settings(name)]
    for each in (*ON_THIS_MACHINE, *others):
        checks += await Blocking(_examined, each, network)
    return checks


def _examined(name: str, network: bool) -> Sequence[Check]:
    return list(examine(name, network=network))


def _settings(engine: str) -> Check:
    """What environment, configuration and options say that every creation would refuse."""
    try:
        _args.controls(_config.allow_degraded())
        load(engine)
    except Error as error:
        return Check("settings", False, str(error), "correct it in the environment or the configuration", required=True)
    return Check("settings", True, "understood")


__all__ = [
    "Built",
    "BuiltStep",
    "Check",
    "Collected",
    "Layer",
    "Prunable",
    "Pruned",
    "doctor",
    "gc",
    "history",
    "images",
    "prunable",
    "prune",
]
