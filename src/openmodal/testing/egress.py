"""Allow lists: what is on them is reached, what is not is not, and the log tells."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest

from openmodal.engines import Engine
from openmodal.errors import StdinClosedError, UnsupportedError
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, promise

LISTS = {"network_allowlists": "outbound_domain_allowlist", "network_lists": "outbound_cidr_allowlist"}
"""The arguments, by the promises that an engine which takes them keeps."""


class TestAllowLists:
    def test_they_are_kept_or_refused_and_never_ignored(self, create: Create, engine: Engine) -> None:
        for promised, name in LISTS.items():
            if promised not in engine.lacks:
                create(**{name: []})
                continue
            with pytest.raises(UnsupportedError, match="allow lists"):
                create(**{name: []})

    @promise("network_allowlists")
    def test_a_listed_name_is_reached_and_no_other(self, create: Create, outbound: tuple[str, int]) -> None:
        host, port = outbound
        sandbox = create(outbound_domain_allowlist=[host])
        assert reaches(sandbox, host, port)
        assert not reaches(sandbox, f"not-listed.{host}", port, at=host)
        assert not reaches(create(outbound_domain_allowlist=[f"*.{host}"]), host, port)

    @promise("network_lists")
    def test_a_listed_network_is_reached_and_no_other(self, create: Create, outbound: tuple[str, int]) -> None:
        host, port = outbound
        address = socket.gethostbyname(host)
        assert reaches(create(outbound_cidr_allowlist=[f"{address}/32"]), host, port, at=address)
        elsewhere = create(outbound_cidr_allowlist=["192.0.2.0/24"])
        assert not reaches(elsewhere, host, port, at=address)
        assert not reaches(elsewhere, host, port)

    @promise("network_allowlists")
    def test_an_empty_list_of_domains_allows_nothing(self, create: Create, outbound: tuple[str, int]) -> None:
        _reaches_nothing(create(outbound_domain_allowlist=[]), *outbound)

    @promise("network_lists")
    def test_an_empty_list_of_networks_allows_nothing(self, create: Create, outbound: tuple[str, int]) -> None:
        _reaches_nothing(create(outbound_cidr_allowlist=[]), *outbound)

    @promise("network_allowlists")
    def test_the_log_tells_what_was_allowed_and_what_was_denied(
        self, create: Create, outbound: tuple[str, int]
    ) -> None:
        host, port = outbound
        sandbox = create(outbound_domain_allowlist=[host])
        reaches(sandbox, host, port)
        reaches(sandbox, f"not-listed.{host}", port, at=host)
        assert {(record.asked, record.allowed) for record in sandbox.egress_log() if record.address} == {
            (host, True),
            (f"not-listed.{host}", False),
        }
        sandbox.terminate()
        assert sandbox.egress_log()


def _reaches_nothing(sandbox: Sandbox, host: str, port: int) -> None:
    for at in (host, socket.gethostbyname(host)):
        assert not reaches(sandbox, host, port, at=at)


def reaches(sandbox: Sandbox, name: str, port: int, *, at: str | None = None) -> bool:
    """Whether a server answers a request for that name, of HTTP or (port 443) TLS, sent to the address or name `at`."""
    text = (
        client_hello(name) if port == 443 else f"HEAD / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
    )
    process = sandbox.spawn("timeout", "30", "nc", at or name, str(port), text=False)
    with contextlib.suppress(StdinClosedError):  # refused already
        process.stdin.write(text)
        process.stdin.drain()  # and stays open: some servers take its end for the client's
    answer: bytes = process.stdout.read_some()
    process.kill()
    process.wait()
    return (
        answer[:1] == b"\x16" if port == 443 else answer.startswith(b"HTTP/1.") and not answer[8:].startswith(b" 403 ")
    )


def client_hello(name: str | None) -> bytes:
    """What a TLS client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


__all__ = ["TestAllowLists", "client_hello", "reaches"]
