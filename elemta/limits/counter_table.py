"""What a store in memory keeps under one limit's name: bounded, whatever the number of identities."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from elemta.limits.packed_log import (
    UnpackedCounter,
    charged,
    fullness,
    last,
    lifetime,
    packed,
    pruned,
    refunded,
    total,
)
from elemta.limits.store import Request
from elemta.limits.window import Bound, WindowCounter

SHARED_COUNTERS = 1024
_SWEPT_PER_KEY = 2
_SWEPT_WHEN_FULL = 8

V = TypeVar("V")


class RotatingDict(Generic[V]):
    """A dictionary whose entries are looked at in turn, with no list of them beside it."""

    __slots__ = ("_due", "_seen")

    def __init__(self) -> None:
        # In this round those of the first are still to be looked at, and those of the second are not.
        self._due: dict[str, V] = {}
        self._seen: dict[str, V] = {}

    def __len__(self) -> int:
        return len(self._due) + len(self._seen)

    def get(self, identity: str) -> V | None:
        known = self._seen.get(identity)
        return self._due.get(identity) if known is None else known

    def put(self, identity: str, value: V) -> None:
        (self._due if identity in self._due else self._seen)[identity] = value

    def drop(self, identity: str) -> None:
        if self._seen.pop(identity, None) is None:
            self._due.pop(identity, None)

    def items(self) -> Iterable[tuple[str, V]]:
        yield from self._due.items()
        yield from self._seen.items()

    def sweep(self, count: int, over: Callable[[V], bool]) -> None:
        """Look at so many of them, and drop those that are over."""
        for _ in range(min(count, len(self))):
            if not self._due:
                self._due, self._seen = self._seen, {}
            identity, value = self._due.popitem()
            if not over(value):
                self._seen[identity] = value


class CounterTable:
    """The counts and the leases of one limit.

    An identity that was charged a few times has them packed (:mod:`elemta.limits.packed_log`), any other a
    counter."""

    __slots__ = ("_bounds", "_counters", "_lifetime", "_max_keys", "_packed", "_shared", "leases")

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        # Nothing in the first is of interest to Python's search for garbage, and so neither is it itself.
        self._packed: RotatingDict[bytes] = RotatingDict()
        self._counters: RotatingDict[WindowCounter] = RotatingDict()
        self.leases: dict[str, int] = {}
        self._shared: dict[int, WindowCounter] = {}
        self._bounds: tuple[Bound, ...] = ()
        # Of all the bounds there were: an identity with an override has others than the rest.
        self._lifetime = 0

    def __len__(self) -> int:
        return len(self._packed) + len(self._counters)

    def __contains__(self, identity: str) -> bool:
        return self._packed.get(identity) is not None or self._counters.get(identity) is not None

    @property
    def shared(self) -> int:
        """How many counters there are that identities share."""
        return len(self._shared)

    # How much was used

    def earliest(self, request: Request, now: int) -> int | None:
        """When the request would pass, as :meth:`WindowCounter.earliest` says it."""
        bounds = request.spec.bounds
        few = self._packed.get(request.identity)
        used = 0 if few is None else total(few)
        counter: WindowCounter | None = None
        if few is None:
            counter = self._known(request)
        elif any(used + request.amount > bound.limit for bound in bounds):
            counter = UnpackedCounter(few, bounds)
        if counter is not None:
            return counter.earliest(now, request.amount)
        return now if all(request.amount <= bound.limit for bound in bounds) else None

    def used(self, request: Request, now: int) -> tuple[int, ...]:
        """What counts at ``now``, for each bound."""
        few = self._packed.get(request.identity)
        bounds = request.spec.bounds
        counter = self._known(request) if few is None else UnpackedCounter(few, bounds)
        return (0,) * len(bounds) if counter is None else counter.used(now)

    def copy_of(self, request: Request) -> WindowCounter:
        """A counter of the caller's own with what counts for the request."""
        bounds = request.spec.bounds
        few = self._packed.get(request.identity)
        if few is not None:
            return UnpackedCounter(few, bounds)
        counter = self._counters.get(request.identity)
        if counter is None and self._shared:
            counter = self._shared.get(share(request.identity))
        copied = WindowCounter(bounds) if counter is None else counter.copy()
        _rebind(copied, bounds)
        return copied

    def fullest(self, count: int, now: int, bounds: tuple[Bound, ...]) -> list[str]:
        """The identities that are nearest to their limit."""
        full = [(fullness(few, now, bounds), identity) for identity, few in self._packed.items()]
        full += [(counter.fullness(now), identity) for identity, counter in self._counters.items()]
        return [identity for _, identity in heapq.nlargest(count, full, key=lambda entry: entry[0])]

    def _known(self, request: Request) -> WindowCounter | None:
        """The counter of an identity that has no few charges: its own, or one that it shares."""
        counter = self._counters.get(request.identity)
        if counter is None and self._shared:
            counter = self._shared.get(share(request.identity))
        if counter is not None and counter.bounds is not request.spec.bounds:
            _rebind(counter, request.spec.bounds)
        return counter

    # Charges

    def charge(self, request: Request, now: int, *, newest: bool = False) -> CounterTable | WindowCounter:
        """Charge it, whether it passes or not; returns where it can be refunded.

        ``newest``: afterwards keep no more than the newest charges that fill the limit.
        """
        identity, bounds = request.identity, request.spec.bounds
        few = self._packed.get(identity)
        if few is not None:
            more = charged(few, now, request.amount, bounds)
            if more is not None and newest:
                more = _newest(more, now, bounds)
            if more is not None:
                self._packed.put(identity, more)
                return self
            counter: WindowCounter = UnpackedCounter(few, bounds)
            self._packed.drop(identity)
            self._counters.put(identity, counter)
        else:
            found = self._counter(request, now)
            if found is None:
                return self
            counter = found
        counter.charge(now, request.amount)
        if newest:
            counter.trim()
        return counter

    def refund(self, identity: str, at: int, amount: int) -> None:
        """Take back one of few charges; one that was reset or dropped meanwhile has no identity any more."""
        few = self._packed.get(identity)
        if few is None:
            counter = self._counters.get(identity)
            if isinstance(counter, UnpackedCounter):
                counter.refund(at, amount)
            return
        left = refunded(few, at, amount)
        if left:
            self._packed.put(identity, left)
        else:
            self._packed.drop(identity)

    def forget(self, identity: str) -> bool:
        """Empty an identity's counter. One that shared gets its own, even above the table's size."""
        if identity not in self and share(identity) not in self._shared:
            return False
        # Not one that a charge of before can be refunded from.
        self._packed.drop(identity)
        self._counters.put(identity, WindowCounter(self._bounds))
        return True

    def _counter(self, request: Request, now: int) -> WindowCounter | None:
        """The counter to charge. None: this was the first charge of an identity, and it is noted, packed."""
        identity, bounds = request.identity, request.spec.bounds
        counter = self._known(request)
        if counter is not None and (not self._shared or self._counters.get(identity) is counter):
            return counter
        if counter is not None and counter.expires <= now:
            del self._shared[share(identity)]
            counter = None
        if bounds is not self._bounds:
            self._bounds = bounds
            self._lifetime = max(self._lifetime, lifetime(bounds))
        self._sweep(now)
        if len(self) < self._max_keys:
            first = packed(now, request.amount) if counter is None else None
            if first is not None:
                self._packed.put(identity, first)
                return None
            counter = WindowCounter(bounds) if counter is None else counter.copy()
            self._counters.put(identity, counter)
        elif counter is None:
            counter = self._shared[share(identity)] = WindowCounter(bounds)
        return counter

    def _sweep(self, now: int) -> None:
        """Drop what has expired, a few at a time: each new identity pays for looking at some old ones."""
        count = _SWEPT_WHEN_FULL if len(self) >= self._max_keys else _SWEPT_PER_KEY
        horizon = now - self._lifetime
        self._packed.sweep(count, lambda few: last(few) <= horizon)
        self._counters.sweep(count, lambda counter: counter.expires <= now)


def _newest(few: bytes, now: int, bounds: tuple[Bound, ...]) -> bytes | None:
    """Without what counts no more, where it is above a limit; None where it is above it even so."""
    if not _exceeds(few, bounds):
        return few
    few = pruned(few, now, bounds)
    return None if _exceeds(few, bounds) else few


def _exceeds(few: bytes, bounds: tuple[Bound, ...]) -> bool:
    used = total(few)
    return any(used > bound.limit for bound in bounds)


def share(identity: str) -> int:
    """Which of the shared counters is this identity's."""
    # Python salts the hashes of strings, so no client can choose a counter to share.
    return hash(identity) % SHARED_COUNTERS


def _rebind(counter: WindowCounter, bounds: tuple[Bound, ...]) -> None:
    if counter.bounds == bounds:
        counter.bounds = bounds
    else:
        counter.rebind(bounds)
