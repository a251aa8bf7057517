"""`docker ps`, `port` and `diff`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from openmodal.docker_cli import containers, templates
from openmodal.docker_cli.containers import Container, ago, find_running, utc
from openmodal.docker_cli.failures import Failure
from openmodal.docker_cli.flags import Flags, Given

_COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Labels": "LABELS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
    "Size": "SIZE",
}
_USUAL = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
_FILTERS = ("id", "name", "label", "status", "ancestor")
_KINDS = {"added": "A", "changed": "C", "deleted": "D"}


def ps(arguments: list[str]) -> int:
    """Show containers."""
    flags = Flags("ps", switches="all,a quiet,q no-trunc latest,l size,s", texts="filter,f format last,n")
    given = flags.parse(arguments)
    found = [*_filtered(given)]
    count = 1 if given.on("latest") else int(given.number("last") or -1)
    found = found[:count] if count > 0 else found
    rows = [_row(each, full=given.on("no-trunc")) for each in found]
    return templates.show(given, rows, _USUAL, _COLUMNS)


def _filtered(given: Given) -> Iterator[Container]:
    """The newest first, with all that the filters say."""
    wanted: dict[str, list[str]] = {}
    for text in given.all("filter"):
        name, _, value = text.partition("=")
        if name not in _FILTERS:
            raise Failure(f"invalid filter {name!r}; there are {', '.join(_FILTERS)}")
        wanted.setdefault(name, []).append(value)
    everything = given.on("all") or given.on("latest") or "last" in given.values or "status" in wanted
    for container in (*containers.running(), *(containers.ended() if everything else ())):
        shown = everything or container.state in ("running", "paused")
        if shown and all(_fits(container, name, values) for name, values in wanted.items()):
            yield container


def _fits(container: Container, name: str, values: list[str]) -> bool:
    """Whether it is as one of the values says; labels: as all of them do."""
    match name:
        case "id":
            return any(container.id.startswith(value) for value in values)
        case "name":
            return any(re.search(value.removeprefix("^/"), container.name) for value in values)
        case "status":
            return container.state in values
        case "ancestor":
            return any(container.record.image in (value, f"{value}:latest") for value in values)
        case _:
            pairs = (value.partition("=") for value in values)
            labels = container.labels
            return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def _row(container: Container, *, full: bool) -> dict[str, Any]:
    record, status = container.record, container.status
    command = " ".join(record.argv)
    labels = container.labels

    def label(key: str) -> str:
        return labels.get(key, "")

    return {
        "ID": container.id if full or not re.fullmatch("[0-9a-f]{40}", container.id) else container.id[:12],
        "Image": record.image or status.image[:12],
        "Command": f'"{command if full or len(command) <= 20 else command[:19] + "…"}"',
        "CreatedAt": utc(status.created),
        "RunningFor": f"{ago(time.time() - status.created)} ago",
        "Status": _status(container),
        "State": container.state,
        "Ports": ", ".join(f"{host}:{local}->{port}/tcp" for host, local, port in ports(container)),
        "Names": container.name,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "Label": label,
        "LocalVolumes": str(len(record.binds)),
        "Mounts": ",".join(bind.partition(":")[0] for bind in record.binds),
        "Networks": record.network,
        "Size": "0B",
    }


def _status(container: Container) -> str:
    end = container.status.ended
    if end:
        return f"Exited ({container.exit_code}) {ago(time.time() - end.ended)} ago"
    if container.state == "created":
        return "Created"
    up = f"Up {ago(time.time() - container.status.created)}"
    return f"{up} (Paused)" if container.state == "paused" else up


def ports(container: Container) -> Iterator[tuple[str, int, int]]:
    """Address and port of this machine, and the port in the container."""
    if container.status.ended is None:
        for port, local in container.status.tunnels:
            yield "127.0.0.1", local, port


def port(arguments: list[str]) -> int:
    """Show where ports of a container are reached."""
    word, *wanted = Flags("port").parse(arguments).at_least(1, "port")
    found = {f"{port}/tcp": f"{host}:{local}" for host, local, port in ports(find_running(word))}
    for text in wanted:
        name = text if "/" in text else f"{text}/tcp"
        if name not in found:
            raise Failure(f"Error: No public port {name!r} published for {word}")
        print(found[name])
    if not wanted:
        for name, place in sorted(found.items()):
            print(f"{name} -> {place}")
    return 0


def diff(arguments: list[str]) -> int:
    """Show which files of a container differ from its image's."""
    word = Flags("diff").parse(arguments).at_least(1, "diff")[0]
    from openmodal.cli._output import printable

    for change in find_running(word).sandbox.diff():
        print(_KINDS[change.kind], printable(change.path))
    return 0
