"""`docker inspect`, of containers and images: JSON with the keys that tools read."""

from __future__ import annotations

from typing import Any

from openmodal.docker_cli import containers, images, listing, templates
from openmodal.docker_cli.containers import Container, utc
from openmodal.docker_cli.failures import Failure
from openmodal.docker_cli.flags import Flags

_NEVER = "0001-01-01T00:00:00Z"


def inspect(arguments: list[str]) -> int:
    """Tell what is known of containers and images; what is not there is said on stderr."""
    given = Flags("inspect", switches="size,s", texts="format,f type").parse(arguments)
    kind = given.text("type")
    return templates.tell(given, given.at_least(1, "inspect"), lambda word: _described(word, kind))


def _described(word: str, kind: str) -> dict[str, Any]:
    if kind not in ("", "container", "image"):
        raise Failure(f"{kind!r} is not a type that OpenModal has; it has container and image")
    if kind != "image":
        try:
            return container(containers.find(word))
        except Failure:
            if kind:
                raise
    if (found := images.described(word)) is not None:
        return found
    raise Failure(f"Error: No such {kind or 'object'}: {word}")


def container(found: Container) -> dict[str, Any]:
    """What docker tells of a container."""
    record, status = found.record, found.status
    path, *rest = record.argv or ("",)
    return {
        "Id": found.id,
        "Created": utc(status.created, nanoseconds=True),
        "Path": path,
        "Args": rest,
        "State": _state(found),
        "Image": f"sha256:{record.image_id or status.image}",
        "Name": f"/{found.name}",
        "RestartCount": 0,
        "Driver": "openmodal",
        "Platform": "linux",
        "Mounts": [_mount(bind) for bind in record.binds],
        "HostConfig": {
            "AutoRemove": record.auto_remove,
            "Binds": [*record.binds] or None,
            "Memory": record.memory,
            "NanoCpus": int(record.cpus * 1e9),
            "NetworkMode": record.network,
            "PortBindings": _ports(found),
            "Privileged": False,
        },
        "Config": {
            "Hostname": found.id[:12],
            "User": record.user,
            "Tty": record.tty,
            "OpenStdin": record.interactive,
            "Env": [],
            "Cmd": [*record.argv[len(record.entrypoint) :]] or None,
            "Image": record.image,
            "WorkingDir": record.workdir,
            "Entrypoint": [*record.entrypoint] or None,
            "Labels": dict(found.labels),
        },
        "NetworkSettings": {
            "IPAddress": "",
            "Gateway": "",
            "Ports": _ports(found),
            "Networks": {record.network: {"IPAddress": "", "Gateway": "", "NetworkID": ""}},
        },
    }


def _state(found: Container) -> dict[str, Any]:
    end, created = found.status.ended, found.state == "created"
    return {
        "Status": found.state,
        "Running": found.state in ("running", "paused"),
        "Paused": found.state == "paused",
        "Restarting": False,
        "OOMKilled": bool(end and end.reason == "oom"),
        "Dead": False,
        "Pid": 0,
        "ExitCode": found.exit_code,
        "Error": "",
        "StartedAt": _NEVER if created else utc(found.status.created, nanoseconds=True),
        "FinishedAt": utc(end.ended, nanoseconds=True) if end else _NEVER,
    }


def _ports(found: Container) -> dict[str, list[dict[str, str]]]:
    return {f"{port}/tcp": [{"HostIp": host, "HostPort": str(local)}] for host, local, port in listing.ports(found)}


def _mount(bind: str) -> dict[str, Any]:
    source, _, rest = bind.partition(":")
    target, _, options = rest.partition(":")
    is_bind = source.startswith(("/", ".", "~"))
    return {
        "Type": "bind" if is_bind else "volume",
        "Source": source,
        "Destination": target,
        "Mode": options,
        "RW": "ro" not in options.split(","),
        **({} if is_bind else {"Name": source}),
    }
