"""Probe: how to find out whether what runs in a sandbox is ready to be used."""

from __future__ import annotations

import msgspec

from openmodal import _args
from openmodal._spec import Readiness
from openmodal.errors import InvalidError

_HOUR_MS = 3_600_000


class Probe(msgspec.Struct, frozen=True):
    """A question to a sandbox, for `create(readiness_probe=…)` and `wait_until_ready`.

    Made by `with_tcp` or `with_exec`. It is asked by who waits: nothing runs in the background.
    """

    asked: Readiness

    def __post_init__(self) -> None:
        if not isinstance(self.asked, Readiness):
            raise InvalidError("a Probe is made by Probe.with_tcp(port) or Probe.with_exec(*argv)")

    @classmethod
    def with_tcp(cls, port: int, *, interval_ms: int = 100) -> Probe:
        """Ready when a TCP connection to that port of the sandbox succeeds. `interval_ms` is not
        needed for it.

        Raises:
            InvalidError: that is no port, or no interval.
        """
        port = _args.whole("port", port, 1, 65535)
        return cls(Readiness(port=port, interval_ms=_interval(interval_ms)))

    @classmethod
    def with_exec(cls, *argv: str, interval_ms: int = 100) -> Probe:
        """Ready when the command `argv`, run in the sandbox, exits with 0. It is run every
        `interval_ms` milliseconds.

        Raises:
            InvalidError: there is no command, or no interval.
        """
        return cls(Readiness(argv=_args.argv("Probe.with_exec", argv), interval_ms=_interval(interval_ms)))


def _interval(value: object) -> int:
    return _args.whole("interval_ms", value, 1, _HOUR_MS)


__all__ = ["Probe"]
