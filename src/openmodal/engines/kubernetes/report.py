"""What an agent says in its pod's log when it ends (docs/protocol.md, section 4): the main command's output, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from openmodal import _ends
from openmodal._spec import EndRecord
from openmodal.engines import reported


@dataclass(frozen=True)
class Report:
    """The end of a sandbox, and what was kept of its main command's output."""

    end: EndRecord
    stdout: bytes
    stderr: bytes


def parse(log: bytes) -> Report | None:
    """The report in a log; None if the agent has not ended, or was killed before it could say so."""
    lines = log.splitlines(keepends=True)
    end = _end(lines[-1]) if lines else None
    if end is None:
        return None
    outputs = reported.outputs(log[: -len(lines[-1])])
    return Report(end, outputs[1], outputs[2])


def _end(line: bytes) -> EndRecord | None:
    words = line.decode("ascii", "replace").split()
    if len(words) != 7 or words[0] != "end" or not all(word.isdigit() for word in words[2:]):
        return None
    _, reason, returncode, memory_out, ended, stdout, stderr = words
    if reason == "abandoned":
        return _ends.ended("error", 124, int(ended) / 1e6, "who created it died before it was ready")
    if memory_out == "1" and reason == "exited":
        reason = "oom"
    return _ends.ended(reason, int(returncode), int(ended) / 1e6, written=(int(stdout), int(stderr)))
