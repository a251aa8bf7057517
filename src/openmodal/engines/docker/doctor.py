"""What `openmodal doctor` says about Docker. Nothing here is required: without a daemon the embedded engine is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from openmodal.engines.check import Check
from openmodal.engines.docker.daemon import Daemon, find
from openmodal.engines.docker.host import Host
from openmodal.errors import EngineError, UnsupportedError

_CP_FIXED = (29, 5, 1)  # CVE-2026-41567, -41568, -42306, -17106: `docker cp` and the archive API
_RUNC_FIXED = (1, 2, 8)  # CVE-2025-31133, -52565, -52881


def examine(*, network: bool = False) -> list[Check]:
    """Ask the daemon, if one answers."""
    try:
        daemon = find()
    except (EngineError, UnsupportedError) as error:
        return [Check("docker", False, str(error), "unset DOCKER_HOST or DOCKER_CONTEXT, or correct it")]
    if not daemon.answers():
        return [_absent(daemon)]
    try:
        host = Host.of(daemon)
        with daemon.open() as api:
            version = api.get("/version")
    except EngineError as error:
        return [Check("docker", False, str(error))]
    return [_present(host, version), *problems(host, version)]


def _absent(daemon: Daemon) -> Check:
    if daemon.path and os.path.exists(daemon.path) and not os.access(daemon.path, os.W_OK):
        text = f"{daemon.path} is there, and you may not use it, so --local means the embedded engine"
        return Check("docker", False, text, "add yourself to the group docker")
    return Check("docker", True, "no daemon answers; none is needed")


def _present(host: Host, version: Mapping[str, Any]) -> Check:
    where = "sees this machine's files" if host.is_here else "is on another machine, or in one of its own"
    runtimes = ", ".join(sorted(host.info.get("Runtimes") or {})) or "unknown"
    text = f"{version['Version']} at {host.daemon.host}, which {where}; runtimes: {runtimes}; --local uses it"
    return Check("docker", True, text)


def problems(host: Host, version: Mapping[str, Any]) -> Iterator[Check]:
    """Known weaknesses of this daemon. Those of its own `cp` and archive API do not reach us: neither is used."""
    options = " ".join(host.info.get("SecurityOptions") or ())
    podman = any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components") or ())
    if not podman and _numbers(version["Version"]) < _CP_FIXED:
        text = f"{version['Version']} has known holes in `docker cp` and the archive API; OpenModal uses neither"
        yield Check(
            "docker version", False, text, "update Docker to 29.5.1 or newer, and do not `docker cp` from sandboxes"
        )
    runc = next((str(part["Version"]) for part in version.get("Components") or () if part.get("Name") == "runc"), "")
    if runc and _numbers(runc) < _RUNC_FIXED:
        yield Check(
            "docker runc", False, f"runc {runc} has known escapes by hostile images", "update runc to 1.2.8 or newer"
        )
    if "name=userns" not in options and "name=rootless" not in options:
        text = "root in a container is root of this machine, held back by capabilities and filters only"
        yield Check(
            "docker users",
            False,
            text,
            "use a rootless daemon, or the embedded engine, whose sandboxes have ids of their own",
        )
    if "name=seccomp" not in options:
        yield Check(
            "docker seccomp",
            False,
            "the daemon filters no system calls; the agent still does",
            "update the kernel or Docker",
        )
    if host.daemon.host.startswith("tcp://") and not host.daemon.certificates:
        yield Check(
            "docker access",
            False,
            "its API is open to the network without TLS",
            "protect it with TLS, or use its socket",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
