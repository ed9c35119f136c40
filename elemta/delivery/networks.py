"""Which addresses a route never connects to, in whatever form DNS names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 6052 §2.1, RFC 8215 §4
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
# RFC 4291 §2.5.5.1
_COMPATIBLE = IPv6Network("::/96")
# RFC 5214 §6.1
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
_LOW_32 = 0xFFFFFFFF


def network_of(address: IPAddress, networks: Sequence[Network]) -> Network | None:
    """The first of ``networks`` that has the address, or an IPv4 address that is written into it."""
    forms = tuple(_forms(address))
    return next((network for network in networks if any(form in network for form in forms)), None)


def _forms(address: IPAddress) -> Iterator[IPAddress]:
    """The address, and the IPv4 addresses to which a host, a NAT64 or a tunnel may turn it."""
    yield address
    if isinstance(address, IPv4Address):
        yield IPv6Address(f"::ffff:{address}")
        return
    number = int(address)
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _COMPATIBLE or (number >> 32) & _LOW_32 in _ISATAP:
        embedded.append(IPv4Address(number & _LOW_32))
    if address in _LOCAL_NAT64:
        embedded += _of_local_nat64(number)
    yield from (each for each in embedded if each is not None)


def _of_local_nat64(number: int) -> Iterator[IPv4Address]:
    """The IPv4 address by each length of prefix that such a network may have."""
    # RFC 6052 §2.2: 48, 56, 64 or 96 bits; bits 64 to 71 are left out.
    joined = (number >> 64) << 56 | number & (1 << 56) - 1
    for value in (*((joined >> (88 - length)) & _LOW_32 for length in (48, 56, 64)), number & _LOW_32):
        # Octets of zero stand there where the address is somewhere else.
        if value >> 24:
            yield IPv4Address(value)
