"""The metrics of limits, and of the Valkey in which they are counted.

What Elemta counts, as the observers of its packages and as Prometheus text.

Each package calls its own small object (``metrics.net``, ``.chain``, ``.limits``, ``.spool``
and ``.delivery``), whose methods are those of the package's observer protocol; plugins make their own
instruments through ``metrics.plugins``. Everything here belongs to the reactor thread.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterator, Mapping

import twisted
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from elemta import __version__
from elemta.errors import SpoolError, ValkeyFailure
from elemta.limits.failover import BreakerState, CountingMode
from elemta.ops import metric_definitions
from elemta.ops.instruments import Instruments
from elemta.ops.plugin_metrics import PluginMetricsRegistry
from elemta.outcome import Outcome
from elemta.spool import SpoolStats
from elemta.valkey import ValkeyInfo

MEMORY = "memory"


class LimitsMetrics:
    """Counts the checks of limits."""

    def __init__(self, instruments: Instruments) -> None:
        self._checks = instruments.counter(metric_definitions.LIMIT_CHECKS)
        self._duration = instruments.histogram(metric_definitions.LIMIT_CHECK_DURATION)
        self._rejections = instruments.counter(metric_definitions.RATE_LIMIT_REJECTIONS)

    def checked(self, limit: str, outcome: str, seconds: float) -> None:
        self._checks.inc(limit, outcome)
        self._duration.observe(seconds)
        if outcome == "refused":
            self._rejections.inc()


class ModeMetrics:
    """Shows where limits are counted: in memory, until it is set otherwise."""

    def __init__(self, instruments: Instruments) -> None:
        self._mode = instruments.gauge(metric_definitions.LIMITER_MODE)
        self._changes = instruments.counter(metric_definitions.LIMITER_MODE_CHANGES)
        self._breaker = instruments.gauge(metric_definitions.LIMITER_BREAKER)
        self._live = instruments.gauge(metric_definitions.LIVE_NODES)
        self._mode.set(1, MEMORY)

    def mode_changed(self, mode: CountingMode) -> None:
        self._changes.inc(mode.value)
        self._show(mode)

    def breaker_changed(self, state: BreakerState) -> None:
        for each in BreakerState:
            self._breaker.set(int(each is state), each.value)

    def watch(self, mode: Callable[[], CountingMode], live_nodes: Callable[[], int]) -> None:
        """From now on there is a Valkey to count in; show at each scrape how many nodes live."""
        self._mode.set(0, MEMORY)
        self._show(mode())
        self._live.poll = lambda: [((), live_nodes())]

    def _show(self, mode: CountingMode) -> None:
        for each in CountingMode:
            self._mode.set(int(each is mode), each.value)


class ValkeyMetrics:
    """Counts failed commands to Valkey by kind, and shows what Valkey says about itself."""

    def __init__(self, instruments: Instruments) -> None:
        self._failures = instruments.counter(metric_definitions.VALKEY_FAILURES)
        self._up = instruments.gauge(metric_definitions.VALKEY_UP)
        self._commands = instruments.counter(metric_definitions.VALKEY_COMMANDS, counted_elsewhere=True)
        self._memory = instruments.gauge(metric_definitions.VALKEY_MEMORY)
        self._maxmemory = instruments.gauge(metric_definitions.VALKEY_MAXMEMORY)
        self._keys = instruments.gauge(metric_definitions.VALKEY_KEYS)
        self._evicted = instruments.counter(metric_definitions.VALKEY_EVICTED, counted_elsewhere=True)
        self._clients = instruments.gauge(metric_definitions.VALKEY_CLIENTS)

    def failed(self, kind: ValkeyFailure) -> None:
        self._failures.inc(kind)

    def watch(self, up: Callable[[], bool]) -> None:
        """From now on there is a Valkey; show at each scrape whether it answers."""
        self._up.poll = lambda: [((), int(up()))]

    def info(self, info: ValkeyInfo) -> None:
        if not info.primaries:
            # It never said anything, or its connection is gone: nothing more is known.
            return
        self._commands.follow(info.commands_processed)
        self._memory.set(info.used_memory)
        self._maxmemory.set(info.maxmemory)
        self._keys.set(info.keys_db0)
        self._evicted.follow(info.evicted_keys)
        self._clients.set(info.connected_clients)


_log = Logger()

#: Seconds that a scrape waits for one polled figure before it shows the last one.
POLL_DEADLINE = 2.0


class NetMetrics:
    """Counts connections, sessions and replies."""

    def __init__(self, instruments: Instruments) -> None:
        self._opened = instruments.counter(metric_definitions.CONNECTIONS_OPENED)
        self._open = instruments.gauge(metric_definitions.CONNECTIONS_OPEN)
        self._refused = instruments.counter(metric_definitions.CONNECTIONS_REFUSED)
        self._health_checks = instruments.counter(metric_definitions.HEALTH_CHECKS)
        self._duration = instruments.histogram(metric_definitions.SESSION_DURATION)
        self._commands = instruments.counter(metric_definitions.COMMANDS)
        self._accepted = instruments.counter(metric_definitions.MESSAGES_ACCEPTED)
        self._rejected = instruments.counter(metric_definitions.MESSAGES_REJECTED)
        self._deferred = instruments.counter(metric_definitions.MESSAGES_DEFERRED)
        self._size = instruments.histogram(metric_definitions.MESSAGE_SIZE)
        self._tls = instruments.counter(metric_definitions.TLS_CONNECTIONS)
        self._auth = instruments.counter(metric_definitions.AUTH_ATTEMPTS)
        self._memory = instruments.gauge(metric_definitions.SESSION_MEMORY)

    def watch_memory(self, memory: Callable[[], Mapping[str, int]]) -> None:
        """Show at each scrape what ``memory()`` says: octets of all sessions, by kind."""
        self._memory.poll = lambda: [((kind,), octets) for kind, octets in memory().items()]

    def connection_opened(self, listener: str) -> None:
        self._opened.inc(listener)
        self._open.add(listener)

    def connection_closed(self, listener: str, seconds: float) -> None:
        self._open.add(listener, by=-1)
        self._duration.observe(seconds, listener)

    def connection_refused(self, listener: str, reason: str) -> None:
        self._refused.inc(listener, reason)

    def health_check(self, listener: str) -> None:
        self._health_checks.inc(listener)

    def replied(self, verb: str, code: int) -> None:
        self._commands.inc(verb, code)

    def message_accepted(self, listener: str, size: int) -> None:
        self._accepted.inc(listener)
        self._size.observe(size, listener)

    def message_refused(self, stage: str, policy: str, transient: bool) -> None:
        (self._deferred if transient else self._rejected).inc(stage, policy)

    def tls_started(self, version: str) -> None:
        self._tls.inc(version)

    def authenticated(self, outcome: str) -> None:
        self._auth.inc(outcome)


class ChainMetrics:
    """Counts the verdicts and failures of policies."""

    def __init__(self, instruments: Instruments) -> None:
        self._verdicts = instruments.counter(metric_definitions.POLICY_VERDICTS)
        self._failures = instruments.counter(metric_definitions.POLICY_FAILURES)
        self._duration = instruments.histogram(metric_definitions.POLICY_DURATION)
        self._breakers = instruments.gauge(metric_definitions.POLICY_BREAKER_OPEN)

    def watch_breakers(self, breakers: Callable[[], Mapping[str, bool]]) -> None:
        """Show at each scrape what ``breakers()`` says: for each policy in force whether it is left alone."""
        self._breakers.poll = lambda: [((name,), int(is_open)) for name, is_open in breakers().items()]

    def asked(self, policy: str, stage: str, verdict: str, seconds: float) -> None:
        self._verdicts.inc(policy, stage, verdict)
        self._duration.observe(seconds, policy, stage)

    def failed(self, policy: str, stage: str, kind: str) -> None:
        self._failures.inc(policy, stage, kind)


class SpoolMetrics:
    """Counts the spool's commits and failures, and shows what it holds."""

    def __init__(self, instruments: Instruments) -> None:
        self._commits = instruments.histogram(metric_definitions.SPOOL_COMMIT_DURATION)
        self._together = instruments.histogram(metric_definitions.SPOOL_COMMIT_MESSAGES)
        self._failures = instruments.counter(metric_definitions.SPOOL_FAILURES)
        self._messages = instruments.gauge(metric_definitions.SPOOL_MESSAGES)
        self._bytes = instruments.gauge(metric_definitions.SPOOL_BYTES)
        self._oldest = instruments.gauge(metric_definitions.SPOOL_OLDEST_AGE)
        self._free = instruments.gauge(metric_definitions.SPOOL_FREE)
        self._healthy = instruments.gauge(metric_definitions.SPOOL_HEALTHY)
        self._undeliverable = instruments.gauge(metric_definitions.SPOOL_UNDELIVERABLE)
        self._holds_ended = instruments.counter(metric_definitions.HOLDS_ENDED)

    def committed(self, messages: int, seconds: float) -> None:
        self._commits.observe(seconds)
        self._together.observe(messages)

    def failed(self, kind: str) -> None:
        self._failures.inc(kind)

    def hold_ended(self, reason: str) -> None:
        self._holds_ended.inc(reason)

    def unreadable(self) -> None:
        """The spool could not even be asked; the other figures stay those of the last time."""
        self._healthy.set(0)

    def holds(self, stats: SpoolStats) -> None:
        """What is in the spool, and how its disk is, now."""
        for state, number in stats.messages.items():
            self._messages.set(number, state)
        for state, octets in stats.octets.items():
            self._bytes.set(octets, state)
        self._oldest.set(stats.oldest_age)
        self._free.set(stats.free)
        self._healthy.set(int(stats.healthy))
        self._undeliverable.set(stats.undeliverable)


class DeliveryMetrics:
    """Counts delivery attempts, and the connections that they take."""

    def __init__(self, instruments: Instruments) -> None:
        self._connections = instruments.counter(metric_definitions.DELIVERY_CONNECTIONS)
        self._open = instruments.gauge(metric_definitions.DELIVERY_CONNECTIONS_OPEN)
        self._tls = instruments.counter(metric_definitions.DELIVERY_TLS)
        self._destinations = instruments.gauge(metric_definitions.DELIVERY_DESTINATIONS)
        self._attempts = instruments.counter(metric_definitions.DELIVERY_ATTEMPTS)
        self._duration = instruments.histogram(metric_definitions.DELIVERY_DURATION)

    def attempted(self, outcome: Outcome) -> None:
        self._attempts.inc(outcome.route, outcome.status.value)
        self._duration.observe(outcome.seconds, outcome.route, outcome.status.value)

    def destinations(self, known: int, blocked: int) -> None:
        self._destinations.set(known - blocked, "open")
        self._destinations.set(blocked, "blocked")

    def connection(self, outcome: str) -> None:
        self._connections.inc(outcome)
        if outcome == "opened":
            self._open.add()

    def connection_closed(self) -> None:
        self._open.add(by=-1)

    def tls(self, outcome: str) -> None:
        self._tls.inc(outcome)


class Metrics:
    """All metrics of one node, in a registry of their own."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        instruments = Instruments(node_id)
        instruments.gauge(metric_definitions.BUILD_INFO).set(
            1, __version__, platform.python_version(), twisted.__version__
        )
        self.net = NetMetrics(instruments)
        self.chain = ChainMetrics(instruments)
        self.limits = LimitsMetrics(instruments)
        self.mode = ModeMetrics(instruments)
        self.valkey = ValkeyMetrics(instruments)
        self.spool = SpoolMetrics(instruments)
        self.delivery = DeliveryMetrics(instruments)
        self.loop_lag = instruments.histogram(metric_definitions.LOOP_LAG)
        self._poll_failures = instruments.counter(metric_definitions.POLL_FAILURES)
        self.plugins = PluginMetricsRegistry(instruments)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(instruments)
        self.registry.register(_Process(node_id))
        self._polls: dict[str, Callable[[], Awaitable[None]]] = {}

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
                self.spool.unreadable()
                raise
            self.spool.holds(found)

        self.poll("spool", refresh)

    def render(self) -> bytes:
        """The metrics as they are now, in Prometheus' text format."""
        return generate_latest(self.registry)

    async def scrape(self, clock: IReactorTime) -> bytes:
        """The metrics, polled figures refreshed; one that can't be had in time keeps its last value."""
        for source, refresh in tuple(self._polls.items()):
            try:
                await Deferred.fromCoroutine(_awaited(refresh)).addTimeout(POLL_DEADLINE, clock)
            except Exception as error:  # one source that fails must not cost the others
                self._poll_failures.inc(source)
                _log.warn(
                    "a figure for the metrics is not available",
                    event="metrics.poll_failed",
                    source=source,
                    error=repr(error),
                )
        return self.render()


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


class _Process(Collector):
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


async def _awaited(refresh: Callable[[], Awaitable[None]]) -> None:
    await refresh()
