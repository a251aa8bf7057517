"""Compose files, for frameworks that describe environments by them: each service is a sandbox, and
those of one file share a network, in which each has its service's name.

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

_KNOWN = "build command cpus depends_on deploy entrypoint environment hostname image mem_limit network_mode user working_dir".split()
# They change nothing: a sandbox has an init and a stdin, and images are cached by their content.
_NEEDLESS = "expose init mem_reservation pull_policy stdin_open stop_grace_period tty".split()
_BUILD = {"context", "dockerfile", "no_cache", "pull"}
_STARTED = {"condition": "service_started", "required": True, "restart": False}
_NETWORKS: dict[str, dict[str, Any]] = {"none": {"block_network": True}, "bridge": {}, "default": {}}
_VARIABLE = re.compile(r"(?<!\$)(?:\$\$)*(\$[A-Za-z_{][A-Za-z0-9_]*)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)b?", re.IGNORECASE)
_MEBIBYTES = {"": 2**-20, "b": 2**-20, "k": 2**-10, "m": 1, "g": 2**10}


@dataclass(frozen=True)
class Plan:
    """A sandbox to be made: image, main command, and further arguments of `Sandbox.create`.
    `chosen`: it is the one that tools use if they name none (`x-default`)."""

    image: Image
    argv: tuple[str, ...]
    options: dict[str, Any]
    chosen: bool = False


def from_compose(config: Mapping[str, Any], folder: str) -> dict[str, Plan]:
    """What the services of a parsed compose file describe, each after those that it depends on; its
    relative paths count from `folder`.

    If there are several, each but for those without a network has a `network_alias`: whoever makes
    them gives them a `network`.

    Raises:
        UnsupportedError: it has something that a sandbox does not have.
        InvalidError: a value is none that compose files have.
    """
    services: dict[str, Service] = config.get("services") or {}
    if not services:
        raise InvalidError("the compose file has no services; write one")
    for part in ("volumes", "secrets", "configs"):
        if config.get(part):
            raise _unsupported("the compose file", part)
    inside = {"block_network": True} if _is_internal(config.get("networks") or {}) else {}
    plans: dict[str, Plan] = {}
    for name in _in_order(services):
        plan = _plan(f"service {name!r}", services[name], os.path.abspath(folder))
        if len(services) > 1 and "block_network" not in plan.options:
            names = dict.fromkeys((name, services[name].get("hostname") or name))
            plan.options.update(inside, network_alias=tuple(names))
        elif len(services) == 1:
            plan.options.update(inside)
        plans[name] = plan
    return plans


def _is_internal(networks: Mapping[str, Any]) -> bool:
    """Whether the only network that there may be, the default one, has no way out."""
    settings = {key: value for key, value in (networks.get("default") or {}).items() if value not in (None, False, {})}
    for unknown in sorted({*networks} - {"default"}) + sorted({*settings} - {"internal", "name", "driver"}):
        raise _unsupported("networks of the compose file", unknown)
    return bool(settings.get("internal"))


def _in_order(services: Mapping[str, Service]) -> list[str]:
    """The names of the services, each after those that it depends on.

    Raises:
        UnsupportedError: one is to wait for more than the start of another.
        InvalidError: they depend on each other, or on none that is there.
    """
    left = {name: _needs(name, service.get("depends_on") or {}) for name, service in services.items()}
    order: list[str] = []
    while left:
        ready = [name for name, needs in left.items() if needs <= {*order}]
        if not ready:
            raise InvalidError(f"services depend on each other, or on one that is not there: {', '.join(left)}")
        order += ready
        left = {name: needs for name, needs in left.items() if name not in ready}
    return order


def _needs(name: str, given: list[str] | dict[str, Any]) -> set[str]:
    for other, how in given.items() if isinstance(given, dict) else ():
        if any(_STARTED.get(key) != value for key, value in (how or {}).items()):
            raise _unsupported(f"service {name!r}", f"another condition on {other!r} than service_started")
    return {*given}


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
    options |= service.get(EXTENSION) or {}
    return Plan(image, _words(service.get("command")), options, chosen=bool(service.get("x-default")))


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
