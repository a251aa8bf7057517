"""What a container is asked for: the flags of `docker run` as arguments of `Sandbox.create`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from openmodal.docker_cli import networks
from openmodal.docker_cli.failures import Failure, UsageError
from openmodal.docker_cli.flags import Flags, Given

if TYPE_CHECKING:
    from openmodal import HostDirectory, Volume

WITHOUT_EFFECT = (
    "cap-drop cgroupns cpu-shares,c expose health-cmd health-interval health-retries health-timeout hostname,h ipc isolation "
    "log-driver log-opt memory-reservation memory-swap pids-limit security-opt shm-size stop-signal stop-timeout ulimit"
)
"""A sandbox has these in its own way, whatever is said."""

REFUSED = {
    "add-host": "write the line into /etc/hosts with `docker exec`",
    "cap-add": "leave it out: root of a sandbox has the capabilities that docs/security.md lists",
    "device": "leave it out: a sandbox has no devices of this machine",
    "dns": "leave it out: a sandbox asks this machine's name servers",
    "link": "give both containers the same --network",
    "pid": "leave it out: a sandbox sees no processes but its own",
    "privileged": "leave it out: nothing in a sandbox has rights on this machine",
    "publish-all": "name each port with -p",
    "read-only": "leave it out: all files of a sandbox go with it",
    "tmpfs": "leave it out: all files of a sandbox go with it",
    "userns": "leave it out: a sandbox has ids of its own",
    "volumes-from": "name each volume with -v",
}

FLAGS = Flags(
    "run",
    switches="detach,d init interactive,i no-healthcheck oom-kill-disable privileged publish-all,P quiet,q read-only rm "
    "sig-proxy tty,t",
    texts="add-host cap-add cidfile cpus device dns entrypoint env,e env-file gpus label,l link memory,m mount name net network "
    f"network-alias pid platform publish,p pull restart runtime tmpfs user,u userns volume,v volumes-from workdir,w {WITHOUT_EFFECT}",
)

_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_OUTSIDE = ("", "bridge", "default", "host")


def refuse(given: Given) -> None:
    """Say what a sandbox does not have, before anything is done."""
    if len(asked := given.all("network") + given.all("net")) > 1:
        raise Failure("a sandbox is in one network; name one with --network", 125)
    if asked and asked[0].startswith("container:"):
        raise Failure("no two sandboxes share an address; give both the same --network NAME", 125)
    for name, remedy in REFUSED.items():
        if name in given.values and given.text(name) != "false":
            raise Failure(f"a sandbox has no --{name}; {remedy}", 125)
    if given.text("restart", "no") != "no":
        raise Failure("a sandbox is not started again when it has ended; leave --restart out", 125)
    if asked == ["host"]:
        print("docker: a sandbox has a network of its own, also with --network host", file=sys.stderr)
    check_platform(given.text("platform"))


def check_platform(asked: str) -> None:
    """Refuse what this machine does not run."""
    if asked and asked.split("/")[:2] not in (["linux", architecture()], [architecture()], ["linux"]):
        raise Failure(f"this machine runs linux/{architecture()}, not {asked}; leave --platform out", 125)


def architecture() -> str:
    """This machine's, as docker calls it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def arguments(given: Given) -> dict[str, Any]:
    """The arguments of `Sandbox.create`."""
    found: dict[str, Any] = {
        "env": environment(given),
        **_reached(given),
        "ports": dict(_port(text) for text in given.all("publish")),
        "volumes": dict(_volume(text) for text in _mounts(given)),
        "cpu": given.number("cpus"),
        "memory": memory(given.text("memory")),
    }
    if "gpus" in given.values:
        count = given.text("gpus")
        found["gpu"] = "any" if count == "all" else int(count) if count.isdecimal() else count
    if runtime := given.text("runtime"):
        found["runtime"] = {"runsc": "gvisor", "runc": "native"}.get(runtime, runtime)
    return found


def network(given: Given) -> str:
    """Which network: "none", "bridge", or one that `docker network create` has made."""
    name = given.text("network", given.text("net"))
    return "bridge" if name in _OUTSIDE else name


def _reached(given: Given) -> dict[str, Any]:
    """The arguments of `Sandbox.create` that say what is reached."""
    name, aliases = network(given), given.all("network-alias")
    if name in networks.PREDEFINED:
        if aliases:
            raise Failure("--network-alias is a name in a network; say which with --network", 125)
        return {"block_network": name == "none"}
    if own := given.text("name"):
        aliases = [*aliases, own]
    return {"block_network": networks.is_internal(name, 125), "network": name, "network_alias": aliases}


def environment(given: Given) -> dict[str, str]:
    """What --env-file and -e say; a name alone takes this process's value."""
    pairs: dict[str, str] = {}
    for text in (*_lines(given.all("env-file")), *given.all("env")):
        name, equals, value = text.partition("=")
        if equals:
            pairs[name] = value
        elif name in os.environ:
            pairs[name] = os.environ[name]
    return pairs


def labels(given: Given) -> dict[str, str]:
    """What --label says."""
    return {name: value for name, _, value in (text.partition("=") for text in given.all("label"))}


def memory(text: str) -> int | None:
    """MiB, of docker's bytes, 512m, 1.5g."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([bkmgt]?)(?:i?b)?", text.lower())
    if not found:
        raise UsageError(f"invalid argument {text!r} for -m, --memory: write 512m or 2g")
    return int(float(found[1]) * _SIZES[found[2]]) >> 20


def _lines(files: list[str]) -> Iterator[str]:
    for file in files:
        with open(file, encoding="utf-8") as lines:
            yield from (line for raw in lines if (line := raw.strip("\r\n").lstrip()) and line[0] != "#")


def _port(text: str) -> tuple[int, int]:
    """`[[ADDRESS:]LOCAL:]PORT[/tcp]` as the port and the local one, 0 for any."""
    ports, _, protocol = text.partition("/")
    *local, port = ports.split(":")[-2:]
    if protocol not in ("", "tcp") or not port.isdecimal() or not (local or ["0"])[0].isdecimal() | (local == [""]):
        raise UsageError(f"invalid argument {text!r} for -p, --publish: write LOCAL:PORT, of TCP, one for each port")
    return int(port), int((local or ["0"])[0] or 0)


def _mounts(given: Given) -> Iterator[str]:
    """What -v and --mount ask for, as -v writes it."""
    yield from given.all("volume")
    for text in given.all("mount"):
        words = {name: value for name, _, value in (word.partition("=") for word in text.split(","))}
        source = words.get("source", words.get("src", ""))
        target = words.get("target", words.get("destination", words.get("dst", "")))
        if words.get("type", "volume") not in ("bind", "volume") or not target:
            raise UsageError(f"invalid argument {text!r} for --mount: write type=bind,source=/here,target=/there")
        read_only = {"readonly", "ro"} & words.keys()
        yield f"{source}:{target}:ro" if read_only else f"{source}:{target}"


def _volume(text: str) -> tuple[str, Volume | HostDirectory]:
    """`SOURCE:TARGET[:ro]` as the target and what is mounted there."""
    from openmodal import HostDirectory, Volume

    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    if not target:
        raise UsageError(
            f"invalid argument {text!r} for -v, --volume: write SOURCE:TARGET; a sandbox's own files need none"
        )
    read_only = "ro" in options.split(",")
    if not source.startswith(("/", ".", "~")):
        volume = Volume.from_name(source, create_if_missing=True)
        return target, volume.read_only() if read_only else volume
    if os.path.isfile(source):
        raise Failure(f"{source} is a file, and a sandbox sees folders only; copy it with `docker cp`", 125)
    os.makedirs(source, exist_ok=True)
    is_roots = not read_only and os.stat(source).st_uid == 0
    return target, HostDirectory(source, read_only, owner="root" if is_roots else None)


def described(given: Given) -> Mapping[str, Any]:
    """What `docker inspect` shall tell of it later."""
    return {
        "labels": labels(given),
        "user": given.text("user"),
        "workdir": given.text("workdir"),
        "network": network(given),
        "memory": (memory(given.text("memory")) or 0) << 20,
        "cpus": given.number("cpus") or 0.0,
        "binds": tuple(given.all("volume")),
        "interactive": given.on("interactive"),
        "tty": given.on("tty"),
        "auto_remove": given.on("rm"),
    }
