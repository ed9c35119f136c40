"""Threads that read large answers: what any zone may send must not keep the reactor busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

_T = TypeVar("_T")

THREADS = 2
MOST = 64
"""So many answers are read or wait for it at once, each of 64 KiB at most."""


class _Reactor(Protocol):
    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> None: ...  # noqa: A002


class LargeAnswers:
    """Runs a function in a thread; the threads start with the first one."""

    def __init__(self, reactor: _Reactor) -> None:
        self._reactor = reactor
        self._pool: ThreadPool | None = None
        self._jobs = 0
        self._idle: Deferred[None] | None = None

    def run(self, job: Callable[[], _T]) -> Deferred[_T] | None:
        """What ``job`` returns or raises; None where too many wait. Cancelled, its result is dropped."""
        if self._jobs >= MOST:
            return None
        if self._pool is None:
            self._pool = ThreadPool(minthreads=0, maxthreads=THREADS, name="elemta-dns")
            self._pool.start()
        self._jobs += 1
        result: Deferred[_T] = Deferred()

        def in_thread() -> None:
            outcome: _T | Failure
            try:
                outcome = job()
            except Exception:  # the reactor's side judges it
                outcome = Failure()
            self._reactor.callFromThread(self._finish, result, outcome)

        self._pool.callInThread(in_thread)
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

    def _finish(self, result: Deferred[_T], outcome: _T | Failure) -> None:
        self._jobs -= 1
        if not result.called:
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)
        if self._idle is not None and not self._jobs:
            idle, self._idle = self._idle, None
            idle.callback(None)
