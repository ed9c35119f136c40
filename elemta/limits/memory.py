"""A store in this process: the reference model in a dictionary, with bounded memory.

Each limit has space for ``max_keys`` identities of its own, so that a flood of sender addresses can't crowd
out client addresses. A counter is only ever dropped when nothing in it counts any more: no number of new
identities resets a count. When a limit's space is full, an identity that has none yet shares a counter
with others, chosen by a secret hash; that refuses too early rather than too late. A shared counter is
handed on as a copy to an identity that finds space again, so its own past is in what it starts with.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from typing import Protocol

from zope.interface import implementer

from elemta.limits.room import Room
from elemta.limits.store import (
    LEASE_SECONDS,
    Answer,
    Fill,
    ILimitStore,
    Ranking,
    Receipt,
    Request,
    Shortfall,
    Terms,
)
from elemta.limits.window import Counter

MAX_KEYS = 200_000
_MICROSECONDS = 1_000_000


class Clock(Protocol):
    """The part of ``IReactorTime`` that a store reads."""

    def seconds(self) -> float: ...


class SteadyClock:
    """Seconds that only go forward, whatever is done to the time of day."""

    def seconds(self) -> float:
        return time.monotonic()


@implementer(ILimitStore)
class MemoryStore:
    """Limits counted by this process alone; gone when it ends.

    ``clock`` is anything with ``seconds()``. Without one the store has a clock of its own that is never set:
    the time of day may be put forward, and then a window would end too early.
    """

    renewal: float | None = None

    def __init__(self, clock: Clock | None = None, *, max_keys: int = MAX_KEYS) -> None:
        self._clock = SteadyClock() if clock is None else clock
        self._max_keys = max_keys
        self._rooms: dict[str, Room] = {}

    def seconds(self) -> float:
        return self._clock.seconds()

    def acquire(self, requests: Sequence[Request]) -> Answer:
        now = self._now()
        shortfalls = [
            Shortfall(request, wait)
            for request in requests
            if request.terms.binding and (wait := self._wait(request, now)) != 0
        ]
        if shortfalls:
            return Answer((), tuple(shortfalls), granted=False)
        receipts = []
        for request in requests:
            if request.terms.binding or (wait := self._wait(request, now)) == 0:
                receipts.append(self._charge(request, now))
            else:
                shortfalls.append(Shortfall(request, wait))
        return Answer(tuple(receipts), tuple(shortfalls))

    def record(self, request: Request) -> Receipt:
        """Charge what passed elsewhere, whether it would pass here or not.

        A counter keeps no more than its limit, the newest: with those it answers as if it had kept all.
        """
        return self._charge(request, self._now(), newest=True)

    def refund(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            origin, request = receipt.origin, receipt.request
            if receipt.settled or not isinstance(origin, (Room, Counter)):
                continue
            receipt.settled = True
            if isinstance(origin, Room):
                origin.refund(request.identity, receipt.at, request.amount)
            else:
                # A counter that was reset or dropped meanwhile has no identity any more: no harm.
                origin.refund(receipt.at, request.amount)

    def release(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if receipt.settled or not receipt.is_lease:
                continue
            receipt.settled = True
            leases = self._room(receipt.request.terms).leases
            left = leases.get(receipt.request.identity, 0) - receipt.request.amount
            if left > 0:
                leases[receipt.request.identity] = left
            else:
                leases.pop(receipt.request.identity, None)

    def renew(self) -> None:
        """Nothing: leases in memory can't outlive their node."""

    def peek(self, requests: Sequence[Request]) -> tuple[Fill, ...]:
        now = self._now()
        return tuple(self._fill(request, now) for request in requests)

    def reset(self, terms: Terms, identity: str) -> bool:
        return self.forget(terms.name, identity)

    def forget(self, limit: str, identity: str) -> bool:
        """Like :meth:`reset`, for a caller that knows the limit by its name alone."""
        room = self._rooms.get(limit)
        return room is not None and room.forget(identity)

    def top(self, terms: Terms, count: int) -> Ranking:
        """Looks at every key of the limit, about a microsecond each: for people, not for sessions."""
        now = self._now()
        room = self._room(terms)
        if terms.leases is None:
            first = room.fullest(count, now, terms.bounds)
        else:
            first = heapq.nlargest(count, room.leases, key=room.leases.__getitem__)
        fills = [self._fill(Request(terms, identity), now) for identity in first]
        return Ranking(tuple(fill for fill in fills if any(fill.used)))

    def size(self, terms: Terms) -> int:
        """How many identities of a limit have a count of their own."""
        return len(self._room(terms))

    def _now(self) -> int:
        return int(self._clock.seconds() * _MICROSECONDS)

    def _room(self, terms: Terms) -> Room:
        room = self._rooms.get(terms.name)
        if room is None:
            room = self._rooms[terms.name] = Room(self._max_keys)
        return room

    def _wait(self, request: Request, now: int) -> int | None:
        terms = request.terms
        room = self._room(terms)
        if terms.leases is not None:
            if request.amount > terms.leases:
                return None
            fits = room.leases.get(request.identity, 0) + request.amount <= terms.leases
            return 0 if fits else LEASE_SECONDS * _MICROSECONDS
        passes = room.earliest(request, now)
        return None if passes is None else passes - now

    def _charge(self, request: Request, now: int, *, newest: bool = False) -> Receipt:
        room = self._room(request.terms)
        if request.terms.leases is not None:
            room.leases[request.identity] = room.leases.get(request.identity, 0) + request.amount
            return Receipt(request, now)
        return Receipt(request, now, room.charge(request, now, newest=newest))

    def _fill(self, request: Request, now: int) -> Fill:
        room = self._room(request.terms)
        wait = self._wait(request, now)
        if request.terms.leases is not None:
            return Fill(request, (room.leases.get(request.identity, 0),), wait)
        return Fill(request, room.used(request, now), wait)
