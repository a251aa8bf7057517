"""What an agent leaves of its main command's output in a container's log when it ends, in lines of
base64 (native/report.c)."""

from __future__ import annotations

import binascii
from collections.abc import Mapping

_NAMES = {b"1": 1, b"2": 2}


def outputs(log: bytes) -> Mapping[int, bytes]:
    """The main command's stdout (1) and stderr (2), to which the agent's own complaints count."""
    found = {1: bytearray(), 2: bytearray()}
    for line in log.splitlines(keepends=True):
        name, _, packed = line.partition(b" ")
        packed = packed.rstrip(b"\n")
        try:
            # What is cut off has an end that means nothing by itself.
            found[_NAMES[name]] += binascii.a2b_base64(packed[: len(packed) // 4 * 4], strict_mode=True)
        except (KeyError, binascii.Error):  # in words
            found[2] += line
    return {number: bytes(part) for number, part in found.items()}
