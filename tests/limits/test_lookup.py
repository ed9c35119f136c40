"""The identity that an operator means by what was typed."""

from __future__ import annotations

import pytest

from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.limits import Rule, rules_from_config
from elemta.limits.identity import name_identity
from elemta.limits.lookup import requests_for


def limit(name: str, *per: Identity, counts: Counts = Counts.MESSAGES) -> LimitConfig:
    return LimitConfig(name=name, per=per, counts=counts, rates=(Rate(10, 60.0),))


RULES: tuple[Rule, ...] = rules_from_config(
    ResourcesConfig(),
    (
        limit("net", Identity.NETWORK),
        limit("sender", Identity.SENDER),
        limit("domain", Identity.SENDER_DOMAIN),
        limit("user", Identity.USER),
        limit("pair", Identity.IP, Identity.SENDER),
        limit("all"),
    ),
)


def meant(text: str) -> list[str]:
    return [request.key for request in requests_for(RULES, text)]


@pytest.mark.parametrize("text", ["192.0.2.7", " 192.0.2.7 ", "::ffff:192.0.2.7"])
def test_an_address_is_meant_however_it_is_spelt(text: str) -> None:
    found = meant(text)
    assert found[:3] == ["ip:192.0.2.7", "connections-per-ip:192.0.2.7", "net:192.0.2.0/24"]


@pytest.mark.parametrize("text", ["2001:db8::1", "2001:DB8:0:0::77", "2001:db8::/64"])
def test_an_ipv6_address_means_its_64(text: str) -> None:
    assert meant(text)[:3] == [
        "ip:2001:db8::/64",
        "connections-per-ip:2001:db8::/64",
        "net:2001:db8::/64",
    ]


def test_a_network_is_meant_only_where_networks_are_counted() -> None:
    assert meant("192.0.2.0/24")[0] == "net:192.0.2.0/24"
    assert not any(key.startswith(("ip:", "net:")) for key in meant("192.0.2.0/23"))


@pytest.mark.parametrize("text", ["Anna@Example.ORG", "<anna@example.org>", '"anna"@example.org.'])
def test_a_mail_address_is_meant_as_limits_count_it(text: str) -> None:
    assert "sender:anna@example.org" in meant(text)
    assert not any(key.startswith("domain:") for key in meant(text))


def test_a_domain_is_meant_with_and_without_its_at_sign() -> None:
    assert "domain:example.org" in meant("@Example.org")
    assert "domain:example.org" in meant("example.org")


def test_the_null_sender_has_an_identity() -> None:
    assert {"sender:<>", "domain:<>"} <= set(meant("<>"))


def test_a_name_in_front_chooses_one_limit() -> None:
    assert meant("net:192.0.2.7") == ["net:192.0.2.0/24"]
    assert meant("ip:2001:db8::5") == ["ip:2001:db8::/64"]
    assert meant("user:ANNA@example.org") == ["user:anna@example.org"]


def test_the_parts_of_a_combination_are_read_one_by_one() -> None:
    assert "pair:192.0.2.7|anna@example.org" in meant("192.0.2.7|Anna@example.org")
    assert meant("pair:192.0.2.7|<>") == ["pair:192.0.2.7|<>"]


@pytest.mark.parametrize("name", ["anna|bert", "sales|de|", "|"])
def test_a_name_that_contains_the_joint_is_one_identity(name: str) -> None:
    assert meant(f"user:{name}") == [f"user:{name_identity(name)}"]


def test_everybody_is_meant_by_a_star_and_only_where_everybody_is_counted() -> None:
    assert meant("all:*") == ["all:*"]
    assert "all:*" not in meant("192.0.2.7")


def test_a_digest_is_taken_as_it_is_shown() -> None:
    digest = "#" + "0" * 32
    assert f"sender:{digest}" in meant(digest)


def test_nothing_is_meant_by_nothing() -> None:
    assert meant("") == []
    assert meant("net:") == []
