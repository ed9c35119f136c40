"""The metrics of limits, and of the Valkey in which they are counted."""

from __future__ import annotations

from collections.abc import Callable

from elemta.errors import ValkeyFailure
from elemta.limits.failover import BreakerState, CountingMode
from elemta.ops import families
from elemta.ops.instruments import Instruments
from elemta.valkey import ValkeyInfo

MEMORY = "memory"


class LimitsMetrics:
    """Counts the checks of limits."""

    def __init__(self, instruments: Instruments) -> None:
        self._checks = instruments.counter(families.LIMIT_CHECKS)
        self._duration = instruments.histogram(families.LIMIT_CHECK_DURATION)
        self._rejections = instruments.counter(families.RATE_LIMIT_REJECTIONS)

    def checked(self, limit: str, outcome: str, seconds: float) -> None:
        self._checks.inc(limit, outcome)
        self._duration.observe(seconds)
        if outcome == "refused":
            self._rejections.inc()


class ModeMetrics:
    """Shows where limits are counted: in memory, until it is set otherwise."""

    def __init__(self, instruments: Instruments) -> None:
        self._mode = instruments.gauge(families.LIMITER_MODE)
        self._changes = instruments.counter(families.LIMITER_MODE_CHANGES)
        self._breaker = instruments.gauge(families.LIMITER_BREAKER)
        self._live = instruments.gauge(families.LIVE_NODES)
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
        self._failures = instruments.counter(families.VALKEY_FAILURES)
        self._up = instruments.gauge(families.VALKEY_UP)
        self._commands = instruments.counter(families.VALKEY_COMMANDS, counted_elsewhere=True)
        self._memory = instruments.gauge(families.VALKEY_MEMORY)
        self._maxmemory = instruments.gauge(families.VALKEY_MAXMEMORY)
        self._keys = instruments.gauge(families.VALKEY_KEYS)
        self._evicted = instruments.counter(families.VALKEY_EVICTED, counted_elsewhere=True)
        self._clients = instruments.gauge(families.VALKEY_CLIENTS)

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
