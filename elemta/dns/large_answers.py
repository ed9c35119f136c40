"""Threads that read large answers: what any zone may send must not keep the reactor busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.runtime import Threads, WorkerPool

_T = TypeVar("_T")

THREADS = 2
MOST = 64
"""So many answers are read or wait for it at once, each of 64 KiB at most."""


class LargeAnswers:
    """Runs a function in a thread; the threads start with the first one."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._pool: WorkerPool | None = None
        self._jobs = 0
        self._idle: Deferred[None] | None = None

    def run(self, job: Callable[[], _T]) -> Deferred[_T] | None:
        """What ``job`` returns or raises; None where too many wait. Cancelled, its result is dropped."""
        if self._jobs >= MOST:
            return None
        if self._pool is None:
            self._pool = self._threads.pool("elemta-dns", THREADS)
            self._pool.start()
        self._jobs += 1
        result: Deferred[_T] = Deferred()
        self._pool.call(job).addBoth(self._finish, result)
        return result

    async def stop(self) -> None:
        """Wait for what is being read, and end the threads."""
        if self._jobs:
            self._idle = Deferred()
            await self._idle
        pool, self._pool = self._pool, None
        if pool is not None:
            # The threads are idle now: joining them does not block.
            pool.stop()

    def _finish(self, outcome: _T | Failure, result: Deferred[_T]) -> None:
        self._jobs -= 1
        if not result.called:
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)
        if self._idle is not None and not self._jobs:
            idle, self._idle = self._idle, None
            idle.callback(None)
