"""The service that empties the queue: takes what is due, has it carried, and records what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from elemta.delivery.carrier import Carried, Carrier
from elemta.delivery.queue import Queue
from elemta.delivery.routes import AS_CONFIGURED, Route, RouteTable
from elemta.delivery.settings import DeliveryObserver, DeliverySettings, Unobserved
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status
from elemta.spool.records import QueuedMessage, State

_log = Logger()

# Messages waiting in memory for their turn; more wait in the spool alone.
_MOST_READY = 1000
_LONGEST_REASON = 500
_LAST_WAIT = 5.0


class Delivery(Service):
    """Delivers what is in the queue, at least once and never one message twice at the same time.

    A message that was just accepted is started without reading the disk; everything else is found by
    asking the queue for what is due. ``routes`` and ``settings`` can be replaced while it runs, by
    :meth:`reconfigure`; what is under way keeps what it began with.
    """

    name = "delivery"

    def __init__(
        self,
        reactor: Any,
        queue: Queue,
        routes: Sequence[Route],
        settings: DeliverySettings,
        observer: DeliveryObserver | None = None,
    ) -> None:
        self._reactor = reactor
        self._queue = queue
        self._settings = settings
        self._routes = RouteTable(routes)
        self._pool = ThreadPool(0, settings.threads, "delivery")
        self._carrier = Carrier(reactor, queue, self._pool, settings, observer or Unobserved())
        self._ready: deque[QueuedMessage] = deque()
        self._known: set[str] = set()
        self._under_way: set[str] = set()
        self._finished_meanwhile: set[str] = set()
        self._set_aside: dict[str, float] = {}
        self._timer: IDelayedCall | None = None
        self._looking = False
        self._look_again = inf
        self._more = False
        self._abandoned = False
        self._subscribed = False
        self._empty: Deferred[None] | None = None

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes in force."""
        return self._routes.routes

    @property
    def under_way(self) -> int:
        """How many messages are being delivered now."""
        return len(self._under_way)

    def reconfigure(self, routes: Sequence[Route], settings: DeliverySettings) -> None:
        """Use these routes and settings for every attempt from now on."""
        self._routes = RouteTable(routes)
        self._settings = settings
        self._carrier.reconfigure(settings)
        self._pool.adjustPoolsize(0, settings.threads)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._abandoned = False
        self._pool.start()
        if not self._subscribed:
            self._subscribed = True
            self._queue.on_committed(self._committed)
            self._queue.on_due(self.wake)
        self.wake()

    async def _stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._ready.clear()
        if not await self._wait_until_empty(self._settings.grace):
            _log.warn(
                "deliveries were cut off; their messages stay in the queue",
                event="delivery.abandoned",
                messages=len(self._under_way),
            )
            self._abandoned = True
            self._carrier.abandon()
            await self._wait_until_empty(_LAST_WAIT)
        self._known.clear()
        self._set_aside.clear()
        # Joining threads blocks, so it is done in one.
        await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    def stopService(self) -> Deferred[None]:
        """Start nothing more, wait for what is under way up to the grace, then cut it off."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    def wake(self) -> None:
        """Look into the queue now: something in it may have become due otherwise than by time."""
        self._look_in(0.0)

    # What is due

    def _committed(self, message: QueuedMessage) -> None:
        if not self.running or message.state is not State.ACTIVE:
            return
        if len(self._ready) >= _MOST_READY:
            self._more = True
            return
        self._enter(message)
        self._fill()

    def _enter(self, message: QueuedMessage) -> None:
        if message.queue_id not in self._known:
            self._known.add(message.queue_id)
            self._ready.append(message)

    def _fill(self) -> None:
        while self._ready and len(self._under_way) < self._settings.max_messages:
            message = self._ready.popleft()
            self._under_way.add(message.queue_id)
            Deferred.fromCoroutine(self._deliver(message)).addBoth(self._delivered, message.queue_id)
        if self._more and len(self._ready) < _MOST_READY // 2:
            self._look_in(0.0)

    def _look_in(self, seconds: float) -> None:
        if not self.running:
            return
        if self._looking:
            # What is seen now may be older than what asks for this look.
            self._look_again = min(self._look_again, self._reactor.seconds() + seconds)
            return
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._reactor.seconds() + seconds:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        self._looking = True
        self._look_again = inf
        self._finished_meanwhile.clear()
        Deferred.fromCoroutine(self._take_due()).addBoth(self._looked)

    def _looked(self, result: float | Failure) -> None:
        self._looking = False
        if isinstance(result, Failure):
            if result.check(SpoolError) is None:
                _log.failure("looking for due messages failed", result, event="delivery.look_failed")
            else:
                _log.warn(
                    "the queue can't be read now",
                    event="delivery.look_failed",
                    reason=result.getErrorMessage(),
                )
            result = self._settings.poll
        if self.running:
            self._look_in(max(min(result, self._look_again - self._reactor.seconds()), 0.0))
            self._fill()

    async def _take_due(self) -> float:
        """Take up what is due; in how many seconds to look again."""
        poll = self._settings.poll
        limit = _MOST_READY - len(self._ready)
        if limit <= 0:
            return poll
        self._more = False
        now = self._reactor.seconds()
        for queue_id in [queue_id for queue_id, until in self._set_aside.items() if until <= now]:
            del self._set_aside[queue_id]
            self._known.discard(queue_id)
        found = await self._queue.due(now, limit, frozenset(self._known))
        for message in found:
            # What was done since the question was asked may still stand in the answer.
            if self.running and message.queue_id not in self._finished_meanwhile:
                self._enter(message)
        if len(found) >= limit:
            self._more = True
            return poll
        next_due = await self._queue.next_due(frozenset(self._known))
        if next_due is None:
            return poll
        # Never at once: nothing that goes wrong here may make this a busy loop.
        return min(max(next_due - float(self._reactor.seconds()), 0.1), poll)

    # One message

    async def _deliver(self, message: QueuedMessage) -> None:
        carried = await self._carrier.carry(message, self._routes)
        if self._abandoned:
            await self._settle_abandoned(message, carried)
            return
        outcomes, retry_at, hold_reason = self._conclusion(message, carried)
        await self._queue.settle(message.queue_id, outcomes, retry_at=retry_at, hold_reason=hold_reason)
        if retry_at is not None:
            self._look_in(max(retry_at - self._reactor.seconds(), 0.1))
        if hold_reason is not None:
            _log_hold(message, hold_reason)

    async def _settle_abandoned(self, message: QueuedMessage, carried: Carried) -> None:
        """At the end only what was delivered is recorded; the rest begins anew after the next start."""
        delivered = [outcome for outcome in carried.outcomes if outcome.status is Status.DELIVERED]
        if delivered:
            now = self._reactor.seconds()
            await self._queue.settle(message.queue_id, delivered, retry_at=now, hold_reason=None)

    def _conclusion(
        self, message: QueuedMessage, carried: Carried
    ) -> tuple[list[Outcome], float | None, str | None]:
        """What to record, and when to try again or why not."""
        deferred = [outcome for outcome in carried.outcomes if outcome.status is Status.DEFERRED]
        if deferred:
            now = self._reactor.seconds()
            received_at = message.envelope.received_at
            retry_at = self._settings.retries.next_attempt(message.attempts + 1, received_at, now)
            if retry_at is not None:
                # Who failed stays with the message and is tried again with the others: without bounces a
                # recipient that is given up while the message goes on would be gone without a word.
                return [_as_deferred(outcome) for outcome in carried.outcomes], retry_at, None
        reasons = [
            f"failed: {_says(outcome)}" for outcome in carried.outcomes if outcome.status is Status.FAILED
        ]
        reasons += [f"expired: {_says(outcome)}" for outcome in deferred]
        reasons += carried.held
        return list(carried.outcomes), None, "; ".join(reasons)[:_LONGEST_REASON] or None

    def _delivered(self, result: Failure | None, queue_id: str) -> None:
        self._under_way.discard(queue_id)
        if isinstance(result, Failure):
            # The queue keeps what it could not write and writes it later; until then the message still
            # stands there as due, and taking it up again at once would deliver it again and again.
            _tell_not_recorded(result, queue_id)
            self._set_aside[queue_id] = self._reactor.seconds() + self._settings.retries.delays[0]
        else:
            self._forget(queue_id)
        if self._empty is not None and not self._under_way:
            empty, self._empty = self._empty, None
            empty.callback(None)
        if self.running:
            self._fill()

    def _forget(self, queue_id: str) -> None:
        self._known.discard(queue_id)
        if self._looking:
            self._finished_meanwhile.add(queue_id)

    async def _wait_until_empty(self, seconds: float) -> bool:
        """Whether nothing is under way any more, at the latest after so many seconds."""
        if not self._under_way:
            return True
        empty = self._empty = Deferred()
        late = self._reactor.callLater(seconds, lambda: None if empty.called else empty.callback(None))
        await empty
        self._empty = None
        if late.active():
            late.cancel()
        return not self._under_way


def _tell_not_recorded(failure: Failure, queue_id: str) -> None:
    if failure.check(SpoolError) is None:
        _log.failure(
            "an attempt could not be recorded", failure, event="delivery.not_recorded", queue_id=queue_id
        )
    else:
        # The disk's failure itself is told once, by the spool.
        _log.error(
            "an attempt could not be recorded yet",
            event="delivery.not_recorded",
            queue_id=queue_id,
            reason=failure.getErrorMessage(),
        )


def _as_deferred(outcome: Outcome) -> Outcome:
    return replace(outcome, status=Status.DEFERRED) if outcome.status is Status.FAILED else outcome


def _log_hold(message: QueuedMessage, reason: str) -> None:
    sender = str(message.envelope.sender)
    if reason == AS_CONFIGURED:
        _log.info(
            "message put on hold as its routes say",
            event="delivery.held",
            queue_id=message.queue_id,
            sender=sender,
            reason=reason,
        )
    else:
        _log.warn(
            "message put on hold",
            event="delivery.held",
            queue_id=message.queue_id,
            sender=sender,
            reason=reason,
        )


def _says(outcome: Outcome) -> str:
    words = (str(outcome.recipient), str(outcome.code or ""), outcome.enhanced, outcome.text)
    return " ".join(word for word in words if word)
