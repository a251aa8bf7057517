"""What a sandbox may reach: plain data and questions about it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class Denied(Exception):
    """Something that the sandbox may not do, and why."""

    def __init__(self, reason: str, asked: str = "") -> None:
        super().__init__(reason)
        self.asked = asked


@dataclass(frozen=True)
class Policy:
    """What a sandbox may reach.

    `networks` and `domains` are the user's lists. Names may not lead to `never` and `private`.
    `resolvers` are the name servers to ask. `mirrors` are addresses with a port that may be reached
    wherever they are: a step of an image may need them.
    """

    networks: tuple[IPv4Network, ...]
    domains: frozenset[str]
    never: tuple[IPv4Network, ...]
    private: tuple[IPv4Network, ...]
    resolvers: tuple[str, ...]
    mirrors: frozenset[tuple[IPv4Address, int]] = frozenset()

    def reaches(self, address: IPv4Address, port: int | None) -> bool:
        """Whether the list of networks allows the address at this port (None: at some).

        A private one must be meant: 0.0.0.0/0 does not open the user's own network.
        """
        if any(mirror == address and port in (None, at) for mirror, at in self.mirrors):
            return True
        matching = [network for network in self.networks if address in network]
        if not matching or _within(address, self.never):
            return False
        zones = [zone for zone in self.private if address in zone]
        return not zones or any(network.subnet_of(zone) for network in matching for zone in zones)

    def allows(self, name: str) -> bool:
        """Whether the list of domains allows a normal name.

        `*.example.com` is every name below example.com, but not example.com itself. `*` is every
        name; only steps of images have it. A sandbox that reaches all addresses may ask for all
        names: a list of names would no longer keep anything in.
        """
        if any(network.prefixlen == 0 for network in self.networks):
            return True
        labels = name.split(".")
        parents = (".".join(labels[n:]) for n in range(1, len(labels)))
        return "*" in self.domains or name in self.domains or any(f"*.{parent}" in self.domains for parent in parents)

    def usable(self, addresses: Sequence[str], port: int | None) -> list[str]:
        """The addresses of an allowed name that may be connected to at this port (None: at any)."""
        return [text for text in addresses if self._public(IPv4Address(text)) or self.reaches(IPv4Address(text), port)]

    def _public(self, address: IPv4Address) -> bool:
        return not _within(address, (*self.never, *self.private))


def load(text: str | bytes) -> Policy:
    """The policy that the SDK wrote (`engines/embedded/egress.py`).

    Raises:
        ValueError, KeyError: it did not.
    """
    fields: dict[str, list[str]] = json.loads(text)
    return Policy(
        networks=_networks(fields["networks"]),
        domains=frozenset(fields["domains"]),
        never=_networks(fields["never"]),
        private=_networks(fields["private"]),
        resolvers=tuple(fields["resolvers"]),
        mirrors=frozenset(map(_mirror, fields["mirrors"])),
    )


def normal(name: str) -> str:
    """A name as the list has it: lower case, without the root's dot.

    Raises:
        Denied: this is no name of a host, or it is an address.
    """
    found = name.lower().removesuffix(".")
    if not _NAME.fullmatch(found):
        raise Denied("not a host name", _shown(name))
    if found.replace(".", "").isdigit():
        raise Denied("an address, not a name", found)
    return found


def _shown(name: str) -> str:
    return ascii(name[:100])[1:-1]


def _networks(texts: Sequence[str]) -> tuple[IPv4Network, ...]:
    """Sandboxes have no IPv6: its networks lead nowhere."""
    return tuple(IPv4Network(text) for text in texts if ":" not in text)


def _mirror(text: str) -> tuple[IPv4Address, int]:
    address, _, port = text.partition(":")
    return IPv4Address(address), int(port)


def _within(address: IPv4Address, networks: Sequence[IPv4Network]) -> bool:
    return any(address in network for network in networks)
