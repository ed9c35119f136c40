"""Which hosts take the mail of a domain: its exchangers in order, or why there is none (RFC 5321 §5.1).

:func:`network_of` says which addresses a route never connects to, in whatever form DNS names them.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults

from elemta.dns import NULL_MX, MailExchanger
from elemta.domains import canonical_domain
from elemta.envelope import Recipient
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.ip import IPAddress, IPNetwork, unmapped
from elemta.outcome import Attempt, LocalFault, Outcome, ReachedStage, Status

# RFC 6052 §2.1, RFC 8215 §4
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
# RFC 4291 §2.5.5.1
_COMPATIBLE = IPv6Network("::/96")
# RFC 5214 §6.1
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})
_LOW_32 = 0xFFFFFFFF


def network_of(address: IPAddress, networks: Sequence[IPNetwork]) -> IPNetwork | None:
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


Shuffle = Callable[[list[Any]], None]

SMTP_PORT = 25

#: Exchangers of a domain that are looked at, and hosts that are tried in one attempt.
MOST_LOOKED_AT = 20
MOST_TRIED = 5
#: Addresses of one host that are tried, of each kind.
MOST_ADDRESSES = 4
#: Refused addresses that an outcome names.
MOST_NAMED = 3


class MailResolver(Protocol):
    """What is asked of DNS; :class:`elemta.dns.resolver.DnsResolver` is one."""

    async def mail_exchangers(self, domain: str) -> tuple[MailExchanger, ...]:
        """The MX records."""

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of a host."""


@dataclass(frozen=True, slots=True)
class Exchanger:
    """A host that takes the mail, and its addresses: IPv6 before IPv4, each kind shuffled; never empty.

    ``host`` is its name as DNS has it, or the address literal that stood in its place.
    """

    host: str
    addresses: tuple[IPAddress, ...]
    preference: int = 0


@dataclass(frozen=True, slots=True)
class Exchangers:
    """The hosts for ``domain`` in the order in which they are tried; at least one."""

    domain: str
    hosts: tuple[Exchanger, ...]


async def find_exchangers(
    resolver: MailResolver,
    domain: str,
    *,
    own_names: Collection[str],
    own_addresses: Collection[tuple[IPAddress, int]],
    port: int = SMTP_PORT,
    refuse_networks: Sequence[IPNetwork] = (),
    shuffle: Shuffle,
    attempt: Attempt,
    recipients: Sequence[Recipient],
) -> Exchangers | tuple[Outcome, ...]:
    """The hosts that take mail for ``domain`` on ``port``. Does not raise for anything that DNS says.

    Where no host takes it now (deferred) or at all (failed), ``attempt`` describes that for ``recipients``.

    ``own_names`` are names of this host and ``own_addresses`` where it takes mail itself: an exchanger that
    is one of them is left out, and with it all of equal or worse preference, which would send the mail back.
    An unspecified address among them, ``0.0.0.0`` or ``::``, is every address of this machine.
    No host is given an address that is in one of ``refuse_networks``, in whatever form DNS names it.
    ``shuffle`` puts a list in random order, in place.
    """
    own = _OwnAddresses(own_names, own_addresses, port)
    search = _Search(resolver, domain, own, refuse_networks, shuffle, attempt=attempt, recipients=recipients)
    if domain.startswith("["):
        return search.by_literal()
    try:
        records = await resolver.mail_exchangers(domain)
    except NoSuchDomain as error:
        return search.failed("5.1.2", str(error))
    except ResolverTrouble as error:
        return search.deferred(str(error), local=error.local)
    if records == (NULL_MX,):
        # RFC 7505 §3
        return search.failed("5.1.10", f"{domain} takes no mail: it says so with a null MX")
    # RFC 5321 §5.1: without MX records the domain is its own exchanger.
    return await search.among(records or (MailExchanger(0, canonical_domain(domain)),))


class _OwnAddresses:
    """Where this host itself takes mail."""

    def __init__(
        self, names: Collection[str], addresses: Collection[tuple[IPAddress, int]], port: int
    ) -> None:
        self._names = frozenset(canonical_domain(name) for name in names)
        self._addresses = frozenset(unmapped(address) for address, at in addresses if at == port)
        self._everywhere = any(address.is_unspecified for address in self._addresses)

    def has_name(self, host: str) -> bool:
        return canonical_domain(host) in self._names

    def has_address(self, address: IPAddress) -> bool:
        return address in self._addresses or (self._everywhere and is_of_this_machine(address))


class _Search:
    """The way from the records of one domain to hosts with addresses."""

    def __init__(
        self,
        resolver: MailResolver,
        domain: str,
        own: _OwnAddresses,
        refuse_networks: Sequence[IPNetwork],
        shuffle: Shuffle,
        *,
        attempt: Attempt,
        recipients: Sequence[Recipient],
    ) -> None:
        self._attempt = attempt
        self._recipients = [recipient.address for recipient in recipients]
        self._resolver = resolver
        self._domain = domain
        self._own = own
        self._refuse_networks = refuse_networks
        self._refused: list[str] = []
        self._shuffle = shuffle
        self._troubles: list[tuple[int, ResolverTrouble]] = []
        # Records of this preference or a worse one would send the mail back here.
        self._own_preference = math.inf

    def failed(self, enhanced: str, text: str) -> tuple[Outcome, ...]:
        # To know that it has no exchanger, name servers were asked.
        works = LocalFault.NONE if self._domain.startswith("[") else LocalFault.NAMES
        return self._attempt.same_for_all(self._recipients, Status.FAILED, enhanced, text, local=works)

    def deferred(self, text: str, *, local: bool) -> tuple[Outcome, ...]:
        fault = LocalFault.NAMES if local else LocalFault.NONE
        return self._attempt.same_for_all(
            self._recipients, Status.DEFERRED, "4.4.3", text, reached=ReachedStage.NOWHERE, local=fault
        )

    def by_literal(self) -> Exchangers | tuple[Outcome, ...]:
        """The host of an address literal."""
        address = _of_literal(self._domain)
        if address is None:
            return self.failed("5.1.2", f"{self._domain} is not the address of a host")
        usable = _usable((address,))
        if not usable:
            return self.failed("5.4.4", f"no host can have the address {self._domain}")
        if self._own.has_address(usable[0]):
            return self.failed("5.4.6", f"{self._domain} is this host, which has no other way for its mail")
        if not self._allowed(self._domain, usable):
            return self._none()
        return Exchangers(self._domain, (Exchanger(self._domain, usable),))

    async def among(self, records: Sequence[MailExchanger]) -> Exchangers | tuple[Outcome, ...]:
        """Look hosts up, a few at a time, the most preferred first, until there are enough.

        Records behind those that are tried need no look: one of this host's there sends nothing back.
        """
        left = self._in_order(records)
        hosts: list[Exchanger] = []
        while left:
            batch, left = left[:MOST_TRIED], left[MOST_TRIED:]
            found = await gatherResults(
                [Deferred.fromCoroutine(self._look_up(record)) for record in batch], consumeErrors=True
            )
            hosts += [exchanger for exchanger in found if exchanger is not None]
            hosts = [host for host in hosts if host.preference < self._own_preference]
            left = [record for record in left if record.preference < self._own_preference]
            if len(hosts) >= MOST_TRIED and left and left[0].preference > hosts[MOST_TRIED - 1].preference:
                break
        return Exchangers(self._domain, tuple(hosts[:MOST_TRIED])) if hosts else self._none()

    def _in_order(self, records: Sequence[MailExchanger]) -> list[MailExchanger]:
        """The preferred first, equal ones in random order, up to those with a name of this host."""
        own = [record.preference for record in records if self._own.has_name(record.host)]
        self._own_preference = min(own, default=math.inf)
        ordered = [record for record in records if record.preference < self._own_preference]
        # RFC 5321 §5.1: equal ones are tried in random order.
        self._shuffle(ordered)
        ordered.sort(key=lambda record: record.preference)
        return ordered[:MOST_LOOKED_AT]

    async def _look_up(self, record: MailExchanger) -> Exchanger | None:
        """The host with its addresses, or None where it has none, or is this one."""
        try:
            addresses = list(_usable(await self._resolver.addresses(record.host)))
        except NoSuchDomain:
            return None
        except ResolverTrouble as error:
            self._troubles.append((record.preference, error))
            return None
        if any(self._own.has_address(address) for address in addresses):
            self._own_preference = min(self._own_preference, record.preference)
            return None
        addresses = self._allowed(record.host, addresses)
        self._shuffle(addresses)
        six = [address for address in addresses if address.version == 6][:MOST_ADDRESSES]
        four = [address for address in addresses if address.version == 4][:MOST_ADDRESSES]
        return Exchanger(record.host, (*six, *four), record.preference) if addresses else None

    def _allowed(self, host: str, addresses: Iterable[IPAddress]) -> list[IPAddress]:
        """Those that may be connected to; the others are noted."""
        allowed = []
        for address in addresses:
            network = network_of(address, self._refuse_networks)
            if network is None:
                allowed.append(address)
            elif len(self._refused) < MOST_NAMED:
                self._refused.append(f"{host} has the address {address}, which is in {network}")
        return allowed

    def _none(self) -> tuple[Outcome, ...]:
        troubles = [error for preference, error in self._troubles if preference < self._own_preference]
        if troubles:
            return self.deferred(str(troubles[0]), local=all(error.local for error in troubles))
        if self._own_preference < math.inf:
            # RFC 5321 §5.1: where no record is left the message is returned.
            text = f"this host is the best mail exchanger of {self._domain} and has no other way for its mail"
            return self.failed("5.4.6", text)
        if self._refused:
            text = f"mail for {self._domain} may not be sent where DNS says: {'; '.join(self._refused)}"
            return self.failed("5.4.4", text)
        return self.failed("5.4.4", f"no mail exchanger of {self._domain} has an address")


def is_of_this_machine(address: IPAddress) -> bool:
    """Whether packets for the address stay here. Sends nothing.

    Asks the kernel which address it would use itself to get there; unlike trying to bind it, that also tells
    the truth where foreign addresses may be bound (``ip_nonlocal_bind``, as with floating addresses).
    """
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), SMTP_PORT))
            return ip_address(str(sock.getsockname()[0]).partition("%")[0]) == address
    except OSError:
        # There is no way to it from here, so it is not here.
        return False


def _of_literal(domain: str) -> IPAddress | None:
    # RFC 5321 §4.1.3
    inside = domain.removeprefix("[").removesuffix("]")
    try:
        if inside[:5].lower() == "ipv6:":
            return IPv6Address(inside[5:])
        return IPv4Address(inside)
    except ValueError:
        return None


def _usable(addresses: Sequence[IPAddress]) -> tuple[IPAddress, ...]:
    """Those that a host can have, in their plain form, each once."""
    plain = dict.fromkeys(unmapped(address) for address in addresses)
    return tuple(
        address
        for address in plain
        if not (address.is_unspecified or address.is_multicast or _is_link_local_six(address))
        and address != _BROADCAST
    )


_BROADCAST = IPv4Address("255.255.255.255")


def _is_link_local_six(address: IPAddress) -> bool:
    # It means nothing without the name of an interface, which DNS can't give.
    return isinstance(address, IPv6Address) and address.is_link_local
