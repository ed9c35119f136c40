"""The common ways to limit a rate, each as short as it can be written, and the adversary of them all.

Time is in microseconds. ``admit(now)`` says whether one more passes, and counts it if so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.limits.window import SUB_BUCKETS, Bound, WindowCounter

PHASES = 120
TICKS_PER_LIMIT = 2  # moments in a window at which it is tried, as a multiple of the limit
LEAST_TICKS = 400
WINDOWS = 3  # that one run of the adversary lasts


class Algorithm(Protocol):
    def admit(self, now: int) -> bool: ...


class Model:
    """Elemta's own, the reference model of ``elemta.limits``."""

    def __init__(self, bound: Bound) -> None:
        self._counter = WindowCounter((bound,))

    def admit(self, now: int) -> bool:
        if self._counter.earliest(now, 1) != now:
            return False
        self._counter.charge(now, 1)
        return True


class FixedWindow:
    """A counter that begins anew with each window of the clock."""

    def __init__(self, limit: int, window: int) -> None:
        self._limit, self._window = limit, window
        self._number, self._count = -1, 0

    def admit(self, now: int) -> bool:
        if now // self._window != self._number:
            self._number, self._count = now // self._window, 0
        if self._count >= self._limit:
            return False
        self._count += 1
        return True


class TwoCounters:
    """The last window's counter, weighted by what of it the rolling window still covers, and this one's."""

    def __init__(self, limit: int, window: int) -> None:
        self._limit, self._window = limit, window
        self._counts: dict[int, int] = {}

    def admit(self, now: int) -> bool:
        number, elapsed = divmod(now, self._window)
        last, this = self._counts.get(number - 1, 0), self._counts.get(number, 0)
        if last * (1 - elapsed / self._window) + this + 1 > self._limit:
            return False
        self._counts[number] = this + 1
        return True


class Bucket:
    """GCRA, which is a token bucket: a token each ``window / limit``, and a burst of the limit's size."""

    def __init__(self, limit: int, window: int) -> None:
        self._interval = window / limit
        self._tolerance = window - self._interval
        self._arrival = -float(window)

    def admit(self, now: int) -> bool:
        arrival = max(self._arrival, float(now))
        # A thousandth of a microsecond for what floating point rounds.
        if arrival - now > self._tolerance + 0.001:
            return False
        self._arrival = arrival + self._interval
        return True


class LooseBuckets:
    """Sub-buckets; the oldest, partly expired one is weighted by what is left of it, or dropped."""

    def __init__(self, limit: int, window: int, *, weighted: bool) -> None:
        self._limit, self._grain, self._weighted = limit, window // SUB_BUCKETS, weighted
        self._buckets: deque[list[int]] = deque()
        self._count = 0  # of all buckets but the oldest that is weighted

    def admit(self, now: int) -> bool:
        number, elapsed = divmod(now, self._grain)
        while self._buckets and self._buckets[0][0] <= number - SUB_BUCKETS - self._weighted:
            self._count -= self._buckets.popleft()[1]
        count = float(self._count)
        if self._weighted and self._buckets and self._buckets[0][0] == number - SUB_BUCKETS:
            count -= self._buckets[0][1] * elapsed / self._grain
        if count + 1 > self._limit:
            return False
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0])
        self._buckets[-1][1] += 1
        self._count += 1
        return True


@dataclass(frozen=True)
class Way:
    """One way to limit, with the words of the table."""

    words: str
    make: Callable[[int, int], Algorithm]
    ours: bool = False


WAYS = (
    Way("exact log", lambda limit, window: Model(Bound(limit, window)), ours=True),
    Way(
        "sub-buckets, the oldest counted whole",
        lambda limit, window: Model(Bound(limit, window, window // SUB_BUCKETS)),
        ours=True,
    ),
    Way("two counters, weighted (“sliding window”)", TwoCounters),
    Way("GCRA or token bucket, burst = limit", Bucket),
    Way("sub-buckets, the oldest weighted", lambda limit, window: LooseBuckets(limit, window, weighted=True)),
    Way("sub-buckets, the oldest dropped", lambda limit, window: LooseBuckets(limit, window, weighted=False)),
    Way("fixed window", FixedWindow),
)


def worst_window(times: Sequence[int], window: int) -> int:
    """The most of these ascending times that any half-open interval of this length holds."""
    worst = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - window:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def attack(algorithm: Algorithm, limit: int, window: int, phase: int) -> list[int]:
    """What passes of an adversary that waits until ``phase`` and then tries at each tick until refused."""
    # Far from zero, in the first microsecond of a window of the clock.
    begin = 10 * window + phase
    ticks = max(LEAST_TICKS, TICKS_PER_LIMIT * limit)
    passed = []
    for tick in range(WINDOWS * ticks + 1):
        now = begin + tick * window // ticks
        for _ in range(2 * limit):
            if not algorithm.admit(now):
                break
            passed.append(now)
    return passed


def phases(window: int) -> list[int]:
    """Everywhere in a window, and just before and behind each turn of a counter."""
    steps = [number * window // PHASES for number in range(PHASES)]
    return sorted({(step + around) % window for step in steps for around in (-1, 0, 1)})


def worst_of_all(way: Way, limit: int, window: int) -> int:
    """The worst window over all phases of the adversary."""
    return max(
        worst_window(attack(way.make(limit, window), limit, window, phase), window)
        for phase in phases(window)
    )
