"""Names: every spelling of one is the same, what can't be in DNS is not asked for, nothing odd comes out."""

from __future__ import annotations

import dns.message
import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.dns.answers import DnsQuestion, RecordType
from elemta.dns.names import canonical_name, host_name, reverse_name, to_dns
from elemta.errors import NoSuchDomain


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.TEST.", "example.test"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("_dmarc.example.test", "_dmarc.example.test"),
        ("a" * 63 + ".test", "a" * 63 + ".test"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
    ],
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert canonical_name(text) == name
    assert len(to_dns(name).to_wire()) <= 255


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..test",
        ".test",
        "test..",
        "a" * 64 + ".test",
        ".".join(["a" * 63] * 3 + ["b" * 62]),
        "a" * 100_000,
        "ü" * 250 + ".test",
        "with space.test",
        "tab\t.test",
        "nul\0.test",
        "line\r\n.test",
        "\ud800.test",
        "\u2028.test",
    ],
)
def test_what_is_no_name_is_refused_here(text: str) -> None:
    """RFC 1035 §2.3.4."""
    with pytest.raises(NoSuchDomain) as raised:
        canonical_name(text)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 200


@given(st.text(max_size=300))
def test_any_text_is_a_name_that_dns_can_carry_or_none(text: str) -> None:
    try:
        name = canonical_name(text)
    except NoSuchDomain:
        return
    query = dns.message.make_query(to_dns(name), RecordType.MX.value)
    sent = dns.message.from_wire(query.to_wire()).question[0].name
    # Label for label what was meant: no escape or dot in it was read as anything else.
    assert b".".join(sent.labels[:-1]) == name.encode()
    assert canonical_name(name) == name


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6))
def test_whatever_name_comes_out_of_dns_a_host_has_a_harmless_one_or_none(labels: list[bytes]) -> None:
    text = host_name(dns.name.Name((*labels, b"")))
    if text is None:
        return
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert to_dns(text) == dns.name.Name((*labels, b""))


def test_the_root_and_a_relative_name_are_no_hosts() -> None:
    assert host_name(dns.name.root) is None
    assert host_name(dns.name.empty) is None
    assert host_name(dns.name.from_text("host", None)) is None


def test_addresses_have_names_of_their_own() -> None:
    """RFC 1035 §3.5 and RFC 3596 §2.5."""
    from ipaddress import ip_address

    assert reverse_name(ip_address("192.0.2.1")) == "1.2.0.192.in-addr.arpa"
    assert reverse_name(ip_address("2001:db8::1")) == "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa"


def test_a_question_reads_as_one() -> None:
    assert str(DnsQuestion("host.test", RecordType.MX)) == "MX of host.test"
