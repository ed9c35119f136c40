"""Time, randomness, threads, the disk, and the reactor with its timers and sockets, as one value.

The daemon makes one :class:`Runtime` and hands it to each part; ``elemtactl`` makes its own. No other
module reads a clock of the system, draws a random number or makes a thread, and tests/house/test_runtime.py
keeps it. A test replaces all of it by a clock, a seed and threads that run in the turn of the reactor.

There are two clocks. The time of day is set, by NTP or by hand, and then jumps; the monotonic clock only goes
on. So intervals, deadlines and leases are measured with the monotonic clock, and the time of day is asked for
what is shown, sent or stored as a date: times of receipt and of the next attempt, header fields, the log,
certificates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from elemta.runtime.disk import Disk

P = ParamSpec("P")
R = TypeVar("R")


Randomness = Random

SYSTEM_RANDOMNESS: Randomness = SystemRandom()


class HasSeconds(Protocol):
    """The part of Twisted's ``IReactorTime`` that tells the time."""

    def seconds(self) -> float: ...


class WorkerPool(Protocol):
    """Threads for one kind of blocking work. They start with the first call after :meth:`start`."""

    def start(self) -> None: ...

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do the work in a thread. The Deferred has no canceller: what a thread began, it ends."""

    def resize(self, most: int) -> None:
        """From now on at most so many threads."""

    def stop(self) -> None:
        """End the threads. Blocks until they are idle."""

    def join(self) -> Deferred[None]:
        """End the threads; fires when they are gone."""

    def leave(self) -> None:
        """End the threads as soon as they are idle. Nothing waits for that."""


class OrderedWorker(Protocol):
    """One thread, or a few, for blocking work that is done in the order of the calls."""

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do the work in a thread. The Deferred has no canceller: what a thread began, it ends."""

    def start(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do work that reports by itself; a failure of the report is logged."""

    def start_or(self, failed: Callable[[Failure], object], work: Callable[[], object]) -> None:
        """Do work that reports by itself; ``failed`` is called in the reactor's thread where it raises."""

    def stop(self) -> None:
        """Do what was asked for, and end the threads. Blocks."""


class Threads(Protocol):
    """Where threads come from. What they return arrives in the thread of the reactor."""

    def pool(self, name: str, most: int, *, daemon: bool = False) -> WorkerPool:
        """Up to so many threads. The end of the process does not wait for those of a ``daemon`` pool."""

    def ordered(self, name: str, number: int = 1) -> OrderedWorker:
        """So many threads, started at once."""


@dataclass(frozen=True, slots=True, eq=False)
class ProcessRuntime:
    """What any process may know of the world, one without a reactor too.

    ``monotonic`` gives seconds since some moment, ``wall`` seconds since the epoch. ``randomness`` is
    cryptographically secure outside of tests: ids, salts and boundaries are drawn from it.
    """

    monotonic: Callable[[], float]
    wall: Callable[[], float]
    randomness: Randomness

    @classmethod
    def of_system(cls) -> ProcessRuntime:
        """For a command that is run once."""
        return ProcessRuntime(time.monotonic, time.time, SYSTEM_RANDOMNESS)

    def seconds(self) -> float:
        """The monotonic clock, for what takes anything with ``seconds()``."""
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait. For a command: in a daemon nothing may block."""
        time.sleep(seconds)

    def token(self, octets: int) -> str:
        """So many random octets, in hexadecimal."""
        return self.randomness.randbytes(octets).hex()

    def fast_randomness(self) -> Randomness:
        """A generator for what must be unlikely to meet again, and need not be secret: fast, seeded once."""
        return Random(self.randomness.randbytes(16))  # noqa: S311


@dataclass(frozen=True, slots=True, eq=False)
class Runtime(ProcessRuntime):
    """What a part of the daemon may know of the world.

    Timers and sockets are the ``reactor``'s: endpoints get it to connect and to listen. ``since_boot`` gives
    seconds since the system started, with those in which it was suspended. ``disk`` has the system calls that
    durability rests on.
    """

    reactor: ReactorBase
    since_boot: Callable[[], float]
    threads: Threads
    disk: Disk

    @classmethod
    def system(cls, reactor: ReactorBase) -> Runtime:
        """The world of this system. From now on ``reactor`` measures with the monotonic clock, too.

        It also makes no context of the old log for each socket, which none of our records shows.

        Twisted's reactors take the time of day for ``seconds``, by which all their delayed calls go. To be
        called before anything is scheduled.
        """
        # A command makes a ProcessRuntime, and needs neither Twisted nor SQLite.
        from elemta.runtime.disk import Disk  # noqa: PLC0415
        from elemta.runtime.epoll_turn import skip_log_contexts  # noqa: PLC0415
        from elemta.runtime.threads import SystemThreads  # noqa: PLC0415

        # An attribute of the instance: of a static method a class's own would be one, too.
        setattr(reactor, "seconds", time.monotonic)  # noqa: B010 - mypy lets no method be assigned
        skip_log_contexts(reactor)
        threads = SystemThreads(reactor)
        return cls(time.monotonic, time.time, SYSTEM_RANDOMNESS, reactor, _since_boot, threads, Disk())

    @classmethod
    def of(cls, reactor: ReactorBase) -> Runtime:
        """The clock of ``reactor`` for all times; randomness and threads of the system."""
        # As in `system`.
        from elemta.runtime.disk import Disk  # noqa: PLC0415
        from elemta.runtime.threads import SystemThreads  # noqa: PLC0415

        seconds = reactor.seconds
        return cls(seconds, seconds, SYSTEM_RANDOMNESS, reactor, seconds, SystemThreads(reactor), Disk())


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_LASTING = 3600.0
"""Seconds for which the time of day must have been ahead on end before that counts."""

_NO_STEP = 1.0


class SteadyWall:
    """Seconds since the epoch that never jump by themselves.

    It goes on with the monotonic clock from what the time of day was when it was made, until
    :meth:`follow` takes over a change of the time of day.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._wall = runtime.wall
        self._monotonic = runtime.monotonic
        self._offset = runtime.wall() - runtime.monotonic()
        # Since when the time of day is ahead of it, and by how much at least.
        self._behind_since: float | None = None
        self._least_behind = 0.0

    def seconds(self) -> float:
        return self._monotonic() + self._offset

    @property
    def behind(self) -> float:
        """How many seconds the time of day is ahead of it; less than 0 where that was put back."""
        return self._wall() - self.seconds()

    def follow(self) -> float:
        """Take over the time of day; by how many seconds that is ahead of what it was here."""
        behind = self.behind
        self._offset += behind
        return behind

    @property
    def ahead(self) -> float:
        """How many seconds it is ahead of the time of day since that was put back; 0.0 for less than one.

        What got its date from the time of day is so much older by this clock than it is.
        """
        ahead = -self.behind
        return ahead if ahead >= _NO_STEP else 0.0

    @property
    def date(self) -> float:
        """What people read as the time: as :meth:`seconds`, without what it is ahead of the time of day."""
        return self.seconds() - self.ahead

    def follow_what_lasts(self) -> None:
        """Take over by how much the time of day was ahead for an hour; to be called every few seconds.

        It may have been wrong before, or the host was suspended. One that is wrong for minutes makes nothing
        old before its time.
        """
        behind, now = self.behind, self._monotonic()
        if behind < _NO_STEP:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since, self._least_behind = now, behind
        else:
            self._least_behind = min(self._least_behind, behind)
            if now - self._behind_since >= _LASTING:
                self._offset += self._least_behind
                self._behind_since = None
