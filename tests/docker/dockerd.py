"""A Docker daemon of our own, for machines where none runs: state, socket and pidfile in one folder, gone with its block."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openmodal.engines.docker.daemon import Daemon

_PATIENCE = 60.0


@contextmanager
def bridge(folder: Path) -> Iterator[str]:
    """An interface for the daemon in a folder, with a way out. Not docker0, which may be another
    daemon's.

    Its name is the folder's, so what a run left that was killed is known, and other runs have
    others.
    """
    digest = hashlib.sha256(os.fsencode(folder)).digest()
    name, network = f"omd{digest.hex()[:8]}", f"172.30.{digest[0]}"
    way_out = f"POSTROUTING -s {network}.0/24 ! -o {name} -j MASQUERADE".split()
    _remove_bridge(name, way_out)
    try:
        _administer("ip", "link", "add", name, "type", "bridge")
        _administer("ip", "addr", "add", f"{network}.1/24", "dev", name)
        _administer("ip", "link", "set", name, "up")
        _administer("iptables", "-w", "-t", "nat", "-A", *way_out)
        yield name
    finally:
        _remove_bridge(name, way_out)


def _remove_bridge(name: str, way_out: list[str]) -> None:
    for command in (["ip", "link", "delete", name], ["iptables", "-w", "-t", "nat", "-D", *way_out]):
        subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)


def _administer(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


@contextmanager
def dockerd(folder: Path, interface: str) -> Iterator[Daemon]:
    """Run Debian's dockerd for the block, on an interface that is there. Its images stay in the folder: they save minutes the next time."""
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.skip("needs a Docker daemon, or root and Debian's package docker.io")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _end_leftover(folder)
    daemon = Daemon(f"unix://{folder}/docker.sock")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            _command(folder, daemon, interface), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await_answer(daemon, process, folder / "log")
        yield daemon
    finally:
        end(process, folder)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / "exec")


def _end_leftover(folder: Path) -> None:
    """End the daemon of a run that was killed: it would keep the folder."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int((folder / "pid").read_text())
        if f"--data-root={folder}/data" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.05)


def _runtimes(folder: Path) -> Iterator[str]:
    """Debian's gVisor, if it is there, as a runtime.

    It knows the machine's own network namespace by a setting that Linux 6.11 and newer show in all
    of them (https://github.com/google/gvisor/issues/10704); this one they still show in the
    machine's alone.
    """
    if found := shutil.which("runsc"):
        program = (
            Path(found).read_bytes().replace(b"/proc/sys/net/core/rmem_default", b"/proc/sys/net/core/message_cost")
        )
        copy = folder / "runsc"
        copy.unlink(missing_ok=True)
        copy.write_bytes(program)
        copy.chmod(0o755)
        yield f"--add-runtime=runsc={copy}"


def _command(folder: Path, daemon: Daemon, interface: str) -> list[str]:
    return [
        "dockerd",
        f"--host={daemon.host}",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid",
        "--log-level=warn",
        f"--bridge={interface}",
        "--iptables=false",
        *_runtimes(folder),
    ]


def await_answer(daemon: Daemon, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the daemon answers; fail if it ends before."""
    deadline = time.monotonic() + _PATIENCE
    while not daemon.answers():
        assert process.poll() is None, f"dockerd ended: {log.read_text(errors='replace')[-2000:]}"
        assert time.monotonic() < deadline, "dockerd does not answer"
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a daemon, and unmount what stays of it in its folder (moby leaves `netns/default`)."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        if (place := line.split()[4]).startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=False, capture_output=True)
