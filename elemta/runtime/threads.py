"""Threads of the system; the only place where they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread, deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elemta.runtime import OrderedWorker, WorkerPool

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")


class SystemThreads:
    """Threads of the system, which report to ``reactor``."""

    def __init__(self, reactor: ReactorBase) -> None:
        self._reactor = reactor

    def pool(self, name: str, most: int, *, daemon: bool = False) -> WorkerPool:
        return _Pool(self._reactor, name, most, daemon=daemon)

    def ordered(self, name: str, number: int = 1) -> OrderedWorker:
        return _Ordered(self._reactor, name, number)


class _Pool:
    """Twisted's ThreadPool: grows and shrinks with the work."""

    def __init__(self, reactor: Any, name: str, most: int, *, daemon: bool) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, most, name)
        if daemon:
            self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        self._pool.start()

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        return deferToThreadPool(self._reactor, self._pool, work, *args, **kwargs)

    def resize(self, most: int) -> None:
        self._pool.adjustPoolsize(0, most)

    def stop(self) -> None:
        self._pool.stop()

    def join(self) -> Deferred[None]:
        # Joining threads blocks, so it is done in one.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    def leave(self) -> None:
        # Work that never ends must not keep a thread of the reactor's, which its end waits for.
        Thread(target=self._pool.stop, name="elemta-pool-end", daemon=True).start()


class _Ordered:
    """A queue and its threads.

    Twisted's ThreadPool does more (it grows, shrinks, and carries log contexts), and takes several times
    as long to hand work over: with a thread that wakes for every batch, that is time of the reactor's.
    """

    def __init__(self, reactor: ReactorBase, name: str, number: int) -> None:
        self._reactor = reactor
        self._queue: SimpleQueue[tuple[Callable[[], object], Callable[[Failure], object] | None] | None]
        self._queue = SimpleQueue()
        self._threads = [Thread(target=self._run, name=f"{name}-{each}") for each in range(number)]
        for thread in self._threads:
            thread.start()

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
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
        self._queue.put((partial(work, *args, **kwargs), None))

    def start_or(self, failed: Callable[[Failure], object], work: Callable[[], object]) -> None:
        self._queue.put((work, failed))

    def stop(self) -> None:
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
                _log.failure("work in a worker thread failed", event="thread.failed")
                if failed is not None:
                    self._reactor.callFromThread(failed, Failure())
            # What it refers to must not live until the next work comes.
            del item, work, failed


def call_in_reactor_thread_pool(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
    """For plugins in other applications of Twisted, which hand no runtime in."""
    return deferToThread(work, *args, **kwargs)
