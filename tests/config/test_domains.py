"""Local domains, mailboxes and the networks that may relay."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.config import DomainsConfig
from elemta.domains import Domains, canonical_domain, read_recipients
from elemta.errors import ConfigError

LOCAL = Domains(local=frozenset({"Example.COM", "bücher.example", "[192.0.2.1]", "[IPv6:2001:db8:0:0::1]"}))


@pytest.mark.parametrize(
    "domain",
    [
        "example.com",
        "EXAMPLE.com",
        "example.com.",
        "bücher.example",
        "BÜCHER.example",
        "bu\u0308cher.example",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.EXAMPLE.",
        "[192.0.2.1]",
        "[ipv6:2001:DB8::1]",
    ],
)
def test_every_spelling_of_a_local_domain_is_local(domain: str) -> None:
    assert LOCAL.is_local(domain)


@pytest.mark.parametrize(
    "domain",
    [
        "",
        ".",
        "example.com..",
        ".example.com",
        "sub.example.com",
        "example.community",
        "bucher.example",
        "xn--bcher-kvb.example",
        "192.0.2.1",
        "[192.0.2.2]",
        "[ipv6:192.0.2.1]",
        "[2001:db8::1]",
        "example.com\u0000",
        "ü" * 10_000,
    ],
)
def test_another_domain_is_not_local(domain: str) -> None:
    assert not LOCAL.is_local(domain)


def test_a_label_that_idna_cannot_encode_is_equal_to_itself_in_any_case() -> None:
    domains = Domains(local=frozenset({"\u2028Ü.example"}))
    assert domains.is_local("\u2028ü.EXAMPLE.")
    assert not domains.is_local("ü.example")


@given(st.text(max_size=300))
def test_no_domain_makes_the_comparison_fail(domain: str) -> None:
    canonical = canonical_domain(domain)
    assert canonical_domain(canonical.upper() if canonical.isascii() else canonical) in (
        canonical,
        canonical.removesuffix("."),
    )


def test_without_a_file_every_address_at_a_local_domain_is_a_mailbox() -> None:
    assert LOCAL.has_mailbox(Address("anyone", "example.com"))
    assert not LOCAL.has_mailbox(Address("anyone", "example.net"))
    assert not LOCAL.has_mailbox(Address("", "example.com"))
    assert not LOCAL.has_mailbox(NULL)


def _domains(tmp_path: Path, text: str, *local: str) -> Domains:
    path = tmp_path / "recipients"
    path.write_text(text, encoding="utf-8")
    return Domains.from_config(DomainsConfig(local=local or ("example.com",), recipients=str(path)))


def test_with_a_file_only_its_addresses_and_domains_are_mailboxes(tmp_path: Path) -> None:
    text = """
    # people
    Jane.Doe@Example.com
    "john doe"@example.com   # with a space
    "a\\"b"@example.com
    tag#1@example.com
    jürgen@bücher.example

    @open.example
    """
    domains = _domains(tmp_path, text, "example.com", "xn--bcher-kva.example", "open.example")
    for local_part, domain in [
        ("jane.doe", "example.com"),
        ("JANE.DOE", "EXAMPLE.com"),
        ("john doe", "example.com"),
        ('a"b', "example.com"),
        ("tag#1", "example.com"),
        ("JÜRGEN", "xn--bcher-kva.example"),
        ("anyone", "open.example"),
    ]:
        assert domains.has_mailbox(Address(local_part, domain)), (local_part, domain)
    for local_part, domain in [
        ("jane", "example.com"),
        ("jane.doe", "open.example.com"),
        ("anyone", "sub.open.example"),
        ("anyone", "example.com"),
    ]:
        assert not domains.has_mailbox(Address(local_part, domain)), (local_part, domain)


def test_a_mailbox_of_the_file_at_a_domain_that_is_not_local_is_none(tmp_path: Path) -> None:
    assert not _domains(tmp_path, "jane@example.net").has_mailbox(Address("jane", "example.net"))


def test_postmaster_is_a_mailbox_whatever_the_file_says(tmp_path: Path) -> None:
    domains = _domains(tmp_path, "jane@example.com")
    assert domains.has_mailbox(Address("PostMaster", "example.com"))
    assert domains.has_mailbox(Address("postmaster", ""))
    assert not domains.has_mailbox(Address("postmaster", "example.net"))


def test_every_line_of_the_file_that_is_no_address_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_text(
        'ok@example.com\njane\nexample.com\na@b.example c@d.example\n@\n<a@b.example>\na@b@c.example\n"a@b\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_recipients(str(path))
    assert [str(fault).removeprefix(f"{path}: ") for fault in caught.value.faults] == [
        'line 2: found "jane": must be an address or @domain',
        'line 3: found "example.com": must be an address or @domain (did you mean "@example.com"?)',
        'line 4: found "a@b.example c@d.example": must be an address or @domain (one a line)',
        'line 5: found "@": must be an address or @domain',
        'line 6: found "<a@b.example>": must be an address or @domain',
        'line 7: found "a@b@c.example": must be an address or @domain',
        'line 8: found ""a@b": must be an address or @domain',
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none: domains.recipients: can't be read: No such file or directory"
    ):
        Domains.from_config(DomainsConfig(recipients=str(tmp_path / "none")))
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bytes: domains\.recipients: is not UTF-8"):
        Domains.from_config(DomainsConfig(recipients=str(tmp_path / "bytes")))


@pytest.mark.parametrize(
    ("ip", "may"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::7", True),
        ("192.0.3.7", False),
        ("::192.0.2.7", False),
        ("2001:db9::7", False),
        ("unix", False),
        ("", False),
    ],
)
def test_a_client_in_a_network_may_relay_and_no_other(ip: str, may: bool) -> None:
    domains = Domains(frozenset(), None, (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
    assert domains.may_relay(ip) is may
    if may or ":" in ip or "." in ip:
        assert domains.may_relay(ip_address(ip)) is may
