"""The reference model of a limit: at most L in any rolling window of W. No clock and no I/O in here.

Time is an integer of microseconds that the caller passes in. What is charged at time t counts until
t + W: it does at t + W - 1 and does no longer at t + W. So at any time x the charges in (x - W, x] are
at most L, and with them those of every half-open interval of length W. Two charges exactly W apart
never count together.

Up to :data:`LOG_LIMIT` per window every charge keeps its own microsecond (the exact log). Above, and
for amounts such as bytes, a charge counts as though it had been made at the end of its sub-bucket of
W / 60: the oldest, partly expired one is counted whole. That is the same algorithm on a coarser grid,
it errs to the safe side by at most one sub-bucket, and it never admits more than L either.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

LOG_LIMIT = 128
SUB_BUCKETS = 60


@dataclass(frozen=True, slots=True)
class Bound:
    """At most ``limit`` in any ``window`` microseconds, counted on a grid of ``grain`` microseconds."""

    limit: int
    window: int
    grain: int = 1

    @classmethod
    def of(cls, limit: int, window: int, *, weighted: bool = False) -> Bound:
        """The bound with the grid that belongs to it; ``weighted`` for amounts such as bytes."""
        exact = limit <= LOG_LIMIT and not weighted
        return cls(limit, window, 1 if exact else max(1, -(-window // SUB_BUCKETS)))

    def slot(self, at: int) -> int:
        """The time that a charge at ``at`` counts as: never earlier, less than one grain later."""
        return at if self.grain == 1 else -(-at // self.grain) * self.grain


class Series:
    """What counts against one bound: times on its grid, ascending, and the amount charged at each.

    Charges of the same microsecond share an entry, so nothing tells them apart, and nothing needs to.
    """

    __slots__ = ("_amounts", "_times", "bound", "total")

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.total = 0
        self._times = array("q")
        self._amounts = array("q")

    def carried(self, bound: Bound) -> Series:
        """The same charges under another bound. Coarser or finer, none counts for less time than it did."""
        other = Series(bound)
        for time, amount in zip(self._times, self._amounts, strict=True):
            other.add(time, amount)
        return other

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The charges: the time and the amount of each."""
        return zip(self._times, self._amounts, strict=True)

    @property
    def expires(self) -> int:
        """When the last charge stops counting; 0 when nothing was charged."""
        return self._times[-1] + self.bound.window if self._times else 0

    def prune(self, now: int) -> None:
        """Forget what no longer counts at ``now``."""
        horizon = now - self.bound.window
        times = self._times
        if not times or times[0] > horizon:
            return
        gone = bisect_right(times, horizon)
        self.total -= sum(self._amounts[:gone])
        del times[:gone]
        del self._amounts[:gone]

    def earliest(self, now: int, amount: int) -> int | None:
        """When ``amount`` more would pass if nothing else were charged: ``now``, later, or None for never.

        Call :meth:`prune` first.
        """
        limit = self.bound.limit
        if amount > limit:
            return None
        excess = self.total + amount - limit
        if excess <= 0:
            return now
        # excess <= total, so the sum of the oldest reaches it.
        position = bisect_left(list(accumulate(self._amounts)), excess)
        return self._times[position] + self.bound.window

    def add(self, at: int, amount: int) -> None:
        """Charge ``amount`` at ``at``, whether it passes or not."""
        slot = self.bound.slot(at)
        times = self._times
        self.total += amount
        if not times or times[-1] < slot:
            times.append(slot)
            self._amounts.append(amount)
            return
        position = bisect_left(times, slot)
        if times[position] == slot:
            self._amounts[position] += amount
        else:
            times.insert(position, slot)
            self._amounts.insert(position, amount)

    def trim(self) -> None:
        """Forget the oldest charges that newer ones which fill the limit make irrelevant."""
        position, total = 0, self.total
        while position < len(self._amounts) and total - self._amounts[position] >= self.bound.limit:
            total -= self._amounts[position]
            position += 1
        if position:
            self.total = total
            del self._times[:position]
            del self._amounts[:position]

    def remove(self, at: int, amount: int) -> None:
        """Take back what :meth:`add` charged with the same arguments; nothing once that has expired."""
        slot = self.bound.slot(at)
        times = self._times
        position = bisect_left(times, slot)
        if position == len(times) or times[position] != slot:
            return
        held = self._amounts[position]
        self.total -= min(amount, held)
        if held > amount:
            self._amounts[position] = held - amount
        else:
            del times[position]
            del self._amounts[position]


class WindowCounter:
    """What one identity has used of one limit: a series for each of the limit's bounds, charged together.

    Time may go back: what was charged in a time that is to come again counts until it is W past, so a
    clock that is set back makes charges count longer, never shorter.
    """

    __slots__ = ("_series", "bounds")

    def __init__(self, bounds: tuple[Bound, ...]) -> None:
        self.bounds = bounds
        self._series = tuple(Series(bound) for bound in bounds)

    @classmethod
    def of_charges(
        cls, bounds: tuple[Bound, ...], charges: Sequence[Sequence[tuple[int, int]]]
    ) -> WindowCounter:
        """A counter with these charges, for each bound its own: the time and the amount of each."""
        counter = cls(bounds)
        for series, known in zip(counter._series, charges, strict=True):
            for at, amount in known:
                series.add(at, amount)
        return counter

    def charges(self) -> list[list[tuple[int, int]]]:
        """What :meth:`of_charges` makes the same counter of."""
        return [list(series) for series in self._series]

    def copy(self) -> WindowCounter:
        twin = WindowCounter(self.bounds)
        twin._series = tuple(series.carried(series.bound) for series in self._series)
        return twin

    @property
    def expires(self) -> int:
        """The time from which on this counter is as good as a new one."""
        return max((series.expires for series in self._series), default=0)

    def fullness(self, now: int) -> float:
        """The fullest bound's share at ``now``, 1.0 for a full one."""
        used = zip(self.used(now), self.bounds, strict=True)
        return max((total / bound.limit if bound.limit else 1.0 for total, bound in used), default=0.0)

    def used(self, now: int) -> tuple[int, ...]:
        """What counts at ``now``, for each bound."""
        for series in self._series:
            series.prune(now)
        return tuple(series.total for series in self._series)

    def earliest(self, now: int, amount: int) -> int | None:
        """When ``amount`` would pass all bounds: ``now``; exactly when, if nothing else is charged; or never.

        None stands for never: the amount alone is more than a limit.
        """
        latest = now
        for series in self._series:
            series.prune(now)
            passes = series.earliest(now, amount)
            if passes is None:
                return None
            latest = max(latest, passes)
        return latest

    def charge(self, at: int, amount: int) -> None:
        """Charge all bounds, whether it passes or not (ask :meth:`earliest`)."""
        for series in self._series:
            series.prune(at)
            series.add(at, amount)

    def trim(self) -> None:
        """Keep no more than the newest charges that fill the limit: after charges without a decision."""
        for series in self._series:
            series.trim()

    def refund(self, at: int, amount: int) -> None:
        """Take one charge back, once: the caller sees to that. Nothing after it has expired."""
        for series in self._series:
            series.remove(at, amount)

    def rebind(self, bounds: tuple[Bound, ...]) -> None:
        """Go on under other bounds, with what was charged so far."""
        self._series = tuple(_source(bound, self._series).carried(bound) for bound in bounds)
        self.bounds = bounds


def _source(bound: Bound, known: Sequence[Series]) -> Series:
    """The series that knows best what a new bound has to count: of its window, or of the next longer one."""
    longer = [series for series in known if series.bound.window >= bound.window]
    if longer:
        return min(longer, key=lambda series: (series.bound.window, series.bound.grain))
    return max(known, key=lambda series: series.bound.window, default=Series(bound))
