"""Addresses that mx: never connects to, in every form in which DNS can name them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.config import DEFAULT_REFUSED_NETWORKS
from elemta.delivery.mx import network_of

_FOURS = [network for network in DEFAULT_REFUSED_NETWORKS if isinstance(network, IPv4Network)]


def refused(text: str) -> bool:
    return network_of(ip_address(text), DEFAULT_REFUSED_NETWORKS) is not None


def spellings(address: IPv4Address) -> list[IPv6Address]:
    """IPv6 addresses that lead to an IPv4 address somewhere."""
    number = int(address)
    high, low = number >> 16, number & 0xFFFF
    return [
        IPv6Address(f"::ffff:{address}"),
        IPv6Address(f"::{address}"),
        IPv6Address(f"64:ff9b::{address}"),
        IPv6Address(f"64:ff9b:1::{address}"),
        IPv6Address(f"64:ff9b:1:{high:x}:{low >> 8:x}:{(low & 0xFF) << 8:x}::"),
        IPv6Address(f"2002:{high:x}:{low:x}::1"),
        IPv6Address(f"2001:0:808:808:8000:63bf:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"),
        IPv6Address(f"2001:db8::5efe:{address}"),
        IPv6Address(f"2001:db8::200:5efe:{address}"),
    ]


@given(st.sampled_from(_FOURS).flatmap(lambda net: st.integers(int(net[0]), int(net[-1]))))
def test_an_address_of_a_refused_network_is_refused_in_every_spelling(number: int) -> None:
    address = IPv4Address(number)
    assert refused(str(address))
    for spelling in spellings(address):
        if number >> 24 or spelling not in (IPv6Address(f"64:ff9b:1::{address}"), spellings(address)[4]):
            assert refused(str(spelling)), spelling


@pytest.mark.parametrize(
    "text", ["::1", "::", "fe80::1", "ff02::1", "ff0e::1", "0.0.0.0", "127.0.0.1", "100.127.0.1"]
)
def test_the_default_refuses_what_is_no_host_of_the_internet(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    "text",
    [
        *("8.8.8.8", "10.0.0.1", "192.168.1.1", "100.128.0.1", "126.255.255.255", "128.0.0.1"),
        *(
            "2001:db8::1",
            "fd00::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "2002:808:808::1",
        ),
    ],
)
def test_other_addresses_are_not_refused(text: str) -> None:
    assert not refused(text)


def test_a_network_of_ipv6_can_name_mapped_addresses() -> None:
    from ipaddress import ip_network

    assert network_of(ip_address("192.0.2.1"), [ip_network("::ffff:192.0.2.0/120")]) is not None
    assert network_of(ip_address("192.0.3.1"), [ip_network("::ffff:192.0.2.0/120")]) is None
