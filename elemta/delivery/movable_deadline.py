"""A deadline that can be moved at no cost, and that does not blame the other side for time lost here."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

STANDSTILL_SECONDS = 1.0
"""A timer that fires later than this was kept from firing."""

READING_SECONDS = 0.05
"""So long the reactor then has to read what has come."""


class MovableDeadline:
    """Calls something when a deadline passes. To move the deadline further away costs no timer.

    A timer that fires late says nothing about the other side: this process was suspended, or had no time to
    read what had come. Then that is read first.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._at = inf
        self._due = inf
        self._late: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float | None, late: Callable[[], None]) -> None:
        """Call ``late`` after so many seconds, in place of what was to be called before; None: never."""
        self._late = late
        self._at = inf if seconds is None else self._clock.seconds() + seconds
        timer = self._timer
        if seconds is None or (timer is not None and self._due <= self._at):
            return
        if timer is not None:
            timer.cancel()
        self._look_in(seconds)

    def clear(self) -> None:
        """There is no deadline for now."""
        self._at = inf

    def stop(self) -> None:
        """There is none any more."""
        self._at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._due = self._clock.seconds() + seconds
        self._timer = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        left = self._at - now
        if left <= 0 and now - self._due > STANDSTILL_SECONDS:
            self._look_in(READING_SECONDS)
        elif left <= 0:
            self._at = inf
            if self._late is not None:
                self._late()
        elif left < inf:
            self._look_in(left)
