"""The log: one line of JSON for each request. Only the newest are kept, so its size is bounded."""

from __future__ import annotations

import json
import os
import time
from collections import deque

MOST = 2000
"""Lines at which the older half is dropped."""


class Log:
    """Writes to a descriptor, which nobody else writes to; goes on with what is there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        known = os.pread(fd, os.fstat(fd).st_size, 0)
        self._lines = deque(line for line in known.splitlines(keepends=True) if line.endswith(b"\n"))
        self._size = sum(map(len, self._lines))

    def add(self, kind: str, asked: str, address: str, reason: str, *, allowed: bool) -> None:
        """Note a request: its name, its address and port ("" for none), the decision and why."""
        fields = (round(time.time(), 3), kind, asked[:260], address, allowed, reason[:200])
        line = json.dumps(dict(zip(("time", "kind", "asked", "address", "allowed", "reason"), fields, strict=True)))
        self._lines.append(line.encode("ascii") + b"\n")
        if len(self._lines) > MOST:
            self._drop()
        else:
            self._size += os.pwrite(self._fd, self._lines[-1], self._size)

    def _drop(self) -> None:
        """Overwrite, then cut: a reader meanwhile finds whole lines, but perhaps for one."""
        for _ in range(MOST // 2):
            self._lines.popleft()
        self._size = os.pwrite(self._fd, b"".join(self._lines), 0)
        os.ftruncate(self._fd, self._size)
