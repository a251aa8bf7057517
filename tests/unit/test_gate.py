"""What the gate makes of hostile bytes: its parsers are pure, strict, and end. The negative controls are the accepted forms."""

from __future__ import annotations

import json
import os
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmodal._gate import head, hello, names
from openmodal._gate.log import MOST, Log
from openmodal._gate.policy import Denied, Policy, load, normal
from openmodal._spec import Egress, Network
from openmodal.engines.embedded import egress, network
from openmodal.testing.egress import client_hello


def policy(
    *domains: str, networks: tuple[str, ...] = (), own: tuple[str, ...] = (), mirrors: tuple[str, ...] = ()
) -> Policy:
    return load(egress.policy_text(Network(cidrs=networks, domains=domains), own, ("192.0.2.53",), mirrors))


# --------------------------------------------------------------------------------------- the policy


class TestPolicy:
    def test_a_name_is_allowed_as_it_stands_and_below_a_star(self) -> None:
        listed = policy("example.com", "*.wild.example")
        assert all(map(listed.allows, ("example.com", "a.wild.example", "a.b.wild.example")))
        others = (
            "www.example.com",
            "example.org",
            "wild.example",
            "notwild.example",
            "example.com.evil.org",
            "com",
            "",
        )
        assert not any(map(listed.allows, others))

    def test_an_address_is_reached_within_a_listed_network_only(self) -> None:
        listed = policy(networks=("203.0.113.0/24", "2001:db8::/32"))
        assert listed.reaches(IPv4Address("203.0.113.255"), 443)
        assert not listed.reaches(IPv4Address("203.0.114.0"), 443)

    def test_private_networks_must_be_meant(self) -> None:
        everything, meant = policy(networks=("0.0.0.0/0",)), policy(networks=("10.1.0.0/16", "0.0.0.0/0"))
        assert everything.reaches(IPv4Address("8.8.8.8"), 443)
        assert not everything.reaches(IPv4Address("10.1.2.3"), 443)
        assert meant.reaches(IPv4Address("10.1.2.3"), 443)
        assert not meant.reaches(IPv4Address("10.2.2.3"), 443)

    def test_what_reaches_all_addresses_may_ask_for_all_names(self) -> None:
        everything = policy(networks=("0.0.0.0/0",))
        assert everything.allows("any.example")
        assert everything.usable(["10.1.2.3", "8.8.8.8"], 443) == ["8.8.8.8"]
        assert not policy(networks=("0.0.0.0/1", "128.0.0.0/1")).allows("any.example"), "the control"

    @pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "100.100.100.200", "10.251.0.7", "10.9.9.9"])
    def test_this_machine_metadata_and_other_sandboxes_are_never_reached(self, address: str) -> None:
        listed = policy(networks=(f"{address}/32", "10.0.0.0/8"), own=("10.9.9.9",))
        assert not listed.reaches(IPv4Address(address), 443)
        assert listed.usable([address, "10.9.9.8"], 443) == ["10.9.9.8"], "the control"

    def test_a_name_leads_to_no_private_address_unless_that_is_listed(self) -> None:
        addresses = ["10.1.2.3", "192.168.1.1", "198.51.100.1", "127.0.0.1"]
        assert policy("a.example").usable(addresses, 443) == ["198.51.100.1"]
        assert policy("a.example", networks=("10.1.0.0/16",)).usable(addresses, 443) == ["10.1.2.3", "198.51.100.1"]

    def test_a_mirror_is_reached_at_its_port_only_and_opens_nothing_else(self) -> None:
        """Where it is, is the machine's own choice: on loopback, or in a private network."""
        step = policy("*", networks=("0.0.0.0/0",), own=("10.9.9.9",), mirrors=("127.0.0.1:3141", "10.9.9.9:80"))
        assert step.allows("any.name.example")
        assert step.reaches(IPv4Address("127.0.0.1"), 3141)
        assert not any(step.reaches(IPv4Address("127.0.0.1"), port) for port in (80, 443, 22))
        assert not step.reaches(IPv4Address("127.0.0.2"), 3141)
        assert step.usable(["10.9.9.9", "10.9.9.8", "127.0.0.1"], 80) == ["10.9.9.9"]
        assert step.usable(["10.9.9.9", "10.9.9.8", "127.0.0.1"], None) == ["10.9.9.9", "127.0.0.1"]
        assert not policy("example.com").allows("any.name.example"), "the control"

    @pytest.mark.parametrize(("given", "name"), [("Example.COM.", "example.com"), ("_a.b-c", "_a.b-c"), ("x", "x")])
    def test_names_are_compared_in_lower_case_and_without_the_last_dot(self, given: str, name: str) -> None:
        assert normal(given) == name

    @pytest.mark.parametrize(
        "name", ["", ".", "a..b", "a\0b.example", "a b", "1.2.3.4", "16909060", "[::1]", "é.example", "-a.b", "a%2e.b",
                 "a.example..", "x" * 64, "a." * 127 + "aa", "a/b", "user@a.example", "a.example\n"],
    )  # fmt: skip
    def test_what_is_no_name_is_denied(self, name: str) -> None:
        with pytest.raises(Denied):
            normal(name)


# ---------------------------------------------------------------------------------------------- TLS


def vector(size: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return len(body).to_bytes(size, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(2, body)


def server_names(*texts: bytes) -> bytes:
    return extension(0, vector(2, *(b"\0" + vector(2, text) for text in texts)))


def hello_with(*extensions: bytes, after: bytes = b"") -> bytes:
    parts = (b"\x03\x03", bytes(32), vector(1), vector(2, b"\x13\x01"), vector(1, b"\0"), vector(2, *extensions), after)
    return b"\x01" + vector(3, *parts)


def record(body: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + vector(2, body)


GREASE = extension(0x3A3A, b"\0")
ENCRYPTED_HELLO = extension(0xFE0D, bytes(200))


class TestClientHello:
    def test_openssls_is_understood_however_it_is_cut(self) -> None:
        whole = client_hello("Example.com")
        assert hello.server_name(whole) == "example.com"
        for end in range(len(whole)):
            assert hello.server_name(whole[:end]) is None
        assert hello.server_name(whole + b"early data") == "example.com"

    def test_it_may_come_in_several_records(self) -> None:
        message = hello_with(GREASE, server_names(b"a.example"))
        for size in (10, 50, len(message)):
            records = b"".join(record(message[at : at + size]) for at in range(0, len(message), size))
            assert hello.server_name(records) == "a.example"

    def test_an_encrypted_one_counts_by_its_outer_name(self) -> None:
        assert hello.server_name(record(hello_with(ENCRYPTED_HELLO, server_names(b"outer.example")))) == "outer.example"

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            (hello_with(), "no server name"),
            (hello_with(GREASE), "no server name"),
            (hello_with(server_names()), "no server name"),
            (hello_with(server_names(b"a.example", b"b.example")), "several"),
            (hello_with(server_names(b"a.example"), server_names(b"b.example")), "several"),
            (hello_with(server_names(b"a.example\0.evil.example")), "not a host name"),
            (hello_with(server_names(b"192.0.2.1")), "an address"),
            (hello_with(extension(0, b"\0\x05\0\0\x09a")), "malformed"),
            (hello_with(extension(0, vector(2, b"\x07" + vector(2, b"a.example")))), "malformed"),
            (hello_with(server_names(b"a.example"), after=b"more"), "malformed"),
            (hello_with(b"\0\0\xff\xff"), "malformed"),
            (b"\x01\x00\x00\x04abcd", "malformed"),
            (b"\x02\x00\x00\x04abcd", "not TLS"),
            (b"\x01\xff\xff\xff" + bytes(100), "too large"),
        ],
    )
    def test_what_is_odd_is_denied(self, message: bytes, reason: str) -> None:
        with pytest.raises(Denied, match=reason):
            hello.server_name(record(message))

    @pytest.mark.parametrize(
        "data", [b"GET / HTTP/1.1\r\n", b"\x80\x2e\x01\x03\x01", b"\x16\x02\x01\0\x01\x01", record(b"")]
    )
    def test_what_is_no_tls_is_denied_at_once(self, data: bytes) -> None:
        with pytest.raises(Denied, match="not TLS"):
            hello.server_name(data)

    def test_many_small_records_are_denied(self) -> None:
        message = hello_with(server_names(b"a.example"))
        with pytest.raises(Denied, match="too large"):
            hello.server_name(b"".join(record(message[at : at + 1]) for at in range(len(message))))

    @given(st.binary(max_size=400), st.booleans())
    def test_any_bytes_are_a_name_or_not_enough_or_denied(self, data: bytes, framed: bool) -> None:
        try:
            name = hello.server_name(record(b"\x01" + vector(3, data)) if framed else data)
        except Denied:
            return
        assert name is None or normal(name) == name

    @given(st.data())
    def test_a_changed_byte_never_makes_an_error_of_another_kind(self, data: st.DataObject) -> None:
        whole = bytearray(record(hello_with(GREASE, server_names(b"a.example"))))
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        try:
            hello.server_name(bytes(whole))
        except Denied:
            pass


# --------------------------------------------------------------------------------------------- HTTP


def request(*lines: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join((line, *lines, "", "")).encode("latin-1")


class TestHead:
    @pytest.mark.parametrize(
        "data",
        [
            request("Host: a.example"),
            request("Accept: */*", "hOsT:A.Example.:80 ", "X:"),
            request("Host: a.example", line="POST http://a.example/path HTTP/1.0"),
            request("Host: a.example", line="OPTIONS * HTTP/1.1") + b"body",
        ],
    )
    def test_the_host_is_found_however_the_head_is_cut(self, data: bytes) -> None:
        assert head.host(data) == "a.example"
        for cut in range(data.find(b"\r\n\r\n") + 4):
            assert head.host(data[:cut]) is None

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (request(), "no Host"),
            (request("Host: a.example", "Host: a.example"), "several"),
            (request("Host: a.example", "host:b.example"), "several"),
            (request("Host: a.example", line="GET http://b.example/ HTTP/1.1"), "another host"),
            (request("Host: a.example", line="GET http://b.example@a.example/ HTTP/1.1"), "host name"),
            (request("Host: a.example", line="GET a.example HTTP/1.1"), "odd request target"),
            (request("Host: a.example", line="GET ftp://b.example/ HTTP/1.1"), "odd request target"),
            (request("Host: a.example:443", line="CONNECT a.example:443 HTTP/1.1"), "proxy"),
            (request("Host: a.example:8080"), "another port"),
            (request("Host: 192.0.2.1"), "an address"),
            (request("Host:"), "host name"),
            (request("Host: a.example b.example"), "host name"),
            (request("Host : a.example"), "malformed"),
            (request(" Host: a.example"), "malformed"),
            (request("X: 1", " folded", "Host: a.example"), "malformed"),
            (request("X: a\nHost: b.example", "Host: a.example"), "malformed"),
            (request("X: a\rHost: b.example", "Host: a.example"), "malformed"),
            (request("X: \0", "Host: a.example"), "malformed"),
            (request("Host: a.example", line="GET / HTTP/2.0"), "not HTTP/1"),
            (request("Host: a.example", line="GET  / HTTP/1.1"), "not HTTP/1"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not HTTP/1"),
            (b"\x16\x03\x01", "not HTTP/1"),
            (b"\r\n\r\n", "not HTTP/1"),
            (b"A" * 17, "not HTTP/1"),
        ],
    )
    def test_what_is_odd_is_denied(self, data: bytes, reason: str) -> None:
        with pytest.raises(Denied, match=reason):
            head.host(data)

    @given(
        st.binary(max_size=300), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a.example\r\n"])
    )
    def test_any_bytes_are_a_name_or_not_enough_or_denied(self, data: bytes, before: bytes) -> None:
        for end in (b"", b"\r\n\r\n"):
            try:
                name = head.host(before + data + end)
            except Denied:
                continue
            assert name is None or normal(name) == name

    @given(st.text(max_size=50))
    def test_a_refusal_is_a_whole_answer(self, asked: str) -> None:
        try:
            normal(asked)
        except Denied as denied:
            lines, _, body = head.refusal(str(denied), denied.asked).partition(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in lines


# ---------------------------------------------------------------------------------------------- DNS


def header(*, flags: int = 0x0100, questions: int = 1, answers: int = 0) -> bytes:
    return struct.pack("!6H", 7, flags, questions, answers, 0, 0)


def dns_name(*labels: bytes) -> bytes:
    return b"".join(vector(1, label) for label in labels) + b"\0"


A_IN = b"\0\x01\0\x01"
QUESTION = dns_name(b"A", b"Example") + A_IN
EDNS = b"\0\0\x29\x10\0\0\0\0\0\0\0"


class TestQuestions:
    def test_a_question_is_understood_and_what_follows_is_not_read(self) -> None:
        for rest in (b"", EDNS, b"anything"):
            question = names.parse_question(header() + QUESTION + rest)
            assert (question.id, question.name, question.kind, question.raw) == (7, "A.Example", names.A, QUESTION)

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"\0" * 11, header(), header(questions=0) + QUESTION, header(questions=2) + QUESTION * 2,
            header(flags=0x8000) + QUESTION, header(flags=0x2800) + QUESTION, header() + QUESTION[:-1],
            header() + b"\xc0\x0c" + A_IN, header() + b"\xc0\x00" + A_IN, header() + b"\x01a\xc0\x0c" + A_IN,
            header() + b"\x40" + bytes(80), header() + b"\x3fshort", header() + dns_name(b"a.example") + A_IN,
            header() + dns_name(*[b"x" * 63] * 5) + A_IN, header() + dns_name(b"a") + b"\0\x01\0\x03",
        ],
    )  # fmt: skip
    def test_what_is_odd_is_denied_and_answered(self, data: bytes) -> None:
        with pytest.raises(Denied):
            names.parse_question(data)
        assert len(names.make_error(data)) == 12

    def test_an_answer_fits_and_can_be_read(self) -> None:
        longest = names.make_question(9, ".".join(["x" * 63] * 3 + ["y" * 61]))
        addresses = tuple(f"192.0.2.{n}" for n in range(50))
        data = names.make_answer(longest, names.Answer(names.NO_ERROR, addresses, 30))
        assert len(data) <= 512
        answer = names.parse_answer(data, longest)
        assert answer == names.Answer(names.NO_ERROR, addresses[: names.MOST_ADDRESSES], 30)
        assert names.parse_question(names.encode(longest)) == longest

    def test_aliases_are_followed_by_the_resolver_and_addresses_of_theirs_count(self) -> None:
        question = names.make_question(7, "a.example")
        alias = b"\xc0\x0c\0\x05\0\x01\0\0\0\x09" + vector(2, dns_name(b"b"))
        address = b"\xc0\x27\0\x01\0\x01\0\0\0\x14" + vector(2, bytes((192, 0, 2, 7)))
        data = header(flags=0x8180, answers=2) + question.raw + alias + address
        assert names.parse_answer(data, question) == names.Answer(names.NO_ERROR, ("192.0.2.7",), 9)

    @pytest.mark.parametrize(
        "rest", [b"\xc0\x0c\0\x01", b"\xc0\x0c\0\x01\0\x01\0\0\0\x14\0\x04\1\2", b"\xc0\xff" + bytes(9)]
    )
    def test_a_malformed_answer_is_denied(self, rest: bytes) -> None:
        question = names.make_question(7, "a.example")
        with pytest.raises(Denied):
            names.parse_answer(header(flags=0x8180, answers=1) + question.raw + rest, question)

    def test_an_answer_to_another_question_is_none(self) -> None:
        question = names.make_question(7, "a.example")
        data = names.make_answer(question, names.Answer(names.NO_ERROR, ("192.0.2.7",), 30))
        assert names.parse_answer(data, question)
        for other in (names.make_question(8, "a.example"), names.make_question(7, "b.example")):
            assert names.parse_answer(data, other) is None
        assert names.parse_answer(names.encode(question), question) is None, "a question is no answer"

    @given(st.binary(max_size=600), st.booleans())
    def test_any_bytes_are_a_question_or_denied(self, data: bytes, framed: bool) -> None:
        try:
            question = names.parse_question(header() + data if framed else data)
        except Denied:
            return
        assert len(names.make_answer(question, names.Answer(names.NO_SUCH_NAME))) <= 512

    @given(st.binary(max_size=600), st.integers(0, 65535))
    def test_any_bytes_are_an_answer_or_denied(self, data: bytes, count: int) -> None:
        question = names.make_question(7, "a.example")
        try:
            names.parse_answer(header(flags=0x8180, answers=count) + question.raw + data, question)
        except Denied:
            pass


# ------------------------------------------------------------------------------------ log and rules


def test_the_log_keeps_the_newest_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    log = Log(fd)
    for n in range(3 * MOST):
        log.add("tcp", "é" * 1000, f"192.0.2.1:{n}", "r" * 1000, allowed=False)
    os.close(fd)
    found = egress.read(path)
    assert found is not None
    assert MOST // 2 <= len(found) <= MOST
    assert [record.address for record in found[-2:]] == [f"192.0.2.1:{3 * MOST - 2}", f"192.0.2.1:{3 * MOST - 1}"]
    assert path.stat().st_size < 4 << 20, "the limit of the gate's files (native/gate.c)"


def test_a_half_written_line_is_left_out_and_no_log_is_none(tmp_path: Path) -> None:
    whole = Egress(1.5, "dns", "a.example", "", False, "why")
    (tmp_path / "log").write_text(
        json.dumps({name: getattr(whole, name) for name in Egress.__struct_fields__}) + '\n{"ti'
    )
    assert egress.read(tmp_path / "log") == [whole]
    assert egress.read(tmp_path / "none") is None


def test_gates_reach_less_than_everything_through_the_router() -> None:
    rules = network.router_rules(("192.0.2.53",), ("192.0.2.1",)).splitlines()
    output = [rule for rule in rules if rule.startswith("-A OUTPUT") and "DNAT" not in rule]
    assert ":OUTPUT DROP" in rules
    order = [rule.split()[3] for rule in output if " -d " in rule]
    assert order == ["192.0.2.53", "192.0.2.53", "192.0.2.1", *network.NEVER]


@pytest.mark.parametrize("nft", [False, True])
def test_only_a_mirror_on_loopback_needs_a_rule_of_its_own(nft: bool) -> None:
    """All other addresses are turned to the gate anyway; a step's own loopback stays its own."""
    without = network.gate_rules((), nft=nft)
    with_mirrors = network.gate_rules(("10.0.0.5:80", "127.0.0.1:3141"), nft=nft)
    (added,) = [line for line in with_mirrors.splitlines() if line not in without.splitlines()]
    assert "127.0.0.1" in added
    assert "3141" in added
    assert "127.0.0.53:53" in added
    assert len(with_mirrors.splitlines()) == len(without.splitlines()) + 1
