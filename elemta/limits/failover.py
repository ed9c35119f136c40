"""The failover of limits: a breaker beside the shared store, and the way to local counting and back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable, ValkeyError, ValkeyFailure
from elemta.metrics import LimitMetrics

FAILURES = 3
"""So many failures in a row open the breaker."""

SAME_FAILURE = 0.025
"""Failures that come within so many seconds are one: a single hiccup fails everything that was under way.

With the default deadline a Valkey, or a machine, that stands still for a tenth of a second is forgiven.
"""

PROBE_INTERVAL = 0.4
"""Seconds from a probe that failed to the next one."""

PROBE_SPACING = 0.1
"""Seconds between probes that succeed."""

GOOD_PROBES = 2
"""So many probes in a row have to succeed before the breaker closes again."""

MOST_GOOD_PROBES = 5
"""What :data:`GOOD_PROBES` grows to, doubling, when the breaker keeps opening."""

RELAPSE = 10.0
"""Seconds within which opening again counts as the same trouble."""


class BreakerState(enum.Enum):
    """Open: no calls. Half open: a probe succeeded, others are to come, and there are no other calls yet."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class StoreBreaker:
    """Begins open, because nothing is known yet; then the first good probe closes it.

    Later it takes :data:`GOOD_PROBES` of them in a row, and more when it opens again soon after it closed.
    The caller sends the probes, one at a time, and tells what came of them. All times are of one clock.
    """

    __slots__ = ("_closed_at", "_failed_at", "_failures", "_good", "_needed", "state")

    def __init__(self) -> None:
        self.state = BreakerState.OPEN
        self._failures = 0
        self._failed_at = 0.0
        self._good = 0
        self._needed = 1
        self._closed_at: float | None = None

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """A call was answered. What was asked before the breaker opened decides nothing any more."""
        self._failures = 0

    def failed(self, now: float) -> bool:
        """A call failed; returns whether that opened the breaker."""
        if not self.closed or (self._failures and now - self._failed_at < SAME_FAILURE):
            return False
        self._failures += 1
        self._failed_at = now
        return self._failures >= FAILURES and self.trip(now)

    def trip(self, now: float) -> bool:
        """Open, however few failures there were; returns whether it was closed."""
        self._good = 0
        self._failures = 0
        was_closed = self.closed
        self.state = BreakerState.OPEN
        if was_closed:
            relapsed = self._closed_at is not None and now - self._closed_at < RELAPSE
            self._needed = min(max(self._needed, 1) * 2, MOST_GOOD_PROBES) if relapsed else GOOD_PROBES
        return was_closed

    def probed(self, *, good: bool) -> bool:
        """A probe came to an end; returns whether the breaker may close now (see :meth:`close`)."""
        self._good = self._good + 1 if good else 0
        self.state = BreakerState.HALF_OPEN if good else BreakerState.OPEN
        return self._good >= self._needed

    @property
    def pause(self) -> float:
        """Seconds until the next probe."""
        return PROBE_SPACING if self._good else PROBE_INTERVAL

    def close(self, now: float) -> None:
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._good = 0
        self._closed_at = now


_log = Logger()

PROBE_SECONDS = 1.0
"""Seconds that a probe, or the way back, may take. The deadline of each call is the connection's own."""

JOINING = 1.0
"""Seconds after the start until it is worth a line in the log that there is no Valkey yet."""


class CountingMode(enum.Enum):
    """Where limits with ``scope = "cluster"`` are counted now."""

    CLUSTER = "cluster"
    LOCAL = "local"


class StoreLink(Protocol):
    """The connection to the shared store: whether it is there, and the callers that wait for it."""

    @property
    def up(self) -> bool: ...

    def on_change(self, callback: Callable[[bool], None]) -> None: ...


class FailoverTarget(Protocol):
    """The calls to the shared store that only the failover makes."""

    def probe(self) -> Coroutine[Deferred[Any], Any, None]:
        """Ask the store for a real charge."""

    def synchronize(self) -> Coroutine[Deferred[Any], Any, None]:
        """Write what happened while the store was away, before any decision uses it again."""

    def resumed(self) -> None:
        """It is asked again from now on."""

    @property
    def live_nodes(self) -> int:
        """Of how many nodes this one is, as far as it knows."""


class Failover:
    """Owns the breaker: hears of calls that failed, probes while it is open, and closes it again.

    While it is open nothing is asked but one probe at a time. Each change is one line in the log.
    """

    def __init__(
        self,
        clock: IReactorTime,
        link: StoreLink,
        target: FailoverTarget,
        metrics: LimitMetrics | None = None,
        say: Callable[[CountingMode, float, str, int], None] | None = None,
    ) -> None:
        self._say = say or log_mode
        self._clock = clock
        self._link = link
        self._target = target
        self._metrics = metrics or LimitMetrics()
        self._breaker = StoreBreaker()
        self._timer: IDelayedCall | None = None
        self._joining: IDelayedCall | None = None
        self._probing = False
        self._running = False
        self._since = 0.0
        self._announced: CountingMode | None = None
        self._reason = "there is no connection yet"
        self._waiting: list[Deferred[bool]] = []
        self.cluster = False
        """Whether decisions are asked of the shared store. Read for every one of them, hence no property."""

    @property
    def mode(self) -> CountingMode:
        return CountingMode.CLUSTER if self.cluster else CountingMode.LOCAL

    @property
    def breaker(self) -> BreakerState:
        return self._breaker.state

    @property
    def reason(self) -> str:
        """What kept the shared store from being asked last; empty while it is asked."""
        return "" if self.cluster else self._reason

    def start(self) -> None:
        """Begin by oneself, and look for the shared store."""
        self._running = True
        self._since = self._clock.seconds()
        self._metrics.mode_changes.labels(self.mode.value).inc()
        self._link.on_change(self._link_changed)
        self._joining = self._clock.callLater(JOINING, self._announce_if_local)
        self._probe()

    def stop(self) -> None:
        """Probe no more; go on in the mode of now."""
        self._running = False
        for timer in (self._timer, self._joining):
            if timer is not None and timer.active():
                timer.cancel()
        self._answer_waiting()

    def joined(self, seconds: float) -> Deferred[bool]:
        """Fires when limits are counted in the cluster, or with False after so many seconds."""
        answer: Deferred[bool] = Deferred()
        if self.cluster or not self._running:
            answer.callback(self.cluster)
            return answer
        self._waiting.append(answer)
        late = self._clock.callLater(seconds, self._give_up_waiting, answer)

        def in_time(joined: bool) -> bool:
            if late.active():
                late.cancel()
            return joined

        return answer.addCallback(in_time)

    def succeeded(self) -> None:
        """The store answered."""
        self._breaker.succeeded()

    def failed(self, error: BaseException) -> None:
        """The store did not answer. That too much is under way to ask it says nothing of it."""
        if isinstance(error, ValkeyError) and error.kind is ValkeyFailure.OVERLOADED:
            return
        if self._breaker.failed(self._clock.seconds()):
            self._open(str(error))

    def _link_changed(self, up: bool) -> None:
        if not self._running:
            return
        if up:
            if not self.cluster:
                self._probe()
            return
        self._trip("the connection is lost")

    def _trip(self, reason: str) -> None:
        if self._breaker.trip(self._clock.seconds()):
            self._open(reason)

    def _open(self, reason: str) -> None:
        self.cluster = False
        self._reason = reason
        self._since = self._clock.seconds()
        self._metrics.mode_changes.labels(self.mode.value).inc()
        self._announce()
        self._probe_later()

    # Probes

    def _probe_later(self) -> None:
        self._cancel_timer()
        if self._running and not self.cluster:
            self._timer = self._clock.callLater(self._breaker.pause, self._probe)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _probe(self) -> None:
        """Send one, unless one is under way. Without a connection there is nothing to send it by."""
        if self._probing or self.cluster or not self._running:
            return
        self._cancel_timer()
        if not self._link.up:
            return
        self._probing = True
        self._with_timeout(self._target.probe()).addBoth(self._probed)

    def _with_timeout(self, steps: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return ensureDeferred(steps).addTimeout(PROBE_SECONDS, self._clock)

    def _probed(self, result: object) -> None:
        self._probing = False
        if self.cluster or not self._running:
            return
        good = not isinstance(result, Failure) and self._link.up
        if isinstance(result, Failure):
            self._reason = _reason(result)
        may_close = self._breaker.probed(good=good)
        if may_close:
            self._probing = True
            self._with_timeout(self._target.synchronize()).addBoth(self._came_back)
        else:
            self._probe_later()

    def _came_back(self, result: object) -> None:
        self._probing = False
        if not self._running:
            return
        if isinstance(result, Failure) or not self._link.up or self.breaker is BreakerState.OPEN:
            if isinstance(result, Failure):
                self._reason = _reason(result)
            self._breaker.probed(good=False)
            self._probe_later()
            return
        self._close()

    def _close(self) -> None:
        self.cluster = True
        self._breaker.close(self._clock.seconds())
        self._metrics.mode_changes.labels(self.mode.value).inc()
        self._announce()
        self._target.resumed()
        self._answer_waiting()

    # Listeners

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(self.cluster)

    def _give_up_waiting(self, answer: Deferred[bool]) -> None:
        if answer in self._waiting:
            self._waiting.remove(answer)
            answer.callback(False)

    def _announce_if_local(self) -> None:
        if self._running and self._announced is None:
            self._announce()

    def _announce(self) -> None:
        self._announced = self.mode
        seconds = round(self._clock.seconds() - self._since, 3)
        self._say(self.mode, seconds, self._reason, self._target.live_nodes)


def log_mode(mode: CountingMode, seconds: float, reason: str, live_nodes: int) -> None:
    """Log that a node counts in another mode, after so many seconds in the one before."""
    if mode is CountingMode.CLUSTER:
        _log.info(
            "limits are counted in the cluster",
            event="limits.mode_changed",
            mode=mode.value,
            after_seconds=seconds,
        )
    else:
        _log.warn(
            "limits are counted by this node alone, because Valkey does not answer",
            event="limits.mode_changed",
            mode=mode.value,
            reason=reason,
            live_nodes=live_nodes,
        )


def _reason(failure: Failure) -> str:
    if failure.check(StoreUnavailable, defer.TimeoutError, CancelledError) is None:
        _log.failure("a probe of Valkey failed with an internal error", failure, event="limits.probe_failed")
    return failure.getErrorMessage() or "no answer in time"
