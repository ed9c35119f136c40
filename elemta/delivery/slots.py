"""Which delivery may have a connection now: limits per route and destination, and turns for the others."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from elemta.delivery.outbound_limits import FREE, Permit

T = TypeVar("T")


class NoSlotError(Exception):
    """No connection became free in time. The text says where."""


@dataclass(frozen=True, slots=True)
class ConnectionSlot:
    """The right to one open connection; ``permit`` is what the limits per destination said to it."""

    route: str
    destination: str
    permit: Permit = FREE


@dataclass(slots=True, eq=False)
class _Waiter(Generic[T]):
    destination: str
    usable: Callable[[T], bool]
    granted: Deferred[ConnectionSlot | T]
    timer: IDelayedCall | None = None


@dataclass(slots=True)
class _WaitingLine(Generic[T]):
    """One route: how many connections it may have and has, and the waiting deliveries, by destination."""

    most: int
    per_destination: int
    taken: int = 0
    waiting: OrderedDict[str, deque[_Waiter[T]]] = field(default_factory=OrderedDict)


class ConnectionSlots(Generic[T]):
    """Gives out slots, and passes on connections (``T``) that become free to deliveries that can use them.

    Destinations take turns, so that one with many messages does not keep the others of its route waiting.
    """

    def __init__(self, clock: IReactorTime, per_destination: int) -> None:
        self.per_destination = per_destination
        self._clock = clock
        self._lines: dict[str, _WaitingLine[T]] = {}
        self._taken: Counter[tuple[str, str]] = Counter()
        self._kept_back: dict[tuple[str, str], IDelayedCall] = {}
        self._granted: deque[tuple[Deferred[ConnectionSlot | T], ConnectionSlot | T]] = deque()
        self._handing_out = False
        self._over = ""

    def acquire(
        self,
        route: str,
        destination: str,
        most: int,
        seconds: float,
        usable: Callable[[T], bool],
        *,
        per_destination: int = 0,
    ) -> Deferred[ConnectionSlot | T]:
        """A slot, or a connection that became free meanwhile and is ``usable``.

        Fails with :class:`NoSlotError` after so many seconds. Without a destination only the route's
        number counts, which is ``most`` from now on; ``per_destination`` is the other one, 0 the one of all
        routes.
        """
        if self._over:
            return fail(NoSlotError(self._over))
        line = self._lines.setdefault(route, _WaitingLine(most, 0))
        line.most, line.per_destination = most, per_destination
        waiter: _Waiter[T] = _Waiter(destination, usable, Deferred())
        line.waiting.setdefault(destination, deque()).append(waiter)
        waiter.timer = self._clock.callLater(seconds, self._late, route, waiter, seconds)
        self._serve(route)
        return waiter.granted

    def is_full(self, route: str, destination: str, most: int) -> bool:
        """Whether a connection to the destination has to wait now."""
        line = self._lines.get(route)
        return (line is not None and line.taken >= most) or self.is_full_for(route, destination)

    def is_full_for(self, route: str, destination: str) -> bool:
        """Whether the destination alone has all the connections that it may have."""
        return not self._has_capacity(route, destination)

    def is_kept_from(self, name: str) -> bool:
        """Whether a limit lets no connection be made now for a route or destination that has none."""
        kept = any(name in place for place in self._kept_back)
        return kept and not any(name in place for place in self._taken)

    def release(self, slot: ConnectionSlot) -> None:
        """A connection is gone."""
        self._free(slot)
        self._let_go((slot.route, slot.destination))

    def keep_back(self, slot: ConnectionSlot, seconds: float) -> None:
        """Take back a slot that may not be used now.

        For so long, or until a connection to its destination is gone, there is no other in its place; a
        delivery that waits may still get a connection that becomes free.
        """
        place = slot.route, slot.destination
        self._free(slot)
        if place not in self._kept_back and not self._over:
            self._kept_back[place] = self._clock.callLater(seconds, self._let_go, place)
        self._serve(slot.route)

    def look_again(self, route: str, destination: str) -> None:
        """What kept connections of this place back may be over."""
        self._let_go((route, destination))

    def _free(self, slot: ConnectionSlot) -> None:
        self._lines[slot.route].taken -= 1
        self._taken[slot.route, slot.destination] -= 1
        if not self._taken[slot.route, slot.destination]:
            del self._taken[slot.route, slot.destination]

    def _let_go(self, place: tuple[str, str]) -> None:
        timer = self._kept_back.pop(place, None)
        if timer is not None and timer.active():
            timer.cancel()
        if place[0] in self._lines:
            self._serve(place[0])

    def pass_on(self, slot: ConnectionSlot, connection: T) -> bool:
        """Give a connection that became free to a delivery that waits for its destination and can use it."""
        line = self._lines[slot.route]
        for waiter in line.waiting.get(slot.destination, ()):
            if waiter.usable(connection):
                self._grant(line, waiter, connection)
                self._hand_out()
                return True
        return False

    def wait_for(self, route: str) -> bool:
        """Whether deliveries wait for a connection of the route, whatever their destinations."""
        return bool(self._lines[route].waiting)

    def has_waiters(self, slot: ConnectionSlot) -> bool:
        """Whether a delivery would get a connection if this slot were released."""
        waiting = self._lines[slot.route].waiting
        return any(each == slot.destination or self._has_capacity(slot.route, each) for each in waiting)

    def others_wait(self, slot: ConnectionSlot) -> bool:
        """Whether the slot, released, would go to another destination."""
        waiting = self._lines[slot.route].waiting
        return any(each != slot.destination and self._has_capacity(slot.route, each) for each in waiting)

    def give_up(self, text: str) -> None:
        """End all waits, now and later."""
        self._over = text
        for line in list(self._lines.values()):
            for waiters in list(line.waiting.values()):
                for waiter in list(waiters):
                    self._refuse(line, waiter, text)
        for place in list(self._kept_back):
            self._let_go(place)

    def _has_capacity(self, route: str, destination: str) -> bool:
        if (route, destination) in self._kept_back:
            return False
        line = self._lines.get(route)
        most = (line.per_destination if line is not None else 0) or self.per_destination
        return not destination or self._taken[route, destination] < most

    def _serve(self, route: str) -> None:
        line = self._lines[route]
        while line.taken < line.most:
            destination = next((each for each in line.waiting if self._has_capacity(route, each)), None)
            if destination is None:
                break
            line.taken += 1
            self._taken[route, destination] += 1
            # The next time it is the others' turn.
            line.waiting.move_to_end(destination)
            self._grant(line, line.waiting[destination][0], ConnectionSlot(route, destination))
        if not line.taken and not line.waiting:
            del self._lines[route]
        self._hand_out()

    def _grant(self, line: _WaitingLine[T], waiter: _Waiter[T], what: ConnectionSlot | T) -> None:
        self._forget(line, waiter)
        self._granted.append((waiter.granted, what))

    def _hand_out(self) -> None:
        """Answer those that were granted something; they may ask again or give back meanwhile."""
        if self._handing_out:
            return
        self._handing_out = True
        try:
            while self._granted:
                granted, what = self._granted.popleft()
                granted.callback(what)
        finally:
            self._handing_out = False

    def _refuse(self, line: _WaitingLine[T], waiter: _Waiter[T], text: str) -> None:
        self._forget(line, waiter)
        waiter.granted.errback(NoSlotError(text))

    def _late(self, route: str, waiter: _Waiter[T], seconds: float) -> None:
        text = f"no connection was free within {seconds:g} s: all that are allowed are busy"
        self._refuse(self._lines[route], waiter, text)

    def _forget(self, line: _WaitingLine[T], waiter: _Waiter[T]) -> None:
        if waiter.timer is not None and waiter.timer.active():
            waiter.timer.cancel()
        waiters = line.waiting[waiter.destination]
        waiters.remove(waiter)
        if not waiters:
            del line.waiting[waiter.destination]
