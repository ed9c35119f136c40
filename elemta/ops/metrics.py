"""The metrics as Prometheus text: what is asked before a scrape, and how late the event loop is."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterator

import twisted
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elemta import __version__
from elemta.errors import SpoolError
from elemta.metrics import Metrics, SpoolMetrics
from elemta.spool import SpoolStats

_log = Logger()

#: Seconds that a scrape waits for one polled figure before it shows the last one.
POLL_DEADLINE = 2.0


class MetricsExporter:
    """Shows the metrics of one node to Prometheus, with those of its process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.build_info.set(1, __version__, platform.python_version(), twisted.__version__)
        metrics.registry.register("elemta_process", _ProcessMetrics(metrics.registry.node_id))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(metrics.registry)
        self._polls: dict[str, Callable[[], Awaitable[None]]] = {}
        self._join: Callable[[], Awaitable[bytes]] | None = None

    def join_with(self, gather: Callable[[], Awaitable[bytes]]) -> None:
        """Show what ``gather()`` gives: these metrics, with those of the workers of this daemon."""
        self._join = gather

    def poll(self, source: str, refresh: Callable[[], Awaitable[None]]) -> None:
        """Await ``refresh()`` before each scrape, for at most :data:`POLL_DEADLINE` seconds.

        ``source`` names it where it fails; a second refresh under the same name replaces the first.
        """
        self._polls[source] = refresh

    def watch_spool(self, stats: Callable[[], Awaitable[SpoolStats]]) -> None:
        """Show what ``stats()`` says about the spool at each scrape."""

        async def refresh() -> None:
            try:
                found = await stats()
            except SpoolError:
                # The other figures stay those of the last time.
                self._metrics.spool.healthy.set(0)
                raise
            _show_spool(self._metrics.spool, found)

        self.poll("spool", refresh)

    def render(self) -> bytes:
        """The metrics as they are now, in Prometheus' text format."""
        return generate_latest(self._registry)

    async def scrape(self, clock: IReactorTime) -> bytes:
        """The metrics, polled figures refreshed; one that can't be had in time keeps its last value."""
        for source, refresh in tuple(self._polls.items()):
            try:
                await Deferred.fromCoroutine(_awaited(refresh)).addTimeout(POLL_DEADLINE, clock)
            except Exception as error:  # one source that fails must not cost the others
                self._metrics.poll_failures.labels(source).inc()
                _log.warn(
                    "a figure for the metrics is not available",
                    event="metrics.poll_failed",
                    source=source,
                    error=repr(error),
                )
        return self.render() if self._join is None else await self._join()


class LoopLag:
    """Measures how late the event loop is: a timer every ``interval`` seconds, and when it really came."""

    def __init__(self, metrics: Metrics, clock: IReactorTime, interval: float = 0.5) -> None:
        self._observe = metrics.loop_lag.observe
        self._clock = clock
        self._interval = interval
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        self._due = self._clock.seconds() + self._interval
        self._call = self._clock.callLater(self._interval, self._came)

    def stop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _came(self) -> None:
        self._observe(max(0.0, self._clock.seconds() - self._due))
        self.start()


class _ProcessMetrics(Collector):
    """CPU, memory and file descriptors of this process, under our prefix and with our label."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._process = ProcessCollector(namespace="elemta", registry=None)

    def collect(self) -> Iterator[Metric]:
        for metric in self._process.collect():
            named = Metric(metric.name, metric.documentation, metric.type)
            for sample in metric.samples:
                named.add_sample(sample.name, {"node_id": self._node_id, **sample.labels}, sample.value)
            yield named


def _show_spool(metrics: SpoolMetrics, stats: SpoolStats) -> None:
    for state, number in stats.messages.items():
        metrics.messages.set(number, state.value)
    for state, octets in stats.octets.items():
        metrics.octets.set(octets, state.value)
    metrics.oldest_age.set(stats.oldest_age)
    metrics.free.set(stats.free)
    metrics.healthy.set(int(stats.healthy))
    metrics.undeliverable.set(stats.undeliverable)


async def _awaited(refresh: Callable[[], Awaitable[None]]) -> None:
    await refresh()
