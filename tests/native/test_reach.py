"""The verb `reach`: whether one reaches the other, and until when."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.build.test_registry import free_port

ALWAYS, NO_LONGER, MISUSED, NEVER = range(4)


@contextmanager
def listening(program: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([program, "reach", str(port), "30"]) as target:
        try:
            yield target
        finally:
            target.kill()


def test_what_is_reached_until_the_end_is_told(program: Path) -> None:
    port = free_port()
    with listening(program, port):
        assert subprocess.run([program, "reach", "127.0.0.1", str(port), "2"], check=False).returncode == ALWAYS


def test_what_is_reached_no_longer_is_told(program: Path) -> None:
    port = free_port()
    with (
        listening(program, port) as target,
        subprocess.Popen([program, "reach", "127.0.0.1", str(port), "30"]) as caller,
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            caller.wait(2)
        target.kill()
        assert caller.wait(20) == NO_LONGER


def test_what_is_never_reached_is_told(program: Path) -> None:
    done = subprocess.run([program, "reach", "127.0.0.1", str(free_port()), "1"], check=False)
    assert done.returncode == NEVER


def test_it_ends_by_itself(program: Path) -> None:
    assert subprocess.run([program, "reach", str(free_port()), "1"], check=False, timeout=20).returncode == ALWAYS


@pytest.mark.parametrize("words", [(), ("80",), ("localhost", "80", "1"), ("65536", "1"), ("80", "3601"), ("80", "x")])
def test_misuse_is_told_in_a_sentence(program: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run([program, "reach", *words], capture_output=True, check=False)
    assert done.returncode == MISUSED
    assert done.stderr.count(b"\n") == 1
