"""The breaker between this node and the shared store: when to leave that alone, and when to trust it."""

from __future__ import annotations

import enum

FAILURES = 3
"""So many failures in a row open the breaker."""

SAME_FAILURE = 0.025
"""Failures that come within so many seconds are one: a single hiccup fails everything that was under way.

With the default deadline a Valkey, or a machine, that stands still for a tenth of a second is forgiven.
"""

PROBE_INTERVAL = 0.4
"""Seconds from a probe that failed to the next one."""

PROBE_SPACING = 0.1
"""Seconds between probes that succeed."""

GOOD_PROBES = 2
"""So many probes in a row have to succeed before the breaker closes again."""

MOST_GOOD_PROBES = 5
"""What :data:`GOOD_PROBES` grows to, doubling, when the breaker keeps opening."""

RELAPSE = 10.0
"""Seconds within which opening again counts as the same trouble."""


class BreakerState(enum.Enum):
    """Open: no calls. Half open: a probe succeeded, others are to come, and there are no other calls yet."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Begins open, because nothing is known yet; then the first good probe closes it.

    Later it takes :data:`GOOD_PROBES` of them in a row, and more when it opens again soon after it closed.
    The caller sends the probes, one at a time, and tells what came of them. All times are of one clock.
    """

    __slots__ = ("_closed_at", "_failed_at", "_failures", "_good", "_needed", "state")

    def __init__(self) -> None:
        self.state = BreakerState.OPEN
        self._failures = 0
        self._failed_at = 0.0
        self._good = 0
        self._needed = 1
        self._closed_at: float | None = None

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """A call was answered. What was asked before the breaker opened decides nothing any more."""
        self._failures = 0

    def failed(self, now: float) -> bool:
        """A call failed; returns whether that opened the breaker."""
        if not self.closed or (self._failures and now - self._failed_at < SAME_FAILURE):
            return False
        self._failures += 1
        self._failed_at = now
        return self._failures >= FAILURES and self.trip(now)

    def trip(self, now: float) -> bool:
        """Open, however few failures there were; returns whether it was closed."""
        self._good = 0
        self._failures = 0
        was_closed = self.closed
        self.state = BreakerState.OPEN
        if was_closed:
            relapsed = self._closed_at is not None and now - self._closed_at < RELAPSE
            self._needed = min(max(self._needed, 1) * 2, MOST_GOOD_PROBES) if relapsed else GOOD_PROBES
        return was_closed

    def probed(self, *, good: bool) -> bool:
        """A probe came to an end; returns whether the breaker may close now (see :meth:`close`)."""
        self._good = self._good + 1 if good else 0
        self.state = BreakerState.HALF_OPEN if good else BreakerState.OPEN
        return self._good >= self._needed

    @property
    def pause(self) -> float:
        """Seconds until the next probe."""
        return PROBE_SPACING if self._good else PROBE_INTERVAL

    def close(self, now: float) -> None:
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._good = 0
        self._closed_at = now
