"""Making connections to next hops: which addresses, with or without TLS, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from elemta.bounded_map import BoundedMap
from elemta.config import AddressFamily, RouteTLS
from elemta.delivery.client_protocol import NextHopConnection
from elemta.delivery.connection_terms import ConnectionTerms
from elemta.delivery.happy_eyeballs import (
    HappyEyeballs,
    NextHopUnreachableError,
    alternating,
    connect_unix,
    look_up,
)
from elemta.delivery.hop_memory import HopMemory, Place
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.outbound_tls import OutboundTLS
from elemta.delivery.outgoing_content import Read
from elemta.delivery.settings import DeliverySettings
from elemta.dns.system_names import AddressResolver, SystemNames
from elemta.ip import IPAddress, with_port
from elemta.smtp.client import ClientSettings

_MOST_REMEMBERED = 4096


class Dialer:
    """Makes connections, and remembers the hosts where TLS failed and the hosts that did not answer."""

    def __init__(
        self,
        reactor: Any,
        settings: DeliverySettings,
        read: Read,
        authorities: str,
        resolver: AddressResolver | None = None,
        *,
        memory: HopMemory | None = None,
    ) -> None:
        self._reactor = reactor
        self._names = SystemNames(
            resolver, reactor.seconds, hosts=settings.hosts, resolv_conf=settings.resolv_conf
        )
        self._settings = settings
        self._read = read
        self._tls = OutboundTLS(authorities)
        self._racing: dict[Deferred[NextHopConnection], None] = {}
        self._no_tls: BoundedMap[Place, float] = BoundedMap(_MOST_REMEMBERED)
        #: What next hops have shown of themselves.
        self.memory = memory or HopMemory(reactor.seconds)
        self._silent: BoundedMap[Place, float] = BoundedMap(_MOST_REMEMBERED)

    def reconfigure(self, settings: DeliverySettings) -> None:
        self._settings = settings
        self._tls.forget()
        self._no_tls.clear()
        self.memory.clear()
        self._silent.clear()

    def cancel(self) -> None:
        """Give up what is being dialled."""
        for racing in list(self._racing):
            racing.cancel()

    async def addresses(self, candidate: Candidate, terms: ConnectionTerms) -> list[IPAddress]:
        """What to dial, in order; raises :class:`NextHopUnreachableError`."""
        found = candidate.addresses or await look_up(
            self._reactor, self._names, candidate.host, self._settings.connect_timeout
        )
        allowed = terms.allowed(found)
        if not allowed:
            text = f'it has no address that address_family = "{terms.family}" allows'
            raise NextHopUnreachableError(text, by_terms=True)
        prefers = terms.family is AddressFamily.PREFER_IPV4
        ipv4_first = prefers or self.memory.prefers_ipv4(place_of(candidate))
        return alternating(allowed, ipv4_first=ipv4_first)

    async def connect(
        self, hop: NextHop, candidate: Candidate, addresses: list[IPAddress], tls: RouteTLS
    ) -> NextHopConnection:
        """Connect to one of the addresses, which are used up; raises :class:`NextHopUnreachableError`."""

        def make(address: IPAddress) -> NextHopConnection:
            return self._make(hop, _reached(candidate, address), place_of(candidate), tls, address)

        race = HappyEyeballs(
            self._reactor,
            addresses,
            candidate.port,
            make,
            timeout=self._settings.connect_timeout,
            head_start=self._settings.head_start,
            source=hop.terms.source_for,
        )
        racing = race.run()
        self._racing[racing] = None
        try:
            connection = await racing
        except CancelledError as error:
            raise NextHopUnreachableError("given up") from error
        except NextHopUnreachableError as error:
            if error.silent:
                self._remember(self._silent, place_of(candidate), self._settings.silence_memory)
            raise
        finally:
            self._racing.pop(racing, None)
        self._silent.pop(place_of(candidate), None)
        return connection

    async def connect_unix(self, hop: NextHop) -> NextHopConnection:
        """Connect to the hop's socket; raises :class:`NextHopUnreachableError`."""
        connection = self._make(hop, hop.path, (hop.path, 0), RouteTLS.NONE, None)
        await connect_unix(self._reactor, hop.path, connection, self._settings.connect_timeout)
        return connection

    def _make(
        self, hop: NextHop, name: str, place: Place, tls: RouteTLS, address: IPAddress | None
    ) -> NextHopConnection:
        settings = ClientSettings(
            self._settings.hostname,
            hop.lmtp,
            self._settings.deadlines,
            tls=tls,
            credentials=hop.credentials,
            plaintext_login=address is None or address.is_loopback,
            ignored=hop.terms.ignored | self.memory.refused(place),
            most_recipients=self.memory.most_recipients(place),
        )
        handshake = None
        if tls is not RouteTLS.NONE:
            handshake = self._tls.handshake(
                place[0], verified=tls.is_verified, authorities=hop.terms.authorities
            )
        return NextHopConnection(
            self._reactor,
            settings,
            handshake,
            name=name,
            address=address,
            lifetime=self._settings.lifetime,
            read=self._read,
            trace=self._settings.trace,
        )

    # Hosts that do not answer

    def in_order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates as they are to be tried: last of all those that have just not answered.

        Else each message would wait for them again, as long as one may take to connect.
        """
        now = self._reactor.seconds()
        return sorted(candidates, key=lambda each: self._silent.get((each.host, each.port), 0.0) > now)

    # Hosts whose TLS does not work

    def tls_for(self, hop: NextHop, candidate: Candidate) -> RouteTLS:
        """Whether to try TLS with a candidate: not where it is optional and has just failed."""
        until = self._no_tls.get(place_of(candidate), 0.0)
        if self.may_fall_back(hop) and until > self._reactor.seconds():
            return RouteTLS.NONE
        return hop.tls

    def may_fall_back(self, hop: NextHop) -> bool:
        """Whether the message may go in the clear where TLS fails: credentials never do."""
        return hop.tls is RouteTLS.MAY and hop.credentials is None

    def remember_no_tls(self, place: Place) -> None:
        """So that not each message pays for a handshake that fails."""
        self._remember(self._no_tls, place, self._settings.no_tls_memory)

    def _remember(self, memory: BoundedMap[Place, float], place: Place, seconds: float) -> None:
        memory.keep(place, self._reactor.seconds() + seconds)


def place_of(candidate: Candidate) -> Place:
    """Where a candidate is, for what is remembered of it."""
    return (candidate.host, candidate.port)


def _reached(candidate: Candidate, address: IPAddress) -> str:
    if candidate.host == str(address):
        return with_port(candidate.host, candidate.port)
    return f"{candidate.host}[{address}]:{candidate.port}"
