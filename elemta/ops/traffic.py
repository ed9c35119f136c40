"""What a node accepted, deferred and refused lately, and each limit today, in rings of a fixed size.

The counters of the metrics are read every :data:`SAMPLE_SECONDS`, and what they grew by is counted in the
slot of that moment. Everything is in memory and begins anew with the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from elemta.metric_registry import counts_of
from elemta.metrics import Metrics

SAMPLE_SECONDS = 5.0
"""How often the counters are read. What is counted may be in the slot after its own by this much."""

HOUR = (60, 60.0)
DAY = (96, 900.0)
"""Slots of a ring, and the seconds of each."""

_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class TrafficSeries:
    """Numbers for each slot of ``seconds``, the oldest first; the last slot is the one under way.

    ``accepted`` are messages, ``deferred`` replies with 4xx and ``refused`` replies with 5xx. ``measured``
    are the seconds before now that were counted: less than those of all slots soon after a start.
    """

    seconds: float
    measured: float
    accepted: tuple[int, ...]
    deferred: tuple[int, ...]
    refused: tuple[int, ...]


class TrafficRing:
    """So many slots of ``seconds`` each, from ``now`` on in seconds of a clock that never goes back."""

    def __init__(self, slots: int, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._began = now
        self._number = 0
        self._slots: deque[list[int]] = deque(([0, 0, 0] for _ in range(slots)), slots)

    def add(self, counts: Iterable[int], now: float) -> None:
        """Count these, one for each kind, in the slot of ``now``."""
        number = int((now - self._began) / self._seconds)
        for _ in range(min(number - self._number, len(self._slots))):
            self._slots.append([0, 0, 0])
        self._number = number
        slot = self._slots[-1]
        for kind, count in enumerate(counts):
            slot[kind] += count

    def series(self, now: float) -> TrafficSeries:
        """The numbers as they were last counted."""
        accepted, deferred, refused = (tuple(slot[kind] for slot in self._slots) for kind in range(3))
        measured = min(now - self._began, len(self._slots) * self._seconds)
        return TrafficSeries(self._seconds, measured, accepted, deferred, refused)


class TrafficHistory:
    """The rings of one node. ``wall`` says which day it is, ``monotonic`` which slot."""

    def __init__(
        self, metrics: Metrics, *, wall: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._net = metrics.net
        self._checks = metrics.limits.checks
        self._wall = wall
        self._monotonic = monotonic
        now = monotonic()
        self._hour = TrafficRing(*HOUR, now)
        self._day = TrafficRing(*DAY, now)
        self._totals = self._read_totals()
        self._checked = dict(counts_of(self._checks))
        self._date = self._today_number()
        self._today: dict[tuple[str, ...], int] = {}

    def sample(self) -> None:
        """Count what came since the last sample."""
        totals = self._read_totals()
        grown = [after - before for after, before in zip(totals, self._totals, strict=True)]
        self._totals = totals
        now = self._monotonic()
        self._hour.add(grown, now)
        self._day.add(grown, now)
        self._sample_limits()

    def _sample_limits(self) -> None:
        date = self._today_number()
        if date != self._date:
            self._date = date
            self._today = {}
        for labels, count in counts_of(self._checks):
            grown = count - self._checked.get(labels, 0)
            if grown:
                self._checked[labels] = count
                self._today[labels] = self._today.get(labels, 0) + grown

    def hour(self) -> TrafficSeries:
        """The last hour, minute by minute."""
        self.sample()
        return self._hour.series(self._monotonic())

    def day(self) -> TrafficSeries:
        """The last 24 hours, by quarters of an hour."""
        self.sample()
        return self._day.series(self._monotonic())

    def limits_today(self) -> Mapping[tuple[str, ...], int]:
        """The checks of this day (UTC), by the names of limit and outcome."""
        self._sample_limits()
        return dict(self._today)

    def _read_totals(self) -> tuple[int, ...]:
        net = self._net
        counters = (net.messages_accepted, net.messages_deferred, net.messages_rejected)
        return tuple(sum(count for _, count in counts_of(counter)) for counter in counters)

    def _today_number(self) -> int:
        return int(self._wall() // _DAY_SECONDS)
