"""Probes: what they may ask."""

from __future__ import annotations

from typing import Any

import pytest

from openmodal.errors import InvalidError
from openmodal.probe import Probe


@pytest.mark.parametrize("port", [0, 65536, -1, "80", True, 80.0])
def test_a_port_is_one(port: Any) -> None:
    with pytest.raises(InvalidError, match="port"):
        Probe.with_tcp(port)


@pytest.mark.parametrize("argv", [(), ("",), (7,)])
def test_a_command_has_words(argv: Any) -> None:
    with pytest.raises(InvalidError, match="with_exec"):
        Probe.with_exec(*argv)


@pytest.mark.parametrize("interval", [0, -1, 0.5, "100", None])
def test_an_interval_is_milliseconds(interval: Any) -> None:
    with pytest.raises(InvalidError, match="interval_ms"):
        Probe.with_tcp(80, interval_ms=interval)
    with pytest.raises(InvalidError, match="interval_ms"):
        Probe.with_exec("true", interval_ms=interval)


def test_it_is_made_by_its_two_makers_only() -> None:
    assert Probe.with_tcp(80) != Probe.with_tcp(80, interval_ms=50)
    with pytest.raises(InvalidError, match="is made by"):
        Probe("tcp")  # type: ignore[arg-type]
