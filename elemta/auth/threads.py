"""The threads in which passwords are verified: few, with a bounded and fair queue, apart from all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.auth.fair_queue import Claim, FairQueue
from elemta.errors import CredentialsUnavailable
from elemta.runtime import Threads, WorkerPool

THREADS = 2
QUEUE = 64

Verification = Callable[[], str | None]
"""Blocks; gives the canonical name of the user, or None."""


@dataclass(slots=True, eq=False)
class _Job:
    verification: Verification
    result: Deferred[str | None]


class HashingThreads:
    """Runs blocking verifications; at most ``threads`` at once and ``queue`` more that wait.

    What waits is served in the order of :class:`~elemta.auth.fair_queue.FairQueue`.
    """

    def __init__(self, source: Threads, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._source = source
        self._threads = threads
        self._queue: FairQueue[_Job] = FairQueue(queue)
        self._pool: WorkerPool | None = None
        self._stopping = False
        self._running = 0
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """Start the threads. After the fork of twistd, never before."""
        if self._pool is None:
            self._stopping = False
            self._pool = self._source.pool("elemta-auth", self._threads)
            self._pool.start()

    async def stop(self) -> None:
        """Take nothing more, finish what was taken, end the threads."""
        pool = self._pool
        if pool is None or self._stopping:
            return
        self._stopping = True
        if self._running:
            self._idle = Deferred()
            await self._idle
        self._pool = None
        # The threads are idle now, so that joining them takes no time.
        pool.stop()

    def run(self, verification: Verification, claim: Claim) -> Deferred[str | None]:
        """The result of ``verification`` from a thread.

        Raises :class:`~elemta.errors.CredentialsUnavailable` at once when there is no place in the queue or
        the threads don't run, and fails with it when the place in the queue goes to another. A job
        whose Deferred is cancelled before its turn leaves the queue.
        """
        if self._pool is None or self._stopping:
            raise CredentialsUnavailable("the verification of passwords is not running")

        def leave(_result: Deferred[str | None]) -> None:
            self._queue.remove(job)

        result: Deferred[str | None] = Deferred(leave)
        job = _Job(verification, result)
        if self._running < self._threads:
            self._begin(job)
            return result
        given_up = self._queue.push(job, claim)
        if given_up is not None:
            number = self._running + len(self._queue)
            trouble = CredentialsUnavailable(f"{number} passwords wait for verification already")
            if given_up is job:
                raise trouble
            given_up.result.errback(trouble)
        return result

    def _begin(self, job: _Job) -> None:
        pool = self._pool
        assert pool is not None  # noqa: S101 - it is there until nothing runs
        self._running += 1
        pool.call(job.verification).addBoth(self._finish, job)

    def _finish(self, outcome: str | Failure | None, job: _Job) -> None:
        self._running -= 1
        following = self._queue.pop()
        if following is not None:
            self._begin(following)
        # Also fired when it was cancelled: Twisted drops the one result that comes after that.
        if isinstance(outcome, Failure):
            job.result.errback(outcome)
        else:
            job.result.callback(outcome)
        if self._idle is not None and not self._running:
            idle, self._idle = self._idle, None
            idle.callback(None)
