"""Open connections: bounded in number, kept for the next message to the same place, given back when done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, value_of
from elemta.delivery.client_protocol import NextHopConnection
from elemta.delivery.movable_deadline import MovableDeadline
from elemta.delivery.next_hop import NextHop
from elemta.delivery.outbound_limits import LOOK_AGAIN, Permit, Throttled, log_not_released
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.shared_outages import HostOutages
from elemta.delivery.slots import ConnectionSlot, ConnectionSlots, NoSlotError
from elemta.metrics import DeliveryMetrics
from elemta.smtp.client_commands import Features

# Messages in a row for one destination on one connection while others of the route wait for theirs.
_TURN = 10
# How long goodbyes may take at a stop.
_QUIT_SECONDS = 2.0


class PooledConnection:
    """A connection in the pool, and where it leads: ``host`` (or the path of a socket) and ``port``.

    It has its slot until it is closed, unless the slot was taken from it for another.
    """

    def __init__(
        self,
        connection: NextHopConnection,
        hop: NextHop,
        place: tuple[str, int],
        slot: ConnectionSlot,
        *,
        generation: int,
        clock: IReactorTime,
    ) -> None:
        self.connection = connection
        self.slot: ConnectionSlot | None = slot
        self.generation = generation
        #: Whether it waits for a message.
        self.resting = False
        self.is_gone = False
        self.place = place
        self.requirements = hop.requirements
        #: What the next hop offers, once that is remembered for others.
        self.noted: Features | None = None
        self._rest = MovableDeadline(clock)
        self._closing: list[Deferred[None]] = []

    def leads_to(self, hop: NextHop) -> bool:
        """Whether a message for this hop may go here: the same place on the same terms."""
        return self.requirements == hop.requirements and self.place in hop.places

    def rest(self, seconds: float) -> None:
        """Wait for a message, so long."""
        self.resting = True
        self._rest.set(seconds, self.quit)

    def end_rest(self) -> None:
        """It is about to get a message, or to close."""
        self.resting = False
        self._rest.clear()

    def quit(self) -> None:
        self.end_rest()
        self.connection.quit()

    def take_slot(self) -> ConnectionSlot | None:
        """The slot, for the connection that follows this one."""
        slot, self.slot = self.slot, None
        return slot

    def closed(self) -> Deferred[None]:
        """Fires when the connection is gone."""
        closed: Deferred[None] = Deferred()
        if self.is_gone:
            closed.callback(None)
        else:
            self._closing.append(closed)
        return closed

    def gone(self) -> None:
        """The connection is gone, and the pool knows."""
        self.is_gone = True
        self.resting = False
        self._rest.stop()
        closing, self._closing = self._closing, []
        for closed in closing:
            closed.callback(None)


class Gate(Protocol):
    """Says how many connections the limits allow; :class:`elemta.delivery.outbound_limits.OutboundLimiter`
    is one."""

    def connect(self, destination: str) -> MaybeDeferred[Permit | Throttled]:
        """Ask for one connection."""

    def done(self, go: Permit) -> MaybeDeferred[None]:
        """It is closed."""


class HostSlots(Protocol):
    """The connections that all workers of this host may have together, and what they know of destinations."""

    @property
    def outages(self) -> HostOutages:
        """The destinations that are down."""

    def take(self, route: str, destination: str, most: int, per_destination: int) -> MaybeDeferred[bool]:
        """Whether there may be one more of the route, and to the destination."""

    def give_back(self, route: str, destination: str) -> None:
        """It is closed, or did not come about."""

    def is_wanted(self, route: str, destination: str) -> bool:
        """Whether another worker waits for one."""

    def watch(self, user: ConnectionPool) -> None:
        """Call :meth:`ConnectionPool.offered` and :meth:`ConnectionPool.wanted` from now on."""

    def leave(self, user: ConnectionPool) -> None:
        """Call them no more."""


class ConnectionPool:
    """All open connections. A message gets one from :meth:`claim` and gives it back when it is done.

    ``host`` is None where this process has no other workers beside it.
    """

    def __init__(
        self,
        clock: Any,
        settings: DeliverySettings,
        metrics: DeliveryMetrics,
        gate: Gate | None = None,
        host: HostSlots | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._gate = gate
        self._host = host
        if host is not None:
            host.watch(self)
        self._slots: ConnectionSlots[PooledConnection] = ConnectionSlots(clock, settings.max_per_destination)
        self._open: dict[PooledConnection, None] = {}
        self._alike: dict[tuple[object, ...], dict[PooledConnection, None]] = {}
        self._generation = 0

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def resting(self) -> int:
        return sum(kept.resting for kept in self._open)

    def is_kept_from(self, name: str) -> bool:
        """Whether a limit lets no connection be made now for a route or destination that has none."""
        return self._slots.is_kept_from(name)

    async def claim(self, hop: NextHop) -> PooledConnection | ConnectionSlot:
        """A connection that leads to the hop, or the right to make one.

        Raises :class:`~elemta.delivery.slots.NoSlotError`.
        """
        resting = self._resting_for(hop)
        if resting is not None:
            resting.end_rest()
            return resting
        if self._slots.is_full(hop.route, hop.destination, hop.max_connections):
            self._close_idle(hop)
        until = self._clock.seconds() + self._settings.connection_wait
        while True:
            claimed = await self._slots.acquire(
                hop.route,
                hop.destination,
                hop.max_connections,
                until - self._clock.seconds(),
                lambda kept: kept.leads_to(hop),
                per_destination=hop.per_destination,
            )
            if not isinstance(claimed, ConnectionSlot):
                return claimed
            if self._host is not None and not await self._take_of_host(self._host, hop, claimed):
                self._slots.keep_back(claimed, LOOK_AGAIN)
                if self._clock.seconds() >= until:
                    raise NoSlotError("no connection was free: the workers of this host have all")
                continue
            permit = await self._permit(hop, claimed)
            if isinstance(permit, Permit):
                return replace(claimed, permit=permit)
            self._give_back_to_host(claimed)
            self._slots.keep_back(claimed, permit.seconds)
            if self._clock.seconds() >= until:
                raise NoSlotError(f"no connection was free: the limit {permit.limit} is full")

    async def _take_of_host(self, host: HostSlots, hop: NextHop, slot: ConnectionSlot) -> bool:
        most = hop.per_destination or self._slots.per_destination
        try:
            return await value_of(host.take(slot.route, slot.destination, hop.max_connections, most))
        except BaseException:
            self._slots.release(slot)
            raise

    def _give_back_to_host(self, slot: ConnectionSlot) -> None:
        if self._host is not None:
            self._host.give_back(slot.route, slot.destination)

    def offered(self, route: str, destination: str) -> None:
        """The other workers of this host have left a connection to this one."""
        self._slots.look_again(route, destination)

    def wanted(self, route: str, destination: str) -> None:
        """Another worker waits for a connection, of the whole route where no destination is named."""
        for kept in self._open:
            slot = kept.slot
            if slot is None or not kept.resting or slot.route != route:
                continue
            if not destination or slot.destination == destination:
                kept.quit()
                return

    def _is_over_for_others(self, host: HostSlots, slot: ConnectionSlot, served: int) -> bool:
        """Whether another worker is to have this connection's place now."""
        if not host.is_wanted(slot.route, slot.destination):
            return False
        return served % _TURN == 0 or not self._slots.has_waiters(slot)

    def _resting_for(self, hop: NextHop) -> PooledConnection | None:
        """A connection that rests and leads to the hop: to the first of its candidates that has one."""
        alike = self._alike.get(hop.requirements)
        if not alike:
            return None
        for place in hop.places:
            for kept in alike:
                if kept.resting and kept.place == place:
                    return kept
        return None

    async def _permit(self, hop: NextHop, slot: ConnectionSlot) -> Permit | Throttled:
        """What the limits per destination say to one more connection."""
        if self._gate is None:
            return slot.permit
        try:
            return await value_of(self._gate.connect(hop.name))
        except BaseException:
            self._give_back_to_host(slot)
            self._slots.release(slot)
            raise

    def _close_idle(self, hop: NextHop) -> None:
        """Close the connection that rests longest of those in the way of this hop."""
        narrow = self._slots.is_full_for(hop.route, hop.destination)
        for kept in self._open:
            slot = kept.slot
            if not kept.resting or slot is None or slot.route != hop.route:
                continue
            if not narrow or slot.destination == hop.destination:
                kept.quit()
                return

    def add(
        self, connection: NextHopConnection, hop: NextHop, place: tuple[str, int], slot: ConnectionSlot
    ) -> PooledConnection:
        """Take a new connection in, for a message that comes now."""
        kept = PooledConnection(connection, hop, place, slot, generation=self._generation, clock=self._clock)
        self._open[kept] = None
        self._alike.setdefault(kept.requirements, {})[kept] = None
        self._metrics.connections.labels("opened").inc()
        self._metrics.connections_open.inc()
        connection.closed.addCallback(self._closed, kept)
        return kept

    def _closed(self, _: None, kept: PooledConnection) -> None:
        del self._open[kept]
        alike = self._alike[kept.requirements]
        del alike[kept]
        if not alike:
            del self._alike[kept.requirements]
        try:
            self._metrics.connections_open.dec()
            if kept.slot is not None:
                self.release(kept.slot)
        finally:
            # Whatever happened: nothing waits for the end of a connection that is gone.
            kept.gone()

    def release(self, slot: ConnectionSlot) -> None:
        """The connection of the slot is gone, or none came of it."""
        try:
            if self._gate is not None:
                done = self._gate.done(slot.permit)
                if isinstance(done, Deferred):
                    done.addErrback(log_not_released)
        except Exception:
            log_not_released(Failure())
        finally:
            # Whatever happened: no slot is taken without a connection. The host has it back before one that
            # waits here asks for it, or the supervisor would have other workers close theirs.
            self._give_back_to_host(slot)
            self._slots.release(slot)

    def give_back(self, kept: PooledConnection) -> None:
        """The message is done: let the connection serve the next one, rest, or close."""
        if not kept.connection.idle or kept.slot is None:
            return
        served = kept.connection.served
        if (
            kept.generation != self._generation
            or served >= self._settings.messages_per_connection
            or (self._host is not None and self._is_over_for_others(self._host, kept.slot, served))
        ):
            kept.quit()
            return
        if self._slots.wait_for(kept.slot.route):
            if self._pass_on(kept, kept.slot, served):
                return
            if self._slots.has_waiters(kept.slot):
                kept.quit()
                return
        # To the end of the line: the connection that rests longest is closed first.
        del self._open[kept]
        self._open[kept] = None
        kept.rest(self._settings.keep_idle)

    def _pass_on(self, kept: PooledConnection, slot: ConnectionSlot, served: int) -> bool:
        turn_is_over = served % _TURN == 0 and self._slots.others_wait(slot)
        return not turn_is_over and self._slots.pass_on(slot, kept)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Use these settings from now on; nothing that is open now is used again."""
        self._settings = settings
        self._slots.per_destination = settings.max_per_destination
        self.drain()

    def drain(self) -> None:
        """Close what rests now, and what is busy when its message is done."""
        self._generation += 1
        for kept in list(self._open):
            if kept.resting:
                kept.quit()

    async def stop(self) -> None:
        """Close everything, and wait a little for the goodbyes; what still has a message then is cut."""
        self.refuse("Elemta is stopping")
        self.drain()
        late = self._clock.callLater(_QUIT_SECONDS, self.cut)
        await DeferredList([kept.closed() for kept in self._open])
        if late.active():
            late.cancel()

    def cut(self) -> None:
        """Cut every connection."""
        self._generation += 1
        for kept in list(self._open):
            kept.connection.cut()

    def refuse(self, text: str) -> None:
        """End all waits for a connection."""
        if self._host is not None:
            self._host.leave(self)
        self._slots.give_up(text)
