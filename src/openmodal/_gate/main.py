"""The gate as a program, `main.py ROOT POLICY LOG ID DIED`: opens its files, and says when it
serves.

`Sandbox.create` waits for that, so as little as possible is loaded. ID is the user id that the gate
takes, "" for none; DIED tells how the gate before this one ended, "" for the first.
"""

from __future__ import annotations

import os
import sys

LIFELINE = 5  # as native/gate.c numbers it


def main() -> None:
    """Serve; or tell the supervisor in one sentence why not."""
    root, policy_path, log_path, id, died = sys.argv[1:]
    # asyncio imports ssl if it can, which costs as much as all the rest. The gate needs no TLS.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    sys.path.append(root)
    try:
        from openmodal._gate import service

        with open(policy_path, "rb") as file:
            policy = file.read()
        log = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        service.run(policy, log, id, died)
    except (ImportError, OSError, LookupError, ValueError) as error:
        os.write(LIFELINE, f"network the gate of the sandbox cannot start: {error!r}".encode())
        raise


if __name__ == "__main__":
    main()
