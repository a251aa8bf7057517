"""The gate as a program, `main.py ROOT POLICY LOG`: opens its files, says that it is ready, and only then loads what it serves with.

`Sandbox.create` waits for "ready", and loading takes several times as long as Python's own start. Connections wait meanwhile: the
sockets are there and listen. So nothing is imported here that Python has not loaded already, not even the package.
"""

from __future__ import annotations

import os
import sys

LIFELINE = 5  # as native/gate.c numbers it

_NICENESS = 5


def main() -> None:
    """Say "ready", or in one sentence why not, to the supervisor; then serve."""
    root, policy_path, log_path = sys.argv[1:]
    try:
        with open(policy_path, "rb") as file:
            policy = file.read()
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        os.write(LIFELINE, f"network the gate of the sandbox cannot start: {error}".encode())
        return
    os.write(LIFELINE, b"ready")
    os.nice(_NICENESS)  # now: somebody waited for the start
    # asyncio takes TLS along where it is, and loading that costs as much as all the rest. The gate only looks at it.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    sys.path.append(root)
    from openmodal._gate import service

    service.run(policy, log)


if __name__ == "__main__":
    main()
