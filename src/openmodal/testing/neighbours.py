"""Networks that sandboxes share: members find and reach each other, nobody else reaches them."""

from __future__ import annotations

import socket

import pytest

from openmodal.errors import InvalidError
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually, promise
from openmodal.testing.limits import addresses, connects, own_addresses, server

PORT = 7777


def serving(sandbox: Sandbox) -> Sandbox:
    """The sandbox, which serves files."""
    sandbox.spawn("httpd", "-f", "-p", str(PORT), "-h", "/etc")
    eventually(lambda: connects(sandbox, "127.0.0.1", PORT))
    return sandbox


def finds(sandbox: Sandbox, name: str) -> bool:
    """Whether a name is known there."""
    said: str = sandbox.exec("timeout", "10", "nc", name, "1", stdin="").stderr.read()
    return "bad address" not in said


@promise("network_shared")
class TestNeighbours:
    def test_they_reach_each_other_by_name_and_nobody_else_does(self, create: Create) -> None:
        database = serving(create(network="shop", network_alias=["db", "db.shop"]))
        page = serving(create(network="shop", network_alias="page"))
        assert connects(page, "db", PORT)
        assert connects(page, "db.shop", PORT)
        assert connects(database, "page", PORT), "who came later is found, too"
        assert addresses(database), "the control"
        assert connects(page, database.exec("hostname").stdout.read().strip(), PORT)
        for stranger in (create(), create(network="other", network_alias="page"), create(block_network=True)):
            assert not connects(stranger, "db", PORT)
            assert not any(connects(stranger, address, PORT) for address in addresses(database))

    @promise("network_block")
    def test_who_is_blocked_reaches_them_and_nothing_else(self, create: Create, outbound: tuple[str, int]) -> None:
        blocked = serving(create(network="shop", network_alias="db", block_network=True))
        page = serving(create(network="shop", network_alias="page"))
        assert connects(page, "db", PORT)
        assert connects(blocked, "page", PORT)
        assert connects(page, *outbound, seconds=20), "the control"
        for host in (outbound[0], socket.gethostbyname(outbound[0])):
            assert not connects(blocked, host, outbound[1])
        with server() as port:
            for sandbox in (blocked, page):
                firsts = {f"{address.rpartition('.')[0]}.1" for address in addresses(sandbox)}
                assert not any(connects(sandbox, host, port) for host in own_addresses() | firsts)

    @promise("info")
    @promise("network_block")
    def test_it_tells_what_is_reached(self, create: Create) -> None:
        assert create(network="shop", block_network=True).info().network == "neighbours"
        assert create(network="shop").info().network == "outbound"

    @promise("network_change")
    def test_it_stays_when_all_else_is_blocked(self, create: Create, outbound: tuple[str, int]) -> None:
        serving(create(network="shop", network_alias="db"))
        page = create(network="shop")
        page.set_network(block_network=True)
        assert not connects(page, *outbound)
        assert connects(page, "db", PORT)
        page.set_network()
        assert connects(page, *outbound, seconds=20)

    def test_who_has_ended_is_not_found_any_more(self, create: Create) -> None:
        page, first = create(network="shop"), create(network="shop", network_alias="db")
        assert finds(page, "db"), "the control"
        first.terminate()
        assert not finds(page, "db")
        serving(create(network="shop", network_alias="db"))
        assert connects(page, "db", PORT), "another one has the name now"

    @promise("reset")
    def test_a_reset_leaves_it_in_the_network(self, create: Create) -> None:
        page, database = create(network="shop"), create(network="shop", network_alias="db")
        database.reset()
        serving(database)
        assert connects(page, "db", PORT)


class TestNeighbourMistakes:
    @pytest.mark.parametrize("alias", ["localhost", "two words", "", "-", "a" * 64, ["a" * 60, "b" * 60, "c" * 60]])
    def test_a_name_that_cannot_be_is_refused(self, create: Create, alias: object) -> None:
        with pytest.raises(InvalidError, match="network_alias"):
            create(network="shop", network_alias=alias)

    def test_a_name_needs_a_network(self, create: Create) -> None:
        with pytest.raises(InvalidError, match="say which: network="):
            create(network_alias="db")

    def test_an_allow_list_is_refused(self, create: Create) -> None:
        with pytest.raises(InvalidError, match="allow list cannot be kept in a network"):
            create(network="shop", outbound_domain_allowlist=["example.com"])


__all__ = ["TestNeighbourMistakes", "TestNeighbours"]
