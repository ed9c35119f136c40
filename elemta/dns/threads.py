"""The threads of the resolver: bounded, with a bounded queue, apart from all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elemta.dns.answers import Result
from elemta.errors import ResolverTrouble


class ResolverReactor(Protocol):
    """What the resolver needs of the reactor: timers, the time, and a way back from threads."""

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002 Twisted's name
        /,
        *args: object,
    ) -> IDelayedCall: ...

    def callFromThread(
        self,
        callable: Callable[..., Any],  # noqa: A002 Twisted's name
        /,
        *args: object,
    ) -> None: ...

    def seconds(self) -> float: ...


class LookupThreads:
    """Runs blocking lookups; at most ``threads`` at once and ``queue`` more that wait."""

    def __init__(self, reactor: ResolverReactor, threads: int, queue: int) -> None:
        self._reactor = reactor
        self._capacity = threads + queue
        self._pool = ThreadPool(minthreads=0, maxthreads=threads, name="elemta-dns")
        self._pool.start()
        self._jobs = 0
        self._idle: Deferred[None] | None = None

    def run(self, job: Callable[[], Result], done: Callable[[Result | Failure], None]) -> None:
        """Do ``job`` in a thread, and call ``done`` with what came of it in the reactor's.

        Raises :class:`~elemta.errors.ResolverTrouble` at once when too many wait already.
        """
        if self._jobs >= self._capacity:
            raise ResolverTrouble(f"{self._jobs} lookups are under way already")
        self._jobs += 1

        def in_thread() -> None:
            outcome: Result | Failure
            try:
                outcome = job()
            except Exception:  # the reactor's side judges it
                outcome = Failure()
            self._reactor.callFromThread(self._finish, done, outcome)

        self._pool.callInThread(in_thread)

    async def stop(self) -> None:
        """Wait for every job that was taken, and end the threads. Whoever calls it has cut the jobs short."""
        if self._jobs:
            self._idle = Deferred()
            await self._idle
        # The threads are idle now, so that joining them blocks nobody.
        self._pool.stop()

    def _finish(self, done: Callable[[Result | Failure], None], outcome: Result | Failure) -> None:
        self._jobs -= 1
        try:
            done(outcome)
        finally:
            if self._idle is not None and not self._jobs:
                idle, self._idle = self._idle, None
                idle.callback(None)
