"""The two clocks: one for how long something takes, one for what the date is.

The time of day is set, by NTP or by hand, and then jumps; the monotonic clock only goes on. So intervals,
deadlines and leases are measured with the monotonic clock, and the time of day is asked for what is shown,
sent or stored as a date: times of receipt and of the next attempt, header fields, the log, certificates.

Both are chosen once, where the daemon is put together, and given to each part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class HasSeconds(Protocol):
    """The part of Twisted's ``IReactorTime`` that tells the time."""

    def seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Clocks:
    """``monotonic`` gives seconds since some moment, ``wall`` seconds since the epoch."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]

    @classmethod
    def of(cls, clock: HasSeconds) -> Clocks:
        """One clock for both, such as Twisted's ``Clock`` in tests."""
        return cls(clock.seconds, clock.seconds)


def system_clocks(reactor: HasSeconds) -> Clocks:
    """The clocks of this system. From now on ``reactor`` measures with the monotonic one, too.

    Twisted's reactors take the time of day for ``seconds``, by which all their delayed calls go. To be
    called before anything is scheduled.
    """
    # An attribute of the instance: of a static method a class's own would be one, too.
    setattr(reactor, "seconds", time.monotonic)  # noqa: B010 - mypy lets no method be assigned
    return Clocks(time.monotonic, time.time)


def since_boot() -> float:
    """Seconds since the system started, those included in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyWall:
    """Seconds since the epoch that never jump by themselves.

    It goes on with the monotonic clock from what the time of day was when it was made, until
    :meth:`follow` takes over a change of the time of day.
    """

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._monotonic = clocks.monotonic
        self._offset = clocks.wall() - clocks.monotonic()

    def seconds(self) -> float:
        return self._monotonic() + self._offset

    @property
    def behind(self) -> float:
        """How many seconds the time of day is ahead of it; less than 0 where that was put back."""
        return self._clocks.wall() - self.seconds()

    def follow(self) -> float:
        """Take over the time of day; by how many seconds that is ahead of what it was here."""
        behind = self.behind
        self._offset += behind
        return behind
