"""Threads of the spool's own: the reactor's pool also resolves names; a stalled disk must not stall that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")


class SpoolReactor(Protocol):
    """What the spool needs of the reactor: timers, the time, and a way back from threads."""

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


class DiskThreads:
    """A few threads for blocking work; with one thread, the work is done in the order of the calls.

    Twisted's ThreadPool does more (it grows, shrinks, and carries log contexts), and takes several times
    as long to hand work over: with a thread that wakes for every batch, that is time of the reactor's.
    """

    def __init__(self, reactor: SpoolReactor, name: str, threads: int = 1) -> None:
        self._reactor = reactor
        self._queue: SimpleQueue[tuple[Callable[[], object], Callable[[Failure], object] | None] | None]
        self._queue = SimpleQueue()
        self._threads = [Thread(target=self._run, name=f"{name}-{number}") for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do the work in a thread. The Deferred has no canceller: what a thread began, it ends."""
        done: Deferred[R] = Deferred()

        def deliver() -> None:
            try:
                result = work(*args, **kwargs)
            except BaseException:
                self._reactor.callFromThread(done.errback, Failure())
            else:
                self._reactor.callFromThread(done.callback, result)

        self._queue.put((deliver, done.errback))
        return done

    def start(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do work that reports by itself; a failure of the report is logged."""
        self._queue.put((partial(work, *args, **kwargs), None))

    def stop(self) -> None:
        """Do what was asked for, and end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, failed = item
            try:
                work()
            except Exception:
                _log.failure("work in a thread of the spool failed", event="spool.thread_failed")
                if failed is not None:
                    self._reactor.callFromThread(failed, Failure())
            # What it refers to must not live until the next work comes.
            del item, work, failed


class SpoolThreads:
    """One thread that commits, one that reads, and a few for the files of large bodies."""

    def __init__(self, reactor: SpoolReactor, file_threads: int) -> None:
        self.commit = DiskThreads(reactor, "spool-commit")
        self.read = DiskThreads(reactor, "spool-read")
        self.files = DiskThreads(reactor, "spool-files", file_threads)

    def stop(self) -> None:
        for threads in (self.commit, self.read, self.files):
            threads.stop()
