"""Podman's service for Docker's API, as a second daemon: state and socket in one folder, gone with its block."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon
from tests.docker.dockerd import await_answer, end

# A root without CAP_SYS_RESOURCE, as some machines have, cannot raise limits; by default Podman
# tries. And its locks would be in shared memory, which stays when it ends.
_SETTINGS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
lock_type = "file"
"""


@contextmanager
def podman(folder: Path) -> Iterator[Daemon]:
    """Run Debian's Podman for the block. Its images stay in the folder."""
    if not shutil.which("podman") or os.geteuid() != 0:
        pytest.skip("needs root and Debian's package podman")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "containers.conf").write_text(_SETTINGS, encoding="ascii")
    daemon = Daemon(f"unix://{folder}/podman.sock")
    command = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--cgroup-manager", "cgroupfs"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "system", "service", "--time", "0", daemon.host],
            env=os.environ | {"CONTAINERS_CONF": f"{folder}/containers.conf"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await_answer(daemon, process, folder / "log")
        yield daemon
    finally:
        end(process, folder)
