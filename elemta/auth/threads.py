"""The threads in which passwords are verified: few, with a bounded queue, apart from all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elemta.errors import CredentialsUnavailable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 2
QUEUE = 64


class HashingThreads:
    """Runs blocking verifications; at most ``threads`` at once and ``queue`` more that wait."""

    def __init__(self, reactor: IReactorFromThreads, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._reactor = reactor
        self._threads = threads
        self._capacity = threads + queue
        self._pool: ThreadPool | None = None
        self._jobs = 0
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Start the threads. After the fork of twistd, never before."""
        if self._pool is None:
            self._pool = ThreadPool(minthreads=0, maxthreads=self._threads, name="elemta-auth")
            self._pool.start()

    async def stop(self) -> None:
        """Take nothing more, finish what was taken, end the threads."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._jobs:
            self._idle = Deferred()
            await self._idle
        # The threads are idle now, so that joining them blocks nobody.
        pool.stop()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """The result of ``function`` from a thread.

        Raises :class:`~elemta.errors.CredentialsUnavailable` at once when the queue is full or the
        threads don't run. A job whose Deferred was cancelled before its turn is skipped.
        """
        if self._pool is None:
            raise CredentialsUnavailable("the verification of passwords is not running")
        if self._jobs >= self._capacity:
            raise CredentialsUnavailable(f"{self._jobs} passwords wait for verification already")
        self._jobs += 1
        result: Deferred[T] = Deferred()

        def job() -> None:
            outcome: T | Failure | None = None
            try:
                if not result.called:
                    outcome = function(*args, **kwargs)
            except Exception:  # goes to whoever waits for the result
                outcome = Failure()
            self._reactor.callFromThread(self._finish, result, outcome)

        self._pool.callInThread(job)
        return result

    def _finish(self, result: Deferred[T], outcome: T | Failure | None) -> None:
        self._jobs -= 1
        # Also fired when it was cancelled: Twisted drops the one result that comes after that.
        if isinstance(outcome, Failure):
            result.errback(outcome)
        else:
            result.callback(cast(T, outcome))
        if self._idle is not None and not self._jobs:
            idle, self._idle = self._idle, None
            idle.callback(None)
