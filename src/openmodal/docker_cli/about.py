"""`docker version` and `docker info`."""

from __future__ import annotations

import os
from typing import Any

from openmodal import __version__
from openmodal.docker_cli import templates
from openmodal.docker_cli.asked import architecture
from openmodal.docker_cli.flags import Flags
from openmodal.engines import choose

VERSION = f"28.0.0+openmodal.{__version__}"
"""Whose command line this is, for tools that want a new one, and of what."""


def version(arguments: list[str]) -> int:
    """Show versions. It asks for the engine, as docker asks its daemon."""
    given = Flags("version", switches="short", texts="format,f").parse(arguments)
    if given.on("short"):
        print(f"Docker version {VERSION}, build openmodal")
        return 0
    found = _versions()
    if wanted := given.text("format"):
        print(templates.as_json(found) if wanted == "json" else templates.Template(wanted).render(found))
        return 0
    for name, values in found.items():
        print(f"{name}:")
        for key in ("Version", "ApiVersion", "Os", "Arch"):
            print(f" {f'{key}:':<12}{values[key]}")
    return 0


def _versions() -> dict[str, dict[str, Any]]:
    both = {"Version": VERSION, "ApiVersion": "1.48", "Os": "linux", "Arch": architecture(), "GitCommit": "openmodal"}
    engine = choose(None).name
    return {
        "Client": {**both, "Context": "default", "DefaultAPIVersion": "1.48", "Platform": {"Name": "OpenModal"}},
        "Server": {
            **both,
            "MinAPIVersion": "1.24",
            "KernelVersion": os.uname().release,
            "Platform": {"Name": f"OpenModal, engine {engine}"},
            "Experimental": False,
        },
    }


def info(arguments: list[str]) -> int:
    """Show what this machine and its containers are."""
    from openmodal.docker_cli import containers

    given = Flags("info", texts="format,f").parse(arguments)
    states = [each.state for each in containers.running()]
    found: dict[str, Any] = {
        "ID": "openmodal",
        "Name": os.uname().nodename,
        "ServerVersion": VERSION,
        "Containers": len(states),
        "ContainersRunning": states.count("running"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": 0,
        "Driver": "openmodal",
        "OperatingSystem": f"OpenModal, engine {choose(None).name}",
        "OSType": "linux",
        "Architecture": os.uname().machine,
        "KernelVersion": os.uname().release,
        "NCPU": os.cpu_count(),
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "SecurityOptions": ["name=seccomp"],
        "Runtimes": {"runc": {}, "runsc": {}},
        "DefaultRuntime": "runc",
    }
    if wanted := given.text("format"):
        print(templates.as_json(found) if wanted == "json" else templates.Template(wanted).render(found))
        return 0
    for key, value in found.items():
        print(f"{key}: {templates.shown(value)}")
    return 0
