"""Identities in one canonical spelling, safe as a part of a key.

Most identities are the client's own words. Spellings that mean the same get the same text, and no two
that differ ever do: what is long or has unusual characters is replaced by a digest behind a ``#``,
which no plain identity contains, and the parts of a combination are joined with ``|``, which none does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_network

from elemta.address import Address
from elemta.domains import canonical_domain
from elemta.ip import IPAddress, IPNetwork, unmapped, unmapped_network
from elemta.mailbox import folded_address, folded_local

LONGEST = 64
EVERYONE = "*"
_PLAIN = re.compile(rf"[a-z0-9._@+=/:\[\]-]{{1,{LONGEST}}}").fullmatch
JOINT = "|"
"""Between the parts of a combination."""
_NULL_SENDER = "<>"
_V6_HOST_BITS = 64


@lru_cache(maxsize=8192)
def ip_identity(ip: IPAddress) -> str:
    """IPv4 as it is, IPv4-mapped as IPv4, IPv6 by its /64: one customer has the whole of a /64."""
    ip = unmapped(ip)
    return _v6_network(ip) if isinstance(ip, IPv6Address) else str(ip)


@lru_cache(maxsize=8192)
def network_identity(ip: IPAddress) -> str:
    """The neighbourhood of an address: the /24 of IPv4, the /64 of IPv6."""
    ip = unmapped(ip)
    if isinstance(ip, IPv6Address):
        return _v6_network(ip)
    return f"{IPv4Address(int(ip) & 0xFFFFFF00)}/24"


def address_identity(address: Address) -> str:
    """A mail address; the null reverse-path is ``<>``."""
    if not address:
        return _NULL_SENDER
    return safe(folded_address(address.local, address.domain))


def null_sender_identity(recipient: Address) -> str:
    """The null reverse-path towards one domain: ``<>@`` and the recipient's domain.

    It stands for the notices of all hosts, and is no sender of its own.
    """
    return f"{_NULL_SENDER}@{domain_identity(recipient)}"


def domain_identity(address: Address) -> str:
    """The domain of a mail address; that of the null reverse-path is ``<>``."""
    return safe(canonical_domain(address.domain)) if address else _NULL_SENDER


def host_identity(name: str) -> str:
    """A HELO name: a domain, an address literal, or whatever the client said."""
    return safe(canonical_domain(name))


def name_identity(name: str) -> str:
    """A user name or the name of a listener."""
    return safe(folded_local(name))


def safe(text: str) -> str:
    """The text itself where it is short and plain, else ``#`` and its digest."""
    if _PLAIN(text):
        return text
    return "#" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def joined(parts: Iterable[str]) -> str:
    """The identity of a combination, or of all when it is one of nothing.

    The parts are identities already; none of them contains the joint.
    """
    return JOINT.join(parts) or EVERYONE


class Exceptions:
    """Exceptions of a limit: networks, by the client's address, and values of the limit's identities."""

    __slots__ = ("_networks", "any", "values")

    def __init__(self, entries: Iterable[str] = ()) -> None:
        networks: list[IPNetwork] = []
        values: set[str] = set()
        for entry in entries:
            network = _network(entry)
            if network is None:
                values.update(_value_identities(entry))
            else:
                networks.append(network)
        self._networks = tuple(networks)
        self.values = frozenset(values)
        #: Whether there is one.
        self.any = bool(networks or values)

    def __bool__(self) -> bool:
        return self.any

    def cover(self, ip: IPAddress) -> bool:
        """Whether a client at this address is exempt."""
        if not self._networks:
            return False
        ip = unmapped(ip)
        return any(ip in network for network in self._networks)

    def name(self, identity: str) -> bool:
        """Whether an identity is exempt; ``<>`` exempts the null sender towards every domain."""
        values = self.values
        return identity in values or (_NULL_SENDER in values and identity.startswith(_NULL_SENDER))


def _network(entry: str) -> IPNetwork | None:
    try:
        return unmapped_network(ip_network(entry.strip(), strict=False))
    except ValueError:
        return None


def _value_identities(entry: str) -> set[str]:
    """Everything that an entry can stand for: the same word may be a user, a host or an address."""
    entry = entry.strip()
    if entry == _NULL_SENDER:
        return {_NULL_SENDER}
    local, at, domain = entry.rpartition("@")
    if local == _NULL_SENDER:
        return {null_sender_identity(Address("", domain))}
    if at:
        return {address_identity(Address.of_path(entry)), name_identity(entry)}
    return {host_identity(entry), name_identity(entry)}


def _v6_network(ip: IPv6Address) -> str:
    return f"{IPv6Address(int(ip) >> _V6_HOST_BITS << _V6_HOST_BITS)}/{_V6_HOST_BITS}"
