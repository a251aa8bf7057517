"""What other processes do in tests: build, use, or die in the middle."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from openmodal._hidden import NOTHING
from openmodal._spec import Recipe
from openmodal.build import RunRequest, build, layers
from openmodal.build.layers import Layers
from tests.build import runner


def main() -> None:
    mode, store, recipe, *arguments = sys.argv[1:]
    modes: dict[str, Any] = {"build": build_slowly, "use": use, "die": die}
    modes[mode](Layers(store), msgspec.json.decode(recipe, type=Recipe, dec_hook=lambda _, names: NOTHING), *arguments)


def build_slowly(store: Layers, recipe: Recipe, log: str) -> None:
    def run(request: RunRequest) -> int:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return runner.chroot_runner(request)

    build(recipe, store, run, lambda progress: None)


def use(store: Layers, recipe: Recipe, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        root = build(recipe, store, runner.chroot_runner, lambda progress: None)
        held = store.hold(root)
        if held is None:
            continue
        with held:
            for _ in range(20):
                assert all(os.path.isdir(folder) for folder in store.folders(root))


def die(store: Layers, recipe: Recipe, point: str, count: str) -> None:
    """Be killed at the n-th call of something that changes the disk."""
    places: dict[str, tuple[Any, str]] = {
        "run": (runner, "chroot_runner"),
        "sync": (layers, "sync_file_system"),
        "rename": (os, "rename"),
        "remove": (layers, "remove_tree"),
        "mkdir": (os, "mkdir"),
    }
    module, name = places[point]
    setattr(module, name, _killing(getattr(module, name), int(count)))
    build(recipe, store, runner.chroot_runner, lambda progress: None)


def _killing(original: Callable[..., Any], count: int) -> Callable[..., Any]:
    left = count

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    return wrapper


if __name__ == "__main__":
    main()
