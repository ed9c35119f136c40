"""The threads that write to Maildirs, and what happens where one of them hangs in a file system."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery.maildir import STUCK, Errors, MaildirJob, MaildirWriter
from elemta.delivery.settings import DeliverySettings
from elemta.runtime import WorkerPool

_log = Logger()

_MOST_TOGETHER = 64
# Seconds between two looks at the threads.
_LOOK_EVERY = 5.0


@dataclass(slots=True, eq=False)
class _MaildirBatch:
    """What one thread writes; ``steps`` is what it had done at the time ``since``."""

    jobs: Sequence[MaildirJob]
    waiting: Sequence[Deferred[Errors]]
    since: float
    steps: int = 0
    directory: str = ""


class MaildirThreads:
    """Writes jobs in threads, together those that wait for one.

    A thread that takes what has come meanwhile costs one hop and one sync of a directory for many
    messages, and gets more of the interpreter than one thread for each.

    A thread that gets no answer of the file system for ``maildir_deadline`` is left alone, and another one
    goes on in its place, for up to ``stuck_threads``. Its messages are deferred, and nothing else
    is tried in that Maildir before the thread comes back. It delivers nothing more then, and what it had
    delivered is remembered for the next attempt.
    """

    def __init__(self, reactor: IReactorTime, pool: WorkerPool, settings: DeliverySettings) -> None:
        self.settings = settings
        self._reactor = reactor
        self._pool = pool
        self._writer = MaildirWriter()
        self._waiting: deque[tuple[MaildirJob, Deferred[Errors]]] = deque()
        self._busy: dict[_MaildirBatch, None] = {}
        self._stuck: dict[_MaildirBatch, None] = {}
        self._look_call: IDelayedCall | None = None
        self._looked_at = 0.0

    @property
    def has_stuck_thread(self) -> bool:
        """Whether a thread hangs in a file system."""
        return bool(self._stuck)

    def write(self, job: MaildirJob) -> Deferred[Errors]:
        """Make the job's drops; fires with the error of each, or None."""
        done: Deferred[Errors] = Deferred()
        self._waiting.append((job, done))
        self._start()
        return done

    def _start(self) -> None:
        threads = self.settings.maildir_threads
        if not self._waiting or len(self._busy) >= threads:
            return
        if len(self._busy) + len(self._stuck) >= threads + self.settings.stuck_threads:
            if not self._busy:
                self._refuse_waiting()
            return
        # A fair share: the others sync at the same time, which the disk does together.
        share = min(-(-len(self._waiting) // threads), _MOST_TOGETHER)
        taken = [self._waiting.popleft() for _ in range(share)]
        jobs = [job for job, _ in taken]
        batch = _MaildirBatch(jobs, [done for _, done in taken], self._reactor.seconds())
        self._busy[batch] = None
        self._look_later()
        self._pool.call(self._writer.write, jobs).addBoth(self._finished, batch)

    def _refuse_waiting(self) -> None:
        """No thread is left: what waits is deferred at once, so that it does not keep other mail waiting."""
        waiting, self._waiting = self._waiting, deque()
        for job, done in waiting:
            job.content.close()
            done.callback(_errors_of(job))

    def _finished(self, results: list[Errors] | Failure, batch: _MaildirBatch) -> None:
        if batch in self._stuck:
            self._came_back(batch)
            self._start()
            return
        del self._busy[batch]
        self._start()
        if not self._busy and self._look_call is not None:
            self._look_call.cancel()
            self._look_call = None
        if isinstance(results, Failure):
            for done in batch.waiting:
                done.errback(results)
            return
        for done, errors in zip(batch.waiting, results, strict=True):
            done.callback(errors)

    # Threads that hang

    def _look_later(self) -> None:
        if self._look_call is None:
            self._looked_at = self._reactor.seconds()
            self._look_call = self._reactor.callLater(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._look_call = None
        now = self._reactor.seconds()
        # While this process stands still, so do its threads: that time is no file system's.
        stood_still = now - self._looked_at > 2 * _LOOK_EVERY
        for batch in list(self._busy):
            steps = sum(job.progress.steps for job in batch.jobs)
            if stood_still or steps != batch.steps:
                batch.steps, batch.since = steps, now
            elif now - batch.since >= self.settings.maildir_deadline:
                self._give_up(batch)
        if self._busy:
            self._look_later()

    def _give_up(self, batch: _MaildirBatch) -> None:
        for job in batch.jobs:
            job.progress.given_up = True
        batch.directory = next((job.progress.directory for job in batch.jobs if job.progress.directory), "")
        stuck = self._writer.stuck
        stuck[batch.directory] = stuck.get(batch.directory, 0) + 1
        del self._busy[batch]
        self._stuck[batch] = None
        _log.warn(
            "a file system does not answer; mail for its Maildirs is deferred",
            event="maildir.stuck",
            directory=batch.directory,
            messages=len(batch.jobs),
            stuck=len(self._stuck),
        )
        self._start()
        for job, done in zip(batch.jobs, batch.waiting, strict=True):
            done.callback(_errors_of(job))

    def _came_back(self, batch: _MaildirBatch) -> None:
        del self._stuck[batch]
        stuck = self._writer.stuck
        stuck[batch.directory] -= 1
        if not stuck[batch.directory]:
            del stuck[batch.directory]
        for job in batch.jobs:
            for place in sorted(job.done):
                self._writer.late.keep(job.deliveries[place].file, None)
        _log.info(
            "the file system of a Maildir answers again", event="maildir.answered", directory=batch.directory
        )


def _errors_of(job: MaildirJob) -> Errors:
    """The errors of a message that is given up: none where it was delivered."""
    error = OSError(errno.ETIMEDOUT, STUCK)
    done = job.done.copy()
    return [None if place in done else error for place in range(len(job.deliveries))]
