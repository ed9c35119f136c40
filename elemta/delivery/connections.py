"""Sending transactions to next hops: candidate by candidate, over connections that are kept and counted."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from elemta.config import RouteTLS
from elemta.delivery.client_protocol import NextHopConnection
from elemta.delivery.dialer import Dialer, place_of
from elemta.delivery.happy_eyeballs import NextHopUnreachableError
from elemta.delivery.hop_memory import HopMemory, Place
from elemta.delivery.local_faults import all_local, of_route
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.outgoing_content import OpenContent, Read
from elemta.delivery.pool import ConnectionPool, Gate, HostSlots, PooledConnection
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.slots import ConnectionSlot, NoSlotError
from elemta.dns.system_names import AddressResolver
from elemta.ip import IPAddress
from elemta.metrics import DeliveryMetrics
from elemta.outcome import LocalFault, Outcome, ReachedStage, Status, all_delivered, furthest
from elemta.smtp.client_commands import ClientTransaction

_log = Logger()

# Connections of one attempt on which a server was listened to: each may take all the time of its deadlines.
_MOST_SESSIONS = 3
# How often the same server is tried in another way: without BDAT, by IPv4.
_MOST_OTHER_WAYS = 2
_LONGEST_TEXT = 500


class Connections:
    """Sends transactions to next hops.

    A connection on which a message went well waits a while for the next one to the same place. No more are
    open at one time than the route and the destination allow, idle ones included; messages that wait for one
    take turns by destination.
    """

    def __init__(
        self,
        reactor: Any,
        settings: DeliverySettings,
        read: Read,
        metrics: DeliveryMetrics | None = None,
        *,
        gate: Gate | None = None,
        host: HostSlots | None = None,
        authorities: str = "",
        resolver: AddressResolver | None = None,
        memory: HopMemory | None = None,
    ) -> None:
        self.metrics = metrics or DeliveryMetrics()
        #: Reads the content of a message in chunks.
        self.read = read
        self.pool = ConnectionPool(reactor, settings, self.metrics, gate, host)
        self.dialling = Dialer(reactor, settings, read, authorities, resolver, memory=memory)
        #: Changes when everything that is under way has to be given up.
        self.abandoned = 0

    @property
    def open(self) -> int:
        """How many connections are open, resting ones included."""
        return self.pool.open

    def send(
        self, hop: NextHop, transaction: ClientTransaction, open_content: OpenContent
    ) -> Coroutine[Any, Any, tuple[Outcome, ...]]:
        """Send a transaction to the first candidate that takes it. Does not raise for anything of the peers.

        What the first server that answered for the message said makes the outcomes; those before it were not
        to be had. That server may be tried once more, in another way, for recipients that it refused for
        the way. ``open_content`` is called once for each envelope.
        """
        return _Sending(self, hop, transaction, open_content).run()

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Use these settings from now on; no connection that is open now gets another message."""
        self.dialling.reconfigure(settings)
        self.pool.reconfigure(settings)

    async def stop(self) -> None:
        """Close all connections politely; what still has a message after a short wait is cut."""
        await self.pool.stop()

    def abandon(self) -> None:
        """Cut everything and give every wait up; what was under way is deferred."""
        self.abandoned += 1
        self.pool.refuse("Elemta is stopping")
        self.dialling.cancel()
        self.pool.cut()


class _Sending:
    """One transaction on its way: which connection it gets, and what is tried when one is no good.

    It holds a slot whenever no connection does it for it.
    """

    def __init__(
        self,
        connections: Connections,
        hop: NextHop,
        transaction: ClientTransaction,
        open_content: OpenContent,
    ) -> None:
        self._connections = connections
        self._pool = connections.pool
        self._dialling = connections.dialling
        self._metrics = connections.metrics
        self._hop = hop
        self._transaction = transaction
        self._attempt = transaction.attempt
        self._attempt.final = hop.lmtp
        self._open_content = open_content
        self._slot: ConnectionSlot | None = None
        self._sessions = 0
        self._most_sessions = _MOST_SESSIONS
        self._other_ways = 0
        self._abandoned = connections.abandoned
        self._unreachable: list[str] = []
        self._faults: list[LocalFault] = []
        self._refusal: tuple[Outcome, ...] | None = None
        self._is_ours = False

    async def run(self) -> tuple[Outcome, ...]:
        try:
            claimed = await self._pool.claim(self._hop)
        except NoSlotError as error:
            self._attempt.begin()
            # RFC 3463 §3.5 X.4.5: too much mail for what there is here, and not the next hop's trouble
            return self._deferred(str(error), "4.4.5", ReachedStage.NOTHING_FREE)
        # The wait for a connection does not count.
        self._attempt.begin()
        try:
            sent = None
            if isinstance(claimed, ConnectionSlot):
                self._slot = claimed
            else:
                self._metrics.connections.labels("reused").inc()
                sent = await self._over(claimed, reused=True)
            if sent is None:
                # A kept one was dead before it took a word: that is no attempt yet.
                self._refusal = None
                sent = await self._anew()
            return self._excuse_destination(sent) if self._hop.terms.chosen else sent
        finally:
            if self._slot is not None:
                self._pool.release(self._slot)

    def _excuse_destination(self, sent: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        """What failed for the way that a policy chose is this mail's trouble: the destination is up."""
        return tuple(
            replace(outcome, reached=ReachedStage.ANSWERED, local=LocalFault.NONE)
            if outcome.reached is ReachedStage.NOWHERE and (self._is_ours or _is_about_terms(outcome))
            else outcome
            for outcome in sent
        )

    async def _anew(self) -> tuple[Outcome, ...]:
        """Try one candidate after the other over new connections."""
        if self._hop.path:
            sent = await self._over_unix()
            return sent or self._nowhere()
        for candidate in self._dialling.in_order(self._hop.candidates):
            try:
                sent = await self._with(candidate)
            except NextHopUnreachableError as error:
                self._unreachable.append(f"{candidate.host}: {error}")
                self._faults.append(error.local)
                cant_bind = bool(self._hop.terms.source) and LocalFault.SOCKETS in error.local
                self._is_ours = self._is_ours or cant_bind or error.by_terms
                self._metrics.connections.labels("failed").inc()
                continue
            if sent is not None:
                return sent
            if self._is_over:
                break
        return self._nowhere()

    @property
    def _is_over(self) -> bool:
        return self._sessions >= self._most_sessions or self._abandoned != self._connections.abandoned

    async def _with(self, candidate: Candidate) -> tuple[Outcome, ...] | None:
        addresses = await self._dialling.addresses(candidate, self._hop.terms)
        while addresses and not self._is_over:
            tls = self._dialling.tls_for(self._hop, candidate)
            sent = await self._on(candidate, addresses, tls)
            if sent is not None:
                return sent
        return None

    async def _on(
        self, candidate: Candidate, addresses: list[IPAddress], tls: RouteTLS
    ) -> tuple[Outcome, ...] | None:
        connection = await self._dialling.connect(self._hop, candidate, addresses, tls)
        sent = await self._over(self._add(connection, candidate.host, candidate.port))
        if connection.tls is not None:
            self._metrics.tls.labels(connection.tls.version).inc()
        if not connection.tls_failed:
            return sent
        self._metrics.tls.labels("failed").inc()
        if sent is None and self._dialling.may_fall_back(self._hop) and not self._is_over:
            # RFC 7435 §3: where TLS is optional, a message goes rather in the clear than not at all.
            self._dialling.remember_no_tls(place_of(candidate))
            same = [connection.address] if connection.address is not None else []
            again = await self._dialling.connect(self._hop, candidate, same, RouteTLS.NONE)
            return await self._over(self._add(again, candidate.host, candidate.port))
        return sent

    async def _over_unix(self) -> tuple[Outcome, ...] | None:
        try:
            connection = await self._dialling.connect_unix(self._hop)
        except NextHopUnreachableError as error:
            self._unreachable.append(str(error))
            self._faults.append(error.local)
            self._metrics.connections.labels("failed").inc()
            return None
        return await self._over(self._add(connection, self._hop.path, 0))

    def _add(self, connection: NextHopConnection, host: str, port: int) -> PooledConnection:
        slot, self._slot = self._slot, None
        assert slot is not None  # noqa: S101 - no connection is made without one
        self._sessions += 1
        return self._pool.add(connection, self._hop, (host, port), slot)

    async def _over(self, kept: PooledConnection, *, reused: bool = False) -> tuple[Outcome, ...] | None:
        """Send it over this connection; None: this server is no good, and another may be."""
        connection = kept.connection
        attempt = self._attempt
        attempt.next_hop = connection.name
        attempt.works = self._hop.works_when_kept if reused else self._hop.works
        sent = await connection.send(self._transaction, self._open_content)
        delivered = all_delivered(sent)
        answered = delivered or furthest(sent) is ReachedStage.ANSWERED
        self._remember(kept, answered=answered)
        if answered and not delivered:
            other_way = await self._other_way(kept, sent)
            if other_way is not None:
                return await self._by_other_way(kept, sent, *other_way)
        # What is wrong with our credentials is so with every address, and may lock the account.
        if answered or connection.login_refused:
            try:
                self._pool.give_back(kept)
            except Exception:
                # It would count as busy for ever; its message is done all the same.
                _log.failure("a connection could not be given back", event="delivery.connection_lost")
                connection.cut()
            return sent
        # A host that may take it later outweighs one that never will.
        if self._refusal is None or not _is_final(sent):
            self._refusal = sent
        self._slot = kept.take_slot()
        await kept.closed()
        return None

    # The same server in another way

    def _remember(self, kept: PooledConnection, *, answered: bool) -> None:
        """Note what the server has shown of itself."""
        connection, memory = kept.connection, self._dialling.memory
        if connection.offers_refused:
            for keyword in sorted(connection.offers_refused):
                memory.refuses(kept.place, keyword)
        if connection.most_recipients:
            memory.takes_recipients(kept.place, connection.most_recipients)
        features = connection.features
        if kept.noted is features:
            return
        if connection.starttls_refused:
            self._dialling.remember_no_tls(kept.place)
        # It says so once. What the route does not believe may be believed by another route to the same place.
        if answered and not self._hop.terms.ignored:
            kept.noted = features
            memory.offers(kept.place, features)
            if self._hop.destination:
                memory.domain_offers(self._hop.destination, features)

    async def _other_way(
        self, kept: PooledConnection, sent: tuple[Outcome, ...]
    ) -> tuple[tuple[int, ...], list[IPAddress]] | None:
        """The places of recipients that the server refused for the way of sending, and where to go then.

        Of none of them it has the message: it said so.
        """
        address = kept.connection.address
        if self._other_ways >= _MOST_OTHER_WAYS or self._abandoned != self._connections.abandoned:
            return None
        again = kept.connection.again
        if again:
            return again, [] if address is None else [address]
        if not _is_over_ipv6(kept):
            return None
        refused = tuple(place for place, outcome in enumerate(sent) if _is_by_policy(outcome))
        if not refused:
            return None
        four: list[IPAddress] = [each for each in await self._addresses_at(kept.place) if each.version == 4]
        return (refused, four) if four else None

    async def _addresses_at(self, place: Place) -> list[IPAddress]:
        candidate = self._candidate_at(place)
        try:
            return [] if candidate is None else await self._dialling.addresses(candidate, self._hop.terms)
        except NextHopUnreachableError:
            return []

    def _candidate_at(self, place: Place) -> Candidate | None:
        return next((each for each in self._hop.candidates if place_of(each) == place), None)

    async def _by_other_way(
        self,
        kept: PooledConnection,
        sent: tuple[Outcome, ...],
        places: tuple[int, ...],
        addresses: list[IPAddress],
    ) -> tuple[Outcome, ...]:
        """Send it to these recipients over a new connection; the others keep their outcomes."""
        self._slot = kept.take_slot()
        kept.quit()
        await kept.closed()
        if self._slot is None:
            return sent
        self._other_ways += 1
        self._most_sessions = self._sessions + 2
        whole = self._transaction
        self._transaction = replace(whole, recipients=tuple(whole.recipients[place] for place in places))
        self._refusal = None
        # What is tried is taken out of the list.
        by_ipv4 = _is_over_ipv6(kept) and all(each.version == 4 for each in addresses)
        more = await self._at_same_server(kept.place, addresses) or self._refusal
        self._transaction = whole
        if more is None:
            return sent
        if by_ipv4 and any(each.status is Status.DELIVERED for each in more):
            self._dialling.memory.took_by_ipv4(kept.place)
        by_place = dict(zip(places, more, strict=True))
        return tuple(by_place.get(place, outcome) for place, outcome in enumerate(sent))

    async def _at_same_server(self, place: Place, addresses: list[IPAddress]) -> tuple[Outcome, ...] | None:
        candidate = self._candidate_at(place)
        if candidate is None:
            return await self._over_unix() if self._hop.path else None
        try:
            while addresses and not self._is_over:
                tls = self._dialling.tls_for(self._hop, candidate)
                sent = await self._on(candidate, addresses, tls)
                if sent is not None:
                    return sent
        except NextHopUnreachableError:
            self._metrics.connections.labels("failed").inc()
        return None

    def _nowhere(self) -> tuple[Outcome, ...]:
        """The result when no candidate was any good."""
        refusal = self._refusal
        if refusal is not None and not (self._unreachable and _is_final(refusal)):
            return refusal
        text = f"no connection to {self._hop.name}: {'; '.join(self._unreachable) or 'given up'}"
        # A server that was listened to shows that all is well here.
        local = LocalFault.NONE if self._sessions else all_local(self._faults)
        if self._hop.by_route and local:
            local = of_route(local)
        return self._deferred(text[:_LONGEST_TEXT], "4.4.1", ReachedStage.NOWHERE, local)

    def _deferred(
        self, text: str, enhanced: str, reached: ReachedStage, local: LocalFault = LocalFault.NONE
    ) -> tuple[Outcome, ...]:
        self._attempt.next_hop = self._hop.name
        everyone = [recipient.address for recipient in self._transaction.recipients]
        return self._attempt.same_for_all(
            everyone, Status.DEFERRED, enhanced, text, reached=reached, local=local
        )


def _is_over_ipv6(kept: PooledConnection) -> bool:
    address = kept.connection.address
    return address is not None and address.version == 6


def _is_by_policy(outcome: Outcome) -> bool:
    """Whether the server refused it for security or policy (RFC 3463 §3.8), as for an address of the client
    without a name."""
    return outcome.status is Status.FAILED and bool(outcome.code) and outcome.enhanced.startswith("5.7.")


def _is_about_terms(outcome: Outcome) -> bool:
    """Whether the server was there, and TLS or the login did not come about (RFC 3463 §3.8)."""
    return not outcome.code and outcome.enhanced.startswith("4.7.")


def _is_final(sent: tuple[Outcome, ...]) -> bool:
    return all(outcome.status is Status.FAILED for outcome in sent)
