"""Compose files, for frameworks that describe environments by them: one service is one sandbox.

What a sandbox would do otherwise than the file says is refused by name and never left out: an
evaluation must be what it describes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openmodal.errors import InvalidError, UnsupportedError
from openmodal.image import Image
from openmodal.integrations import image_from

Service = dict[str, Any]

EXTENSION = "x-openmodal"
"""A service's further arguments of `Sandbox.create`: runtime, timeout, allow lists."""

_KNOWN = "build command cpus deploy entrypoint environment image mem_limit network_mode user working_dir".split()
# They change nothing: a sandbox has an init and a stdin, and images are cached by their content.
_NEEDLESS = "expose init mem_reservation pull_policy stdin_open stop_grace_period tty".split()
_BUILD = {"context", "dockerfile", "no_cache", "pull"}
_NETWORKS: dict[str, dict[str, Any]] = {"none": {"block_network": True}, "bridge": {}, "default": {}}
_VARIABLE = re.compile(r"(?<!\$)(?:\$\$)*(\$[A-Za-z_{][A-Za-z0-9_]*)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)b?", re.IGNORECASE)
_MEBIBYTES = {"": 2**-20, "b": 2**-20, "k": 2**-10, "m": 1, "g": 2**10}


@dataclass(frozen=True)
class Plan:
    """A sandbox to be made: image, main command, and further arguments of `Sandbox.create`."""

    image: Image
    argv: tuple[str, ...]
    options: dict[str, Any]


def from_compose(config: Mapping[str, Any], folder: str) -> Plan:
    """What a parsed compose file describes; its relative paths count from `folder`.

    Raises:
        UnsupportedError: it has several services, or something that a sandbox does not have.
        InvalidError: a value is none that compose files have.
    """
    services: dict[str, Service] = config.get("services") or {}
    if len(services) != 1:
        names = ", ".join(services) or "none"
        raise UnsupportedError(
            f"the compose file has {len(services)} services ({names}), and sandboxes do not see each other yet; "
            "leave one service in it, or run this with Docker itself"
        )
    for part in ("volumes", "networks", "secrets", "configs"):
        if config.get(part):
            raise _unsupported("the compose file", part)
    ((name, service),) = services.items()
    return _plan(f"service {name!r}", service, os.path.abspath(folder))


def _plan(name: str, service: Service, folder: str) -> Plan:
    service = _unescaped(name, service)
    given = {key for key, value in service.items() if value not in (None, [], {}) and not key.startswith("x-")}
    for unknown in sorted(given - {*_KNOWN, *_NEEDLESS}):
        raise _unsupported(name, unknown)
    image = _image(name, service, folder)
    if workdir := service.get("working_dir"):
        image = image.workdir(workdir)
    if user := service.get("user"):
        image = image.user(str(user))
    if entrypoint := _words(service.get("entrypoint")):
        image = image.entrypoint(entrypoint).cmd([])
    options = {**_limits(name, service), **_network(name, service), "env": _environment(service.get("environment"))}
    return Plan(image, _words(service.get("command")), {**options, **(service.get(EXTENSION) or {})})


def _unescaped(name: str, service: Service) -> Service:
    """The service with each `$$` as the dollar that it stands for."""
    text = json.dumps(service)
    if found := _VARIABLE.search(text):
        raise _unsupported(name, f"the variable {found[1]}")
    plain: Service = json.loads(text.replace("$$", "$"))
    return plain


def _image(name: str, service: Service, folder: str) -> Image:
    build = service.get("build")
    if build is None:
        if not (reference := service.get("image")):
            raise InvalidError(f"{name} has neither build nor image; write one of them")
        return image_from(reference)
    build = {"context": build} if isinstance(build, str) else build
    for unknown in sorted(set(build) - _BUILD):
        raise _unsupported(f"build of {name}", unknown)
    context = os.path.join(folder, build.get("context") or ".")
    return image_from(os.path.join(context, build.get("dockerfile") or "Dockerfile"), context_dir=context)


def _limits(name: str, service: Service) -> dict[str, Any]:
    resources = (service.get("deploy") or {}).get("resources") or {}
    if (resources.get("reservations") or {}).get("devices"):
        raise _unsupported(name, "reservations of devices")
    limits = resources.get("limits") or {}
    cpus, memory = service.get("cpus") or limits.get("cpus"), service.get("mem_limit") or limits.get("memory")
    found: dict[str, Any] = {"cpu": float(cpus)} if cpus else {}
    return {**found, "memory": _mebibytes(name, memory)} if memory else found


def _mebibytes(name: str, size: object) -> int:
    if not (found := _SIZE.fullmatch(str(size).strip())):
        raise InvalidError(f"{name} has the limit of memory {size!r}; write it like '512m' or '2g'")
    return round(float(found[1]) * _MEBIBYTES[found[2].lower()])


def _network(name: str, service: Service) -> dict[str, Any]:
    mode = service.get("network_mode") or "default"
    if mode not in _NETWORKS:
        raise _unsupported(name, f"network_mode {mode!r}")
    return _NETWORKS[mode]


def _words(command: str | list[str] | None) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else command or ())


def _environment(given: list[str] | dict[str, Any] | None) -> dict[str, str]:
    """Variables; one without a value has this process's, if there is one."""
    if isinstance(given, list):
        given = {name: value if equals else None for name, equals, value in (text.partition("=") for text in given)}
    found = {name: os.environ.get(name) if value is None else str(value) for name, value in (given or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _unsupported(where: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where} has {what}, which a sandbox of OpenModal does not have; leave it out, or run this with Docker itself"
    )


__all__ = ["EXTENSION", "Plan", "from_compose"]
