"""A deadline that moves with every reply, and a timer that does not have to."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Watch:
    """Calls something when a deadline passes. To move the deadline further away costs no timer."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._at = inf
        self._late: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float | None, late: Callable[[], None]) -> None:
        """Call ``late`` after so many seconds, in place of what was to be called before; None: never."""
        self._late = late
        self._at = inf if seconds is None else self._clock.seconds() + seconds
        timer = self._timer
        if seconds is None or (timer is not None and timer.getTime() <= self._at):
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._clock.callLater(seconds, self._look)

    def clear(self) -> None:
        """There is no deadline for now."""
        self._at = inf

    def stop(self) -> None:
        """There is none any more."""
        self._at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        left = self._at - self._clock.seconds()
        if left <= 0:
            self._at = inf
            if self._late is not None:
                self._late()
        elif left < inf:
            self._timer = self._clock.callLater(left, self._look)
