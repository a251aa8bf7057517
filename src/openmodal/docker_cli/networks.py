"""`docker network`: names under which containers find each other.

A network of sandboxes is there as long as one of them is, and nobody makes it (docs/network.md). So
all that is kept is a file with its name, which tells `docker run` that somebody asked for it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from openmodal import _config
from openmodal._files import made
from openmodal.docker_cli import containers, templates
from openmodal.docker_cli.failures import Failure, UsageError, daemon_says
from openmodal.docker_cli.flags import Flags

PREDEFINED = ("bridge", "host", "none")

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_INTERNAL = "internal"
_COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE"}
_USUAL = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"


def is_internal(name: str, code: int = 1) -> bool:
    """Whether a network leads nowhere else.

    Raises:
        Failure: nobody has made it.
    """
    file = _folder() / name
    if not _NAME.fullmatch(name) or not file.exists():
        raise daemon_says(f"network {name} not found", code)
    return file.read_text("utf-8") == _INTERNAL


def create(arguments: list[str]) -> int:
    """Make a network; containers join it when they are made."""
    given = Flags("network create", switches="attachable internal", texts="driver,d").parse(arguments)
    name = given.at_least(1, "network create")[0]
    if given.text("driver", "bridge") != "bridge":
        raise Failure(f"OpenModal has no network driver {given.text('driver')!r}; leave --driver out")
    if name in PREDEFINED:
        raise daemon_says(f"operation is not permitted on predefined {name} network")
    if not _NAME.fullmatch(name):
        raise UsageError(f"invalid network name {name!r}: write 1 to 63 letters, digits, '_', '.' and '-'")
    try:
        with open(Path(made(_folder())) / name, "x", encoding="utf-8") as file:
            file.write(_INTERNAL if given.on("internal") else "")
    except FileExistsError:
        raise daemon_says(f"network with name {name} already exists") from None
    print(_id(name))
    return 0


def rm(arguments: list[str]) -> int:
    """Forget networks that no container is in."""

    def one(name: str) -> str:
        is_internal(name)
        if inside := [each.name for each in containers.running() if each.record.network == name]:
            raise daemon_says(f"error while removing network: network {name} has active endpoints: {', '.join(inside)}")
        (_folder() / name).unlink(missing_ok=True)
        return name

    return containers.each(Flags("network rm", switches="force,f").parse(arguments).at_least(1, "network rm"), one)


def list_(arguments: list[str]) -> int:
    """Show networks."""
    given = Flags("network ls", switches="quiet,q no-trunc", texts="filter,f format").parse(arguments)
    wanted = given.text("filter")
    if not wanted.startswith("name=") and wanted:
        raise Failure(f"invalid filter {wanted!r}; there is name=")
    names = (*PREDEFINED, *(sorted(file.name for file in _folder().iterdir()) if _folder().exists() else ()))
    rows = [
        {
            "ID": _id(name)[: None if given.on("no-trunc") else 12],
            "Name": name,
            "Driver": _driver(name),
            "Scope": "local",
        }
        for name in names
        if wanted.removeprefix("name=") in name
    ]
    return templates.show(given, rows, _USUAL, _COLUMNS)


def inspect(arguments: list[str]) -> int:
    """Tell what is known of networks; what is not there is said on stderr."""
    given = Flags("network inspect", texts="format,f").parse(arguments)
    return templates.tell(given, given.at_least(1, "network inspect"), _described)


def _described(name: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Id": _id(name),
        "Scope": "local",
        "Driver": _driver(name),
        "Internal": name not in PREDEFINED and is_internal(name),
        "Containers": {each.id: {"Name": each.name} for each in containers.running() if each.record.network == name},
    }


def _driver(name: str) -> str:
    return {"host": "host", "none": "null"}.get(name, "bridge")


def _id(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()


def _folder() -> Path:
    return _config.state() / "docker-networks"
