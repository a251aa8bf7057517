"""What has to be measured in a process of its own: memory of the SDK while it moves much data. `python -m benchmarks.child ID STEP`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import openmodal

SIZE = 100 * 1000 * 1000
PRODUCER = ("dd", "if=/dev/zero", "bs=1000000", "count=100", "status=none")


def main(id: str, step: str) -> None:
    """Do one step in a sandbox that exists; print MB/s and how many MiB of memory it took."""
    sandbox = openmodal.Sandbox.from_id(id)
    sandbox.exec("true")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    received = STEPS[step](sandbox)
    seconds = time.perf_counter() - begin
    assert received == SIZE, f"{received} bytes of {SIZE} came"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rate": SIZE / 1e6 / seconds, "memory": (after - before) / 1024, "total": after / 1024}))


def _stdout_in_pieces(sandbox: openmodal.Sandbox) -> int:
    process = sandbox.spawn(*PRODUCER, text=False)
    received = 0
    while piece := process.stdout.read_some():
        received += len(piece)
    assert process.wait() == 0
    return received


def _stdout_kept(sandbox: openmodal.Sandbox) -> int:
    process = sandbox.exec(*PRODUCER, text=False, max_output=None)
    received = 0
    while piece := process.stdout.read_some():
        received += len(piece)
    return received


def _write_file(sandbox: openmodal.Sandbox) -> int:
    sandbox.filesystem.write_bytes("/tmp/big", bytes(SIZE))
    return sandbox.filesystem.stat("/tmp/big").size


def _read_file(sandbox: openmodal.Sandbox) -> int:
    return len(sandbox.filesystem.read_bytes("/tmp/big"))


def _copy_to_local(sandbox: openmodal.Sandbox) -> int:
    target = Path(sys.argv[3])
    sandbox.filesystem.copy_to_local("/tmp/big", target)
    return target.stat().st_size


STEPS = {
    "stdout": _stdout_in_pieces,
    "stdout_kept": _stdout_kept,
    "write": _write_file,
    "read": _read_file,
    "copy": _copy_to_local,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
