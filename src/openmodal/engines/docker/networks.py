"""Networks that sandboxes share: for each a bridge of the daemon without a way out, whose names the
daemon serves. A sandbox that reaches more is on the daemon's usual bridge, too.

It is made for its first sandbox and removed with its last. Whoever makes a sandbox holds the
network's lock until its container is in it, so nobody removes it meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from openmodal._spec import Info, Network
from openmodal.build.locks import Lock, lock, try_lock
from openmodal.engines import machine
from openmodal.engines.docker.daemon import Api, ApiError, ConflictError, Daemon, MissingError

HOME = "openmodal.network.home"
_PREFIX = "openmodal-"
_EVERYTHING = ipaddress.IPv4Network("0.0.0.0/0")
# Whom the daemon asks for names that are no member's: nobody listens there.
_NOBODY = "127.0.0.1"


class Membership:
    """What a new container needs for the network that its sandbox shares, if it does. From `begin`
    to the end of the `with` block nobody removes that network."""

    def __init__(self, home: str, wanted: Network) -> None:
        self._home, self._wanted = home, wanted
        self._name = _named(home, wanted.shared)
        self._held: Lock | None = None
        self._over = False

    def __enter__(self) -> Membership:
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        if self._held:
            self._held.close()

    def begin(self, daemon: Daemon) -> None:
        """Make the network, if it is not there."""
        if self._wanted.shared:
            self._held, self._pool = _hold(daemon, self._home, self._name)
        if self._over and self._held:  # whoever wanted it was cancelled
            self._held.close()

    def asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """What `POST /containers/create` is given then. The network is the container's only one, if
        it reaches nothing else; else the container joins it before it starts (`join`)."""
        if not self._held:
            return body
        host = body["HostConfig"] | {"Dns": list(self.servers())}
        if not self._wanted.block:
            return body | {"HostConfig": host}
        ends = {"EndpointsConfig": {self._name: self._endpoint(body["Hostname"])}}
        return body | {"HostConfig": host | {"NetworkMode": self._name}, "NetworkingConfig": ends}

    def join(self, api: Api, id: str, hostname: str) -> None:
        """Take a container into it that does not start with it alone."""
        if self._held and not self._wanted.block:
            request = {"Container": id, "EndpointConfig": self._endpoint(hostname)}
            api.post(f"/networks/{self._name}/connect", request)

    def servers(self) -> Sequence[str]:
        """Whom the daemon asks for names that are no member's."""
        if not self._held:
            return ()
        return (_NOBODY,) if self._wanted.block else machine.resolvers()

    def denied(self, addresses: Sequence[str]) -> Sequence[str]:
        """What the container must not reach: these addresses, or all if it is blocked, but for the
        other members."""
        if not self._held:
            return () if self._wanted.block else addresses
        subnet, gateway = ipaddress.IPv4Network(self._pool["Subnet"]), self._pool.get("Gateway")
        left = [_EVERYTHING] if self._wanted.block else map(ipaddress.IPv4Network, addresses)
        outside = [part for network in left for part in _without(network, subnet)]
        gateways = [ipaddress.IPv4Network(gateway)] if gateway else []
        return [str(network) for network in ipaddress.collapse_addresses([*outside, *gateways])]

    def _endpoint(self, hostname: str) -> dict[str, Any]:
        return {"Aliases": [*self._wanted.aliases, hostname]}


def _hold(daemon: Daemon, home: str, name: str) -> tuple[Lock, Mapping[str, str]]:
    """A network's lock and addresses; it is made if it is not there."""
    file = _lock_file(home, name)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    while True:
        held = lock(file)
        try:
            with daemon.open() as api:
                with contextlib.suppress(ConflictError):
                    body = {"Name": name, "CheckDuplicate": True, "Internal": True, "Labels": {HOME: home}}
                    api.post("/networks/create", body)
                held.share()
                with contextlib.suppress(MissingError):  # removed while nobody held it
                    return held, api.get(f"/networks/{name}")["IPAM"]["Config"][0]
        except BaseException:
            held.close()
            raise
        held.close()


def drop(api: Api, home: str, name: str) -> bool:
    """Remove a network that nobody is in; whether it was."""
    held = try_lock(_lock_file(home, name))
    if not held:
        return False
    with held:
        try:
            api.delete(f"/networks/{name}")
        except MissingError:
            pass
        except ApiError:  # somebody is in it
            return False
        _lock_file(home, name).unlink(missing_ok=True)
    return True


def leave(api: Api, home: str, wanted: str) -> None:
    """What is to be done when a container of the network is gone."""
    if wanted:
        drop(api, home, _named(home, wanted))


def unused(api: Api, home: str) -> Sequence[str]:
    """The networks of one state folder that nobody is in."""
    names = [item["Name"] for item in api.get("/networks", filters={"label": [f"{HOME}={home}"]})]
    return [name for name in names if not api.get(f"/networks/{name}").get("Containers")]


def is_ours(name: str) -> bool:
    """Whether a network of the daemon is one of these."""
    return name.startswith(_PREFIX)


def told(found: Mapping[str, Any], info: Info) -> Info:
    """What is told of a described container, also if it reaches the members of a network only."""
    names = found["NetworkSettings"]["Networks"]
    return replace(info, network="neighbours") if names and all(map(is_ours, names)) else info


def _without(network: ipaddress.IPv4Network, hole: ipaddress.IPv4Network) -> Sequence[ipaddress.IPv4Network]:
    if network.subnet_of(hole):
        return []
    return [*network.address_exclude(hole)] if hole.subnet_of(network) else [network]


def _named(home: str, wanted: str) -> str:
    return _PREFIX + hashlib.sha256(f"{home}\0{wanted}".encode()).hexdigest()[:20]


def _lock_file(home: str, name: str) -> Path:
    return Path(home) / "networks" / name
