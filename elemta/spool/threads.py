"""Threads of the spool's own: the reactor's pool also resolves names; a stalled disk must not stall that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.threadpool import ThreadPool

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
    """A few threads for blocking work; with one thread, the work is done in the order of the calls."""

    def __init__(self, reactor: SpoolReactor, name: str, threads: int = 1) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(1, threads, name)
        self._pool.start()

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do the work in a thread. The Deferred has no canceller: what a thread began, it ends."""
        done: Deferred[R] = Deferred()

        def deliver(success: bool, result: Any) -> None:
            self._reactor.callFromThread(done.callback if success else done.errback, result)

        self._pool.callInThreadWithCallback(deliver, work, *args, **kwargs)
        return done

    def start(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do work that reports by itself; a failure of the report is logged by the thread pool."""
        self._pool.callInThread(work, *args, **kwargs)

    def stop(self) -> None:
        """Wait for the work under way and end the threads."""
        self._pool.stop()


class SpoolThreads:
    """One thread that commits, one that reads, and a few for the files of large bodies."""

    def __init__(self, reactor: SpoolReactor, file_threads: int) -> None:
        self.commit = DiskThreads(reactor, "spool-commit")
        self.read = DiskThreads(reactor, "spool-read")
        self.files = DiskThreads(reactor, "spool-files", file_threads)

    def stop(self) -> None:
        for threads in (self.commit, self.read, self.files):
            threads.stop()
