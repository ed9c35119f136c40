"""What goes through the whole queue now and then, page by page: its destinations, and what is too old."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery.destinations import Destinations
from elemta.delivery.expiry import ExpiryScanner
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.success_notices import SuccessNotices
from elemta.errors import SpoolError
from elemta.runtime import SteadyWall

_log = Logger()

# Destinations that are listed at one time, and how often they are listed anew, in case one was missed.
_DESTINATIONS_AT_ONCE = 1000
_LIST_DESTINATIONS_EVERY = 300.0


class DestinationScan:
    """Learns which destinations there are; from then on every change is reported.

    ``listed`` is called after each whole listing. It ends early once ``runs`` says no. What waits for more
    than ``longest_wait`` seconds at the first listing waits no longer: the clock was ahead when that was
    decided.
    """

    def __init__(
        self,
        queue: DeliveryQueue,
        destinations: Destinations,
        runs: Callable[[], bool],
        listed: Callable[[], None],
        *,
        longest_wait: float = inf,
    ) -> None:
        self._queue = queue
        self._longest_wait = longest_wait
        self._destinations = destinations
        self._runs = runs
        self._listed = listed
        self._listed_at = -inf
        #: Whether it goes on now.
        self.under_way = False

    def start_anew(self) -> None:
        """List all destinations the next time, whenever they were listed last."""
        self._listed_at = -inf

    def list_if_due(self, now: float) -> None:
        """Begin to list them, where that was not done for long."""
        if not self.under_way and now - self._listed_at >= _LIST_DESTINATIONS_EVERY:
            self.under_way = True
            Deferred.fromCoroutine(self._list(now)).addBoth(self._ended)

    async def _list(self, now: float) -> None:
        after: str | None = None
        latest = now + self._longest_wait if self._listed_at == -inf else inf
        while self._runs():
            destinations = await self._queue.destinations(after, _DESTINATIONS_AT_ONCE)
            if not self._runs():
                return
            for name, due in destinations:
                if due is not None:
                    self._destinations.due_at(name, due)
                    if due > latest:
                        self._destinations.probe(name, now, due + self._longest_wait)
            if len(destinations) < _DESTINATIONS_AT_ONCE:
                break
            after = destinations[-1][0]
        self._listed_at = now

    def _ended(self, result: Failure | None) -> None:
        self.under_way = False
        if isinstance(result, Failure):
            log_not_read(result)
        elif self._runs():
            self._listed()


class AgeScan:
    """Has success notices sent, delays reported and old messages given up, each ``poll`` seconds.

    ``runs`` says whether it goes on now.
    """

    def __init__(
        self,
        clock: IReactorTime,
        time: SteadyWall,
        notices: SuccessNotices,
        expiry: ExpiryScanner,
        *,
        runs: Callable[[], bool],
        poll: float,
    ) -> None:
        self.poll = poll
        self._clock = clock
        self._time = time
        self._notices = notices
        self._expiry = expiry
        self._runs = runs
        self._call: IDelayedCall | None = None
        self._walk: Deferred[None] | None = None
        self._started = False

    def start(self) -> None:
        """Begin; no effect where it began before."""
        if not self._started:
            self._started = True
            self._later()

    def go_on(self) -> None:
        """Make sure that there is a next walk, once it began."""
        walks = self._walk is not None and not self._walk.called
        if self._started and not walks and (self._call is None or not self._call.active()):
            self._later()

    async def stop(self) -> None:
        """Begin no other walk, and wait for the one that goes on."""
        self._started = False
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._walk is not None:
            await self._walk

    def _later(self) -> None:
        self._call = self._clock.callLater(self.poll, self._begin)

    def _begin(self) -> None:
        self._call = None
        self._time.follow_what_lasts()
        walk = self._walk = Deferred.fromCoroutine(self._look_after(self._time.seconds()))
        walk.addErrback(_log_old_not_read).addCallback(self._ended).addErrback(_log_old_not_read)

    async def _look_after(self, now: float) -> None:
        try:
            await self._notices.walk(now, self._runs)
        finally:
            await self._expiry.walk(now, self._runs, ahead=self._time.ahead)

    def _ended(self, _: None) -> None:
        self._walk = None
        if self._started:
            self._later()


def log_not_read(failure: Failure) -> None:
    """Say that what is due, or for which destinations, could not be found out."""
    if failure.check(SpoolError) is None:
        _log.failure("looking for due messages failed", failure, event="delivery.scan_failed")
    else:
        reason = failure.getErrorMessage()
        _log.warn("the queue can't be read now", event="delivery.scan_failed", reason=reason)


def _log_old_not_read(failure: Failure) -> None:
    if failure.check(SpoolError, OSError) is None:
        _log.failure("looking for old messages failed", failure, event="queue.expiry_failed")
    else:
        _log.warn(
            "old messages can't be looked after now",
            event="queue.expiry_failed",
            reason=failure.getErrorMessage(),
        )
