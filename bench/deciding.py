"""Decisions of the limits through the daemon's own parts over a real Valkey: store, load, sessions."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from servers import BenchError, cpu_seconds
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from valkeys import ValkeyServer

from elemta.config.valkey_url import parse_valkey_url
from elemta.limits.failover_store import FailoverStore
from elemta.limits.memory import LocalStore
from elemta.limits.valkey_store import ValkeyStore
from elemta.metric_registry import MetricRegistry
from elemta.metrics import ValkeyMetrics
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey

PREFIX = "elemta:ratelimit:"
NODE = "bench"
PATIENCE = 10.0
DEADLINE = 0.05  # the default of valkey_deadline

ALONE = 0.01
TURN = 256  # decisions

Ask = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Client:
    """A session as far as limits look at it."""

    client_ip: IPv4Address
    listener: str = "mx"
    helo: str = "client.test"
    user: str | None = None


@asynccontextmanager
async def remote(reactor: Any, server: ValkeyServer, node: str) -> AsyncIterator[ValkeyStore]:
    """The store of one node, with nothing before it, counting in this Valkey. It is patient."""
    async with connected(reactor, server, PATIENCE) as valkey:
        yield ValkeyStore(valkey, prefix=PREFIX, node_id=node, runtime=Runtime.of(reactor))


@asynccontextmanager
async def store(reactor: Any, server: ValkeyServer) -> AsyncIterator[tuple[FailoverStore, Valkey]]:
    """The store as a daemon has it, and its connection."""
    async with connected(reactor, server) as valkey:
        shared = ValkeyStore(valkey, prefix=PREFIX, node_id=NODE, runtime=Runtime.of(reactor))
        counted = FailoverStore(reactor, valkey, shared, LocalStore(Runtime.of(reactor)), nodes=OneNode())
        counted.start()
        try:
            if not await counted.joined(PATIENCE):
                raise BenchError("limits are not counted in Valkey")
            yield counted, valkey
        finally:
            counted.stop()


REGISTRY = MetricRegistry()
METRICS = ValkeyMetrics(REGISTRY)


def failed_calls() -> int:
    """How many calls Valkey did not answer, or not in time."""
    found = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in found if sample.name == "elemta_valkey_failures_total"))


class OneNode:
    """A fleet of one."""

    node_id = NODE
    live = 1

    def announce_reset(self, limit: str, identity: str) -> None: ...

    def on_reset(self, callback: Callable[[str, str], object]) -> None: ...


@asynccontextmanager
async def connected(reactor: Any, server: ValkeyServer, deadline: float = DEADLINE) -> AsyncIterator[Valkey]:
    """A connection to this Valkey."""
    valkey = Valkey(
        Runtime.of(reactor),
        parse_valkey_url(server.url),
        name="elemta-bench",
        deadline=deadline,
        metrics=METRICS,
    )
    valkey.start()
    try:
        late = time.monotonic() + PATIENCE
        while not valkey.up:
            if time.monotonic() > late:
                raise BenchError("no connection to Valkey")
            await deferLater(reactor, 0.05)
        yield valkey
    finally:
        await valkey.stop()


@dataclass
class Measured:
    """What a load came to. Times in seconds."""

    decisions: int
    seconds: float
    cpu: float
    server_cpu: float
    failures: int
    latencies: Sequence[float] = field(repr=False)

    @property
    def rate(self) -> float:
        return self.decisions / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu / self.decisions

    @property
    def server_cpu_each(self) -> float:
        return self.server_cpu / self.decisions

    def latency(self, percent: int) -> float:
        return statistics.quantiles(self.latencies, n=100)[percent - 1]


class Load:
    """So many decisions in flight all the time: the next is asked when one is answered.

    They are numbered on from ``first``.
    """

    def __init__(self, reactor: Any, ask: Ask, in_flight: int, first: int = 0) -> None:
        self._reactor = reactor
        self._ask = ask
        self._in_flight = in_flight
        self._number = first
        self._last = 0.0
        self._until = 0.0
        self._timed = True
        self._open = 0
        self._latencies: list[float] = []
        self._end: Deferred[None] = Deferred()

    async def run(self, seconds: float, server: ValkeyServer) -> Measured:
        """For so long."""
        self._latencies = []
        began, cpu, server_cpu = time.perf_counter(), time.process_time(), cpu_seconds(server.pid())
        failures = failed_calls()
        await self._go(math.inf, began + seconds)
        took = time.perf_counter() - began
        return Measured(
            len(self._latencies),
            took,
            time.process_time() - cpu,
            cpu_seconds(server.pid()) - server_cpu,
            failed_calls() - failures,
            self._latencies,
        )

    async def count(self, decisions: int) -> None:
        """So many."""
        await self._go(self._number + decisions, math.inf)

    async def _go(self, last: float, until: float) -> None:
        self._end = Deferred()
        self._last, self._until, self._timed = last, until, last == math.inf
        for _ in range(self._in_flight):
            self._next()
        await self._end

    def _next(self) -> None:
        number = self._number
        self._number += 1
        self._open += 1
        asked = time.perf_counter()
        answer = self._ask(number)
        if not isinstance(answer, Deferred):
            # The breaker is open for a moment; what the node decides alone is no measure of Valkey.
            METRICS.failures.labels("unavailable").inc()
            self._open -= 1
            deferLater(self._reactor, ALONE, self._next).addErrback(self._failed)
            return
        answer.addCallback(self._answered, asked).addErrback(self._failed)

    def _answered(self, _answer: object, asked: float) -> None:
        now = time.perf_counter()
        if self._timed:
            self._latencies.append(now - asked)
        self._open -= 1
        if self._number < self._last and now < self._until:
            self._next()
        elif not self._open:
            self._end.callback(None)

    def _failed(self, failure: Any) -> None:
        self._last = 0.0
        if not self._end.called:
            self._end.errback(failure)


class Pace:
    """So many decisions a second, asked each millisecond, whether the last ones are answered or not.

    Like sockets, it gives the reactor a bounded number of them in a turn; a load that is more than the
    process can do is late then, and lateness is part of the latency.
    """

    def __init__(self, ask: Ask, rate: int) -> None:
        self._ask = ask
        self._rate = rate

    async def run(self, seconds: float, server: ValkeyServer, reactor: IReactorTime) -> Measured:
        """For so long. What the node decides alone, because the breaker is open, counts as failed."""
        latencies: list[float] = []

        def answered(_answer: object, due: float) -> None:
            latencies.append(time.perf_counter() - due)

        began, cpu, server_cpu = time.perf_counter(), time.process_time(), cpu_seconds(server.pid())
        failures = failed_calls()
        asked = alone = 0
        while (elapsed := time.perf_counter() - began) < seconds:
            most = asked + TURN
            while asked < min(elapsed * self._rate, most):
                # From when it was due, so that a late loop is not taken for a quick answer.
                answer = self._ask(asked)
                if isinstance(answer, Deferred):
                    answer.addCallback(answered, began + asked / self._rate)
                else:
                    alone += 1
                asked += 1
            await deferLater(reactor, 0.0 if asked == most else 0.001)
        deadline = time.monotonic() + PATIENCE
        while len(latencies) + alone < asked:
            if time.monotonic() > deadline:
                raise BenchError(f"{asked - alone - len(latencies)} decisions were never answered")
            await deferLater(reactor, 0.01)
        return Measured(
            asked,
            time.perf_counter() - began,
            time.process_time() - cpu,
            cpu_seconds(server.pid()) - server_cpu,
            failed_calls() - failures + alone,
            latencies,
        )


def address(number: int) -> IPv4Address:
    """One of 16 million client addresses."""
    return IPv4Address((10 << 24) + number % (1 << 24))
