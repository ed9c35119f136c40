"""A store in this process: the reference model in a dictionary, with bounded memory.

Each limit has room for ``max_keys`` identities of its own, so that a flood of sender addresses can't crowd
out client addresses. A counter is only ever dropped when nothing in it counts any more: no number of new
identities resets anybody. When a limit's room is full, an identity that has none yet shares a counter
with others, chosen by a secret hash; that refuses too early rather than too late. A shared counter is
handed on as a copy to an identity that finds room again, so its own past is in what it starts with.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from zope.interface import implementer

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
SHARED_COUNTERS = 1024
_SWEPT_PER_KEY = 2
_SWEPT_WHEN_FULL = 8
_MICROSECONDS = 1_000_000


class Clock(Protocol):
    """The part of ``IReactorTime`` that a store reads."""

    def seconds(self) -> float: ...


class SteadyClock:
    """Seconds that only go forward, whatever is done to the time of day."""

    def seconds(self) -> float:
        return time.monotonic()


class _Room:
    """What is counted under one limit's name."""

    __slots__ = ("_max_keys", "_rota", "_shared", "counters", "leases")

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self.counters: dict[str, Counter] = {}
        self.leases: dict[str, int] = {}
        self._shared: dict[int, Counter] = {}
        # Every identity that has a counter, in the order in which the sweep comes by.
        self._rota: deque[str] = deque()

    def known(self, request: Request) -> Counter | None:
        """The counter that tells how much this identity has used, or None when it has used nothing."""
        counter = self.counters.get(request.identity)
        if counter is None and self._shared:
            counter = self._shared.get(_share(request.identity))
        if counter is not None and counter.bounds is not request.terms.bounds:
            _rebind(counter, request.terms)
        return counter

    def own(self, request: Request, now: int) -> Counter:
        """The counter to charge; made where there is none."""
        counter = self.counters.get(request.identity)
        if counter is not None:
            return counter
        shared = self.known(request)
        self._sweep(now)
        if len(self.counters) < self._max_keys:
            return self._admit(
                request.identity, Counter(request.terms.bounds) if shared is None else shared.copy()
            )
        if shared is None:
            shared = self._shared[_share(request.identity)] = Counter(request.terms.bounds)
        return shared

    def forget(self, identity: str) -> bool:
        """Empty an identity's counter. One that shared gets its own, even above the room's size."""
        own = self.counters.get(identity)
        if own is not None:
            self.counters[identity] = Counter(own.bounds)
            return True
        shared = self._shared.get(_share(identity))
        if shared is not None:
            self._admit(identity, Counter(shared.bounds))
        return shared is not None

    def _admit(self, identity: str, counter: Counter) -> Counter:
        self.counters[identity] = counter
        self._rota.append(identity)
        return counter

    def _sweep(self, now: int) -> None:
        """Drop what has expired, a few at a time: each new identity pays for looking at two old ones."""
        full = len(self.counters) >= self._max_keys
        for _ in range(min(_SWEPT_WHEN_FULL if full else _SWEPT_PER_KEY, len(self._rota))):
            identity = self._rota.popleft()
            if self.counters[identity].expires <= now:
                del self.counters[identity]
            else:
                self._rota.append(identity)


@implementer(ILimitStore)
class MemoryStore:
    """Limits counted by this process alone; gone when it ends.

    ``clock`` is anything with ``seconds()``. Without one the store has a clock of its own that nobody sets:
    the time of day may be put forward, and then a window would end too early.
    """

    renewal: float | None = None

    def __init__(self, clock: Clock | None = None, *, max_keys: int = MAX_KEYS) -> None:
        self._clock = SteadyClock() if clock is None else clock
        self._max_keys = max_keys
        self._rooms: dict[str, _Room] = {}

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
        now = self._now()
        receipt = self._charge(request, now)
        if isinstance(receipt.origin, Counter):
            receipt.origin.trim()
        return receipt

    def refund(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if not receipt.settled and isinstance(receipt.origin, Counter):
                receipt.settled = True
                # A counter that was reset or dropped meanwhile is nobody's any more: no harm.
                receipt.origin.refund(receipt.at, receipt.request.amount)

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
        """Like :meth:`reset`, for somebody who knows the limit by its name alone."""
        room = self._rooms.get(limit)
        return room is not None and room.forget(identity)

    def top(self, terms: Terms, count: int) -> Ranking:
        """Looks at every key of the limit, about a microsecond each: for people, not for sessions."""
        now = self._now()
        room = self._room(terms)
        if terms.leases is None:
            counters = room.counters
            first = heapq.nlargest(count, counters, key=lambda identity: counters[identity].fullness(now))
        else:
            first = heapq.nlargest(count, room.leases, key=room.leases.__getitem__)
        fills = [self._fill(Request(terms, identity), now) for identity in first]
        return Ranking(tuple(fill for fill in fills if any(fill.used)))

    def size(self, terms: Terms) -> int:
        """How many identities of a limit have a counter of their own."""
        return len(self._room(terms).counters)

    def _now(self) -> int:
        return int(self._clock.seconds() * _MICROSECONDS)

    def _room(self, terms: Terms) -> _Room:
        room = self._rooms.get(terms.name)
        if room is None:
            room = self._rooms[terms.name] = _Room(self._max_keys)
        return room

    def _wait(self, request: Request, now: int) -> int | None:
        terms = request.terms
        room = self._room(terms)
        if terms.leases is not None:
            if request.amount > terms.leases:
                return None
            fits = room.leases.get(request.identity, 0) + request.amount <= terms.leases
            return 0 if fits else LEASE_SECONDS * _MICROSECONDS
        counter = room.known(request)
        if counter is None:
            return 0 if all(request.amount <= bound.limit for bound in terms.bounds) else None
        passes = counter.earliest(now, request.amount)
        return None if passes is None else passes - now

    def _charge(self, request: Request, now: int) -> Receipt:
        room = self._room(request.terms)
        if request.terms.leases is not None:
            room.leases[request.identity] = room.leases.get(request.identity, 0) + request.amount
            return Receipt(request, now)
        counter = room.own(request, now)
        counter.charge(now, request.amount)
        return Receipt(request, now, counter)

    def _fill(self, request: Request, now: int) -> Fill:
        room = self._room(request.terms)
        wait = self._wait(request, now)
        if request.terms.leases is not None:
            return Fill(request, (room.leases.get(request.identity, 0),), wait)
        counter = room.known(request)
        used = (0,) * len(request.terms.bounds) if counter is None else counter.used(now)
        return Fill(request, used, wait)


def _share(identity: str) -> int:
    # Python salts the hashes of strings, so nobody outside can choose whom to share with.
    return hash(identity) % SHARED_COUNTERS


def _rebind(counter: Counter, terms: Terms) -> None:
    if counter.bounds == terms.bounds:
        counter.bounds = terms.bounds
    else:
        counter.rebind(terms.bounds)
