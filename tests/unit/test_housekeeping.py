"""Housekeeping as functions: their faces, and what they ask which engine."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from openmodal import InvalidError, engines, housekeeping
from openmodal._spec import Built, Layer
from openmodal.build.prune import Prunable, Pruned, prunable
from openmodal.engines.check import Check
from openmodal.errors import EngineError, UnsupportedError

FUNCTIONS = (
    housekeeping.gc,
    housekeeping.history,
    housekeeping.images,
    housekeeping.prunable,
    housekeeping.prune,
    housekeeping.doctor,
)


class Keeping:
    """An engine with leftovers and images."""

    lacks: frozenset[str] = frozenset()

    def __init__(self, name: str = "keeping", trouble: str = "") -> None:
        self.name = name
        self.trouble = trouble
        self.asked: list[object] = []

    def gc(self, *, check: bool = False) -> Sequence[str]:
        self.asked.append(check)
        if self.trouble:
            raise EngineError(self.trouble)
        return [f"sandbox of {self.name}"]

    def images(self) -> Sequence[Built]:
        return [Built("old", 1, 1, 10.0, "RUN a"), Built("new", 2, 1, 20.0, "RUN b")]

    def prune(self, *, unused_for: float = 0.0, caches: bool = False) -> Pruned:
        self.asked.append((unused_for, caches))
        return Pruned(1, 2, 3)


def test_exactly_these_names_are_exported() -> None:
    functions = ["doctor", "gc", "history", "images", "prunable", "prune"]
    types = ["Built", "BuiltStep", "Check", "Collected", "Layer", "Prunable", "Pruned"]
    assert housekeeping.__all__ == types + functions


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_says_what_it_does_and_reaches_other_processes(function: Any) -> None:
    assert function.__doc__
    assert pickle.loads(pickle.dumps(function)).core is function.core


def test_both_faces_do_the_same() -> None:
    engine: Any = Keeping()
    assert [built.key for built in housekeeping.images(engine=engine)] == ["new", "old"]
    assert asyncio.run(housekeeping.images.aio(engine=engine)) == housekeeping.images(engine=engine)
    assert housekeeping.prune(engine=engine) == Pruned(1, 2, 3)
    asyncio.run(housekeeping.prune.aio(unused_for=0, caches=True, engine=engine))
    housekeeping.gc(engine=engine)
    asyncio.run(housekeeping.gc.aio(check=True, engine=engine))
    assert engine.asked == [(7 * 86400.0, False), (0.0, True), False, True]


def test_what_a_prune_would_remove_is_told_with_what_becomes_free() -> None:
    now = time.time()
    low, mine, other = (
        Layer("FROM a", 100, 0.0, "low"),
        Layer("RUN a", 10, 0.0, "mine"),
        Layer("RUN b", 5, 0.0, "other"),
    )
    old = Built("old", 110, 2, now - 100, "RUN a", stack=(mine, low))
    images = [
        old,
        Built("new", 105, 2, now, "RUN b", stack=(other, low)),
        Built("used", 110, 2, 1.0, "RUN a", stack=(low,)),
        Built("named", 110, 2, 1.0, "RUN a", names=("name",), stack=(low,)),
        Built("snapshot", 110, 2, 1.0, "RUN a", expires=now + 100, stack=(low,)),
    ]
    assert prunable(images, {"used"}, 50.0) == Prunable((old,), 10)
    assert prunable([Built("far", 1, 1, 1.0, "RUN a")], (), 50.0).bytes is None
    expired = msgspec.structs.replace(old, used=now, expires=now - 1)
    assert prunable([expired], (), 50.0) == Prunable((expired,), 110)


def test_wrong_ages_are_refused() -> None:
    engine: Any = Keeping()
    with pytest.raises(InvalidError, match="unused_for"):
        housekeeping.prune(unused_for=-1, engine=engine)
    assert engine.asked == []


def test_an_engine_that_keeps_nothing_says_so() -> None:
    class Bare:
        name = "bare"
        lacks = frozenset({"images"})

    engine: Any = Bare()
    with pytest.raises(UnsupportedError, match="the bare engine has no gc"):
        housekeeping.gc(engine=engine)
    with pytest.raises(UnsupportedError, match="the bare engine keeps no images"):
        housekeeping.prune(engine=engine)


def test_gc_of_this_machine_asks_all_its_engines_and_goes_on_after_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "here", lambda: [Keeping("one", "one is stuck"), Keeping("two")])
    assert housekeeping.gc(engine="local") == housekeeping.Collected(("sandbox of two",), ("one is stuck",))


def test_the_doctor_looks_at_this_machines_engines_and_at_the_one_that_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def examine(name: str, *, network: bool) -> list[Check]:
        asked.append((name, network))
        return [Check(name, True, "fine")]

    monkeypatch.setattr(housekeeping, "examine", examine)
    assert [check.name for check in housekeeping.doctor(engine="docker")] == ["settings", "embedded", "docker"]
    found = asyncio.run(housekeeping.doctor.aio(network=True, engine="kubernetes"))
    assert [check.name for check in found] == ["settings", "embedded", "docker", "kubernetes"]
    assert asked[-1] == ("kubernetes", True)
    assert not housekeeping.doctor(engine="no-such-engine")[0].ok


def test_an_engine_of_others_has_no_doctor() -> None:
    assert list(engines.examine("package.module:Engine")) == []
