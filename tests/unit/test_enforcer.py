"""The judge of NetworkPolicies that tests of Kubernetes use: that it says what Kubernetes documents."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lightkube")

from tests.kubernetes.enforcer import REFUSED, Pod, Seen, ruleset

WEB = Pod("shop", {"app": "web", "tier": "front"}, ("10.0.0.1", "fd00::1"))
DATA = Pod("shop", {"app": "data"}, ("10.0.0.2",))
OTHER = Pod("else", {"app": "web"}, ("10.0.0.3",))
NAMESPACES = {"shop": {"team": "a"}, "else": {"team": "b"}}


def chains(*specs: dict[str, Any]) -> dict[str, list[str]]:
    """The lines of each chain, for policies of the namespace "shop"."""
    policies = [{"metadata": {"namespace": "shop"}, "spec": spec} for spec in specs]
    _, *texts = ruleset("x", Seen(policies, [WEB, DATA, OTHER], NAMESPACES)).split("  chain ")
    found = [[line.strip() for line in text.splitlines()] for text in texts]
    return {first.split()[0]: lines[: lines.index("}")] for first, *lines in found}


def of_web(kind: str, *rules: dict[str, Any], **more: Any) -> list[str]:
    """What is said of WEB's traffic, for a policy of all pods with these rules."""
    spec = {"podSelector": {}, "policyTypes": [kind.capitalize()], kind: list(rules), **more}
    *lines, reset, rejected = chains(spec)[f"{kind}_0"]
    assert (reset, rejected) == REFUSED
    return lines


def test_of_pods_that_no_policy_selects_nothing_is_said() -> None:
    found = chains({"podSelector": {"matchLabels": {"app": "data"}}, "policyTypes": ["Egress"]})
    assert found["egress_1"] == [*REFUSED]
    assert set(found) == {"egress_1", "forward", "input"}
    jumps = ["ip saddr { 10.0.0.2/32 } jump egress_1"]
    assert found["forward"][1:] == found["input"][1:] == ["ct state established,related accept", *jumps]


def test_what_leaves_one_pod_is_judged_again_where_it_comes_in() -> None:
    found = chains({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}]})
    assert found["egress_0"] == ["return", *REFUSED], (
        "an empty rule is all; it returns, so that what follows is asked, too"
    )
    assert found["ingress_0"] == [*REFUSED], "no rule is none"
    assert found["forward"][2:] == [
        "ip saddr { 10.0.0.1/32 } jump egress_0",
        "ip6 saddr { fd00::1/128 } jump egress_0",
        "ip saddr { 10.0.0.2/32 } jump egress_1",
        "ip daddr { 10.0.0.1/32 } jump ingress_0",
        "ip6 daddr { fd00::1/128 } jump ingress_0",
        "ip daddr { 10.0.0.2/32 } jump ingress_1",
    ]


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [({}, {"ingress"}), ({"egress": []}, {"ingress"}), ({"egress": [{}]}, {"ingress", "egress"})],
)
def test_without_policy_types_it_is_ingress_and_with_rules_of_egress_that(
    spec: dict[str, Any], kinds: set[str]
) -> None:
    found = chains({"podSelector": {"matchLabels": {"app": "web"}}, **spec})
    assert {name.partition("_")[0] for name in found if "_" in name} == kinds


def test_policies_add_up() -> None:
    one, two = (
        {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": port}]}]} for port in (80, 443)
    )
    assert chains(one, two)["egress_0"] == ["tcp dport 80 return", "tcp dport 443 return", *REFUSED]


def test_ports_are_of_a_protocol_and_may_be_many() -> None:
    ports = [{"protocol": "UDP", "port": 53}, {"port": 80}, {"port": 8000, "endPort": 8080}, {"protocol": "SCTP"}]
    assert of_web("egress", {"ports": ports}) == [
        "udp dport 53 return",
        "tcp dport 80 return",
        "tcp dport 8000-8080 return",
        "meta l4proto sctp return",
    ]


def test_blocks_have_exceptions_which_may_overlap() -> None:
    block = {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.1.2.0/24", "10.9.0.0/16"]}
    rule = {"to": [{"ipBlock": block}, {"ipBlock": {"cidr": "2001:db8::/32"}}], "ports": [{"port": 80}]}
    assert of_web("egress", rule) == [
        "ip daddr { 10.0.0.0/8 } ip daddr != { 10.1.0.0/16, 10.9.0.0/16 } tcp dport 80 return",
        "ip6 daddr { 2001:db8::/32 } tcp dport 80 return",
    ]


@pytest.mark.parametrize(
    ("peer", "addresses"),
    [
        ({"podSelector": {}}, "10.0.0.1/32, 10.0.0.2/32"),
        ({"podSelector": {"matchLabels": {"app": "data"}}}, "10.0.0.2/32"),
        (
            {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "x"]}]}},
            "10.0.0.1/32",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}},
            "10.0.0.2/32",
        ),
        ({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}}, "10.0.0.1/32"),
        ({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}}, "10.0.0.2/32"),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, "10.0.0.3/32"),
        ({"namespaceSelector": {}}, "10.0.0.1/32, 10.0.0.2/31"),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}, "10.0.0.1/32, 10.0.0.3/32"),
    ],
)
def test_peers_are_pods_of_the_policys_namespace_or_of_those_that_are_selected(
    peer: dict[str, Any], addresses: str
) -> None:
    lines = of_web("ingress", {"from": [peer]})
    assert lines[0] == f"ip saddr {{ {addresses} }} return"
    assert lines[1:] == (["ip6 saddr { fd00::1/128 } return"] if "10.0.0.1/32" in addresses else [])


def test_peers_that_are_nobody_are_not_everybody() -> None:
    nobody = {"podSelector": {"matchLabels": {"app": "nobody"}}}
    assert of_web("ingress", {"from": [nobody]}) == []
    assert of_web("ingress", {"from": []}) == ["return"], "as it is documented: an empty list is everybody"
