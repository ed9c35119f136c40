"""A world for tests: a clock, a seed, and threads whose work is done in the turn of the reactor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, ParamSpec, TypeVar, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from elemta.runtime import Runtime
from elemta.runtime.disk import Disk

P = ParamSpec("P")
R = TypeVar("R")


class SimulatedReactor(MemoryReactorClock):
    """A clock, connections in memory, and a way back from threads, which are none."""

    def callFromThread(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        self.callLater(0, function, *args, **kwargs)


class SimulatedWorkers:
    """Does the work of a thread in one of the next turns of the reactor, in the order of the calls."""

    def __init__(self, reactor: Clock, most: int) -> None:
        self.most = most
        self.running = False
        self._reactor = reactor
        self._waiting: deque[Callable[[], None]] = deque()

    def call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        done: Deferred[R] = Deferred()

        def in_turn() -> None:
            try:
                result = work(*args, **kwargs)
            except BaseException:
                done.errback(Failure())
            else:
                done.callback(result)

        self._soon(in_turn)
        return done

    def resize(self, most: int) -> None:
        self.most = most

    def stop(self) -> None:
        """Do what was asked for."""
        while self._waiting:
            self._next()
        self.running = False

    def join(self) -> Deferred[None]:
        self.stop()
        return succeed(None)

    def leave(self) -> None:
        self.stop()

    def _soon(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        self._reactor.callLater(0, self._next)

    def _next(self) -> None:
        if self._waiting:
            self._waiting.popleft()()


class SimulatedPool(SimulatedWorkers):
    """As :class:`elemta.runtime.WorkerPool`."""

    def start(self) -> None:
        self.running = True


class SimulatedOrder(SimulatedWorkers):
    """As :class:`elemta.runtime.OrderedWorker`."""

    def start(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        self._soon(lambda: cast(None, work(*args, **kwargs)))

    def start_or(self, failed: Callable[[Failure], object], work: Callable[[], object]) -> None:
        def in_turn() -> None:
            try:
                work()
            except BaseException:
                failed(Failure())

        self._soon(in_turn)


class SimulatedThreads:
    """Makes threads that are none. ``pools`` are those that were made, by name."""

    def __init__(self, reactor: Clock) -> None:
        self.pools: dict[str, SimulatedWorkers] = {}
        self._reactor = reactor

    def pool(self, name: str, most: int, *, daemon: bool = False) -> SimulatedPool:
        made = self.pools[name] = SimulatedPool(self._reactor, most)
        return made

    def ordered(self, name: str, number: int = 1) -> SimulatedOrder:
        made = self.pools[name] = SimulatedOrder(self._reactor, number)
        return made


def simulated_runtime(
    clock: Clock | None = None,
    *,
    seed: int = 0,
    wall: Callable[[], float] | None = None,
    disk: Disk | None = None,
) -> Runtime:
    """A runtime in which two runs with the same seed are the same. ``clock`` is its reactor.

    ``wall`` gives the time of day where that is another than the clock's.
    """
    reactor = SimulatedReactor() if clock is None else clock
    return Runtime(
        reactor.seconds,
        reactor.seconds if wall is None else wall,
        Random(seed),
        cast(ReactorBase, reactor),
        reactor.seconds,
        SimulatedThreads(reactor),
        disk or Disk(),
    )


def runtime_of(reactor: Any, /, **changed: Any) -> Runtime:
    """The clock of ``reactor`` for all times, with randomness and threads of the system."""
    return replace(Runtime.of(reactor), **changed)
