"""Identities: one spelling for what is the same, never one for what is not."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.limits.identity import (
    Exceptions,
    address_identity,
    domain_identity,
    host_identity,
    ip_identity,
    joined,
    name_identity,
    network_identity,
    safe,
)
from elemta.smtp.path import parse_address


@pytest.mark.parametrize(
    ("ip", "identity", "network"),
    [
        ("192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
        ("2001:db8::1", "2001:db8::/64", "2001:db8::/64"),
        ("2001:db8:0:0:ffff:1:2:3", "2001:db8::/64", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64", "2001:db8:0:1::/64"),
    ],
)
def test_addresses_are_counted_as_the_key_layout_says(ip: str, identity: str, network: str) -> None:
    assert ip_identity(ip_address(ip)) == identity
    assert network_identity(ip_address(ip)) == network


def test_mail_addresses_that_mean_the_same_are_counted_together() -> None:
    same = {
        address_identity(Address("Jane", "example.com")),
        address_identity(Address("jane", "EXAMPLE.com")),
        address_identity(Address("JANE", "example.com.")),
    }
    assert same == {"jane@example.com"}


def test_quotes_around_dots_make_no_other_identity() -> None:
    written = parse_address("Anna..x@B_1.test", [])
    assert address_identity(written) == address_identity(parse_address('"anna..x"@b_1.test', []))


def test_a_u_label_and_its_a_label_are_the_same_domain() -> None:
    assert domain_identity(Address("a", "bücher.example")) == "xn--bcher-kva.example"
    assert domain_identity(Address("a", "XN--BCHER-KVA.example")) == "xn--bcher-kva.example"


def test_an_address_literal_is_one_domain_however_it_is_spelled() -> None:
    spellings = ("[IPv6:2001:db8::1]", "[ipv6:2001:0DB8:0:0::0001]", "[IPv6:2001:db8:0:0:0:0:0:1]")
    assert {domain_identity(Address("a", each)) for each in spellings} == {"[ipv6:2001:db8::1]"}
    assert {host_identity(each) for each in spellings} == {"[ipv6:2001:db8::1]"}


def test_the_null_sender_is_an_identity_of_its_own() -> None:
    assert address_identity(NULL) == domain_identity(NULL) == "<>"
    assert host_identity("<>") != "<>"


@pytest.mark.parametrize(
    "text", ["", "a b", "a|b", "#abc", "x" * 65, "naïve", "a\r\nDEL key", "{tag}", "\udc80", "*"]
)
def test_what_is_long_or_unusual_is_hashed(text: str) -> None:
    assert safe(text).startswith("#")
    assert len(safe(text)) == 33


def test_what_is_plain_and_64_octets_long_stays_readable() -> None:
    assert safe("x" * 64) == "x" * 64


@given(st.text(), st.text())
def test_two_texts_never_get_the_same_identity(one: str, other: str) -> None:
    assert (safe(one) == safe(other)) == (one == other)


@given(st.lists(st.text(alphabet="ab|#@.", max_size=6), min_size=1, max_size=4), st.data())
def test_two_combinations_of_as_many_parts_never_get_the_same_identity(
    parts: list[str], data: st.DataObject
) -> None:
    others = data.draw(
        st.lists(st.text(alphabet="ab|#@.", max_size=6), min_size=len(parts), max_size=len(parts))
    )
    assert (joined(map(safe, parts)) == joined(map(safe, others))) == (parts == others)


@given(st.text())
def test_a_client_can_not_spell_the_hash_of_another(text: str) -> None:
    assert safe(safe("x" * 65)) != safe("x" * 65)
    assert safe(text) != "*"
    assert "|" not in safe(text)


def test_a_quoted_at_sign_does_not_move_the_domain() -> None:
    assert address_identity(Address("x@other.example", "evil.example")) == "x@other.example@evil.example"
    assert domain_identity(Address("x@other.example", "evil.example")) == "evil.example"


@given(st.text(max_size=300))
def test_no_name_of_a_client_raises(text: str) -> None:
    for identity in (host_identity(text), name_identity(text), domain_identity(Address("x", text))):
        assert len(identity.encode()) <= 64


@pytest.mark.parametrize("network", ["192.0.2.0/24", "192.0.2.9", "::ffff:192.0.2.0/120"])
def test_a_network_exempts_its_clients(network: str) -> None:
    exceptions = Exceptions([network])
    assert exceptions.cover(ip_address("192.0.2.9"))
    assert exceptions.cover(ip_address("::ffff:192.0.2.9"))
    assert not exceptions.cover(ip_address("198.51.100.9"))
    assert not exceptions.cover(ip_address("2001:db8::9"))


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("<Anna@Example.COM>", Address("anna", "example.com")),
        ('"anna"@example.com.', Address("anna", "example.com")),
        ('"a b"@example.com', Address("a b", "example.com")),
        ('"x@y"@bücher.example', Address("x@y", "xn--bcher-kva.example")),
    ],
)
def test_an_address_exempts_with_and_without_brackets_and_quotes(entry: str, address: Address) -> None:
    assert Exceptions([entry]).name(address_identity(address))


def test_a_value_exempts_in_any_spelling() -> None:
    values = Exceptions(["Boss@Example.COM", "bücher.example", "<>", "Submission"]).values
    assert address_identity(Address("boss", "example.com")) in values
    assert domain_identity(Address("a", "xn--bcher-kva.example")) in values
    assert address_identity(NULL) in values
    assert name_identity("submission") in values
    assert address_identity(Address("clerk", "example.com")) not in values
