"""One attempt from its beginning to its record: which way, whether now, what came of it for all concerned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.bounded_map import BoundedMap
from elemta.deferred_value import value_of
from elemta.delivery.delivery_record import (
    DeliveredRecorder,
    Taken,
    delivered_of,
    may_owe,
    rest_of,
    settle_surely,
)
from elemta.delivery.destination import Key
from elemta.delivery.destination_judge import DestinationJudge
from elemta.delivery.destinations import Destinations
from elemta.delivery.expiry import ExpiryScanner
from elemta.delivery.faulty_parts import LONGEST_REASON, RecentFaults, hold_faulty
from elemta.delivery.notices import follow_up, record
from elemta.delivery.outbound_limits import FREE, OutboundLimiter, Permit, Throttled, log_not_released
from elemta.delivery.queue import DeliveryQueue, why_unreadable
from elemta.delivery.router import Router, SortedRecipients, moved
from elemta.delivery.routes import AS_CONFIGURED, HELD
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.success_notices import SuccessNotices
from elemta.delivery.transports import Transports
from elemta.envelope import Recipient
from elemta.errors import SpoolError
from elemta.outcome import Outcome, ReachedStage, Status, furthest
from elemta.runtime import SteadyWall
from elemta.spool.records import HoldCause, MessageState, QueuedMessage

_log = Logger()

# How long a destination waits when there was no connection to be had for it.
_NOTHING_FREE = 5.0
_MOST_THROTTLED = 10_000


class AttemptRunner:
    """Makes attempts. ``judge`` notes how the destination of each one did."""

    def __init__(
        self,
        clock: SteadyWall,
        queue: DeliveryQueue,
        destinations: Destinations,
        transports: Transports,
        *,
        expiry: ExpiryScanner,
        judge: DestinationJudge,
        router: Router,
        settings: DeliverySettings,
        limiter: OutboundLimiter | None,
        notices: SuccessNotices,
    ) -> None:
        self.abandoned = False
        #: Parts that wait for a limit which not all mail to their destination waits for, and until when.
        self.throttled: BoundedMap[Key, tuple[str, float]] = BoundedMap(_MOST_THROTTLED)
        self._clock = clock
        self._queue = queue
        self._destinations = destinations
        self._transports = transports
        self._expiry = expiry
        self._judge = judge
        self._router = router
        self._settings = settings
        self._limits = limiter
        self._notices = notices
        self._delivered = DeliveredRecorder(queue)
        # Parts of whose last attempt something went wrong before it could be recorded as it should be.
        self._faults: RecentFaults[Key] = RecentFaults()

    def reconfigure(self, router: Router, settings: DeliverySettings) -> None:
        """Use these for every attempt from now on."""
        self._router = router
        self._settings = settings

    async def make(self, message: QueuedMessage) -> None:
        """Attempt a part. SpoolError: what came of it is not stored yet.

        After a fault of ours it is recorded that an attempt was made; the second in a row puts the part on
        hold. Any other exception: that could not be recorded either.
        """
        try:
            if self._delivered.is_waiting(message):
                await self._delivered.record_waiting(message)
                # What is left of it is in the spool.
                self._destinations.due_at(message.destination, self._clock.seconds())
                return
            if self._expiry.gives_up(message):
                return
            by_route = await self._router.sort(message)
            if by_route.elsewhere:
                await self._move(message, by_route.elsewhere)
            elif message.destination == HELD and by_route.here:
                await self._hold(message, [route.hold_reason for route in by_route.here])
            elif by_route.here:
                await self._deliver(message, by_route)
            else:
                await self._record(message, _kept_waiting(message, by_route, self._clock.date), None)
        except SpoolError:
            raise
        except Exception as error:
            await self._record_anyhow(message, self._delivered.outcomes(message), error)
            self._delivered.forget(message)

    async def _deliver(self, message: QueuedMessage, by_route: SortedRecipients) -> None:
        if not self._queue.settled:
            raise SpoolError("the spool can't be written, so that nothing may be delivered")
        limits = self._limits
        go = FREE if limits is None or not limits.counts else await self._acquire(message, by_route, limits)
        if go is None:
            return
        began = (self._destinations.epoch(message.destination), self._clock.seconds())
        taken = self._delivered.begin(message)
        try:
            await self._deliver_and_record(message, by_route, go, taken, began)
        finally:
            self._delivered.end(message)

    async def _deliver_and_record(
        self,
        message: QueuedMessage,
        by_route: SortedRecipients,
        go: Permit,
        taken: Taken,
        began: tuple[int, float],
    ) -> None:
        outcomes = await self._outcomes_of(message, by_route, taken)
        try:
            delivered = delivered_of(outcomes, taken)
            rest = rest_of(outcomes, delivered)
        except Exception:
            # The same with nothing that could be wrong: no words of the next hop, and no function of ours.
            _log.failure("an outcome failed", event="delivery.outcomes_failed", queue_id=message.queue_id)
            sent = (each.recipient for each in outcomes if each.status is Status.DELIVERED)
            done = dict.fromkeys([*taken, *sent])
            delivered = [
                Outcome(message.queue_id, each, Status.DELIVERED, "", "", "", message.envelope.received_at)
                for each in done
            ]
            rest = tuple(each for each in outcomes if each.recipient not in done)
        owed: Collection[Address] = ()
        try:
            # Before metrics, policies and the sender learn of it, and before anything else that may fail.
            if delivered:
                try:
                    owed = await self._delivered.record(message, delivered)
                except SpoolError:
                    raise
                except Exception:
                    _log.failure(
                        "a delivery could not be recorded",
                        event="delivery.record_failed",
                        queue_id=message.queue_id,
                    )
                    owed = await self._delivered.record(message, delivered)
        finally:
            tried = [each for each in rest if each.reached is not ReachedStage.NOTHING_FREE] if rest else ()
            self._tell(message, (*delivered, *tried))
            if go.receipts:
                await self._give_back(go, sent=bool(delivered) or furthest(outcomes) is ReachedStage.ANSWERED)
        if self.abandoned:
            return  # the rest begins anew after the next start, which also tells of what was delivered
        if owed:
            await self._notices.send(message, delivered)
        await self._record_rest(message, by_route, outcomes, rest, began)

    def _tell(self, message: QueuedMessage, outcomes: Sequence[Outcome]) -> None:
        try:
            self._transports.tell(message, outcomes)
        except Exception:
            _log.failure(
                "an attempt could not be reported to the log, metrics and policies",
                event="delivery.not_reported",
                queue_id=message.queue_id,
            )

    async def _outcomes_of(
        self, message: QueuedMessage, by_route: SortedRecipients, taken: Taken
    ) -> tuple[Outcome, ...]:
        try:
            return await self._transports.deliver(message, by_route.here, taken)
        except Exception:
            _log.failure(
                "a delivery attempt failed with an internal error",
                event="delivery.internal_error",
                queue_id=message.queue_id,
            )
        text = "a fault inside Elemta; the log has it"
        return _all_deferred(message, by_route, text, "4.3.0", self._clock.date)

    async def _record_rest(
        self,
        message: QueuedMessage,
        by_route: SortedRecipients,
        outcomes: Sequence[Outcome],
        rest: Sequence[Outcome],
        began: tuple[int, float],
    ) -> None:
        """Record the outcomes of the recipients to which it did not deliver, if there are any."""
        kept = _kept_waiting(message, by_route, self._clock.date) if by_route.waiting else ()
        if rest and furthest(outcomes) is ReachedStage.NOTHING_FREE:
            self._destinations.put_back(message, self._clock.seconds() + _NOTHING_FREE)
            if self._is_too_old(message):
                await self._record(message, (*rest, *kept), None)
            return
        retry_at = self._judge.judged(message.destination, outcomes, *began)
        if rest or kept:
            await self._record(message, (*rest, *kept), retry_at)

    async def _give_back(self, go: Permit, *, sent: bool) -> None:
        """Give back what an attempt held of the outbound limits. A failure is logged, and nothing more."""
        if self._limits is None:
            return
        try:
            await value_of(self._limits.done(go, sent=sent))
        except Exception:
            log_not_released(Failure())

    async def _acquire(
        self, message: QueuedMessage, by_route: SortedRecipients, limits: OutboundLimiter
    ) -> Permit | None:
        """Ask whether this may leave now; None where it waits, which is noted."""
        destination = next(iter(by_route.here)).limited_as(message.destination)
        if destination is None:
            return FREE
        everyone = [recipient for recipients in by_route.here.values() for recipient in recipients]
        answer: Permit | Throttled = await value_of(limits.acquire(destination, message.envelope, everyone))
        if isinstance(answer, Permit):
            self.throttled.pop(message.key, None)
            return answer
        now = self._clock.seconds()
        until = now + answer.seconds
        if answer.whole_destination:
            self._destinations.put_back(message, until)
        if self._is_too_old(message):
            text = f"it waits for the limit {answer.limit}"
            # RFC 3463 §3.5 X.4.5
            paced = _all_deferred(message, by_route, text, "4.4.5", self._clock.date)
            kept = _kept_waiting(message, by_route, self._clock.date)
            await self._record(message, (*paced, *kept), None)
        elif not answer.whole_destination:
            # Not beyond its end: what waits for a limit expires like other mail.
            until = min(until, self._end(message))
            self.throttled.keep(message.key, (answer.limit, until))
            await self._queue.settle(
                message.queue_id, (), part=message.part, retry_at=until, hold_reason=None, attempted=False
            )
            self._destinations.due_at(message.destination, until)
        return None

    def _end(self, message: QueuedMessage) -> float:
        # By the clock of delivery, which goes on where the time of day is put back.
        return message.envelope.received_at + self._settings.retries.expire + self._clock.ahead

    def _is_too_old(self, message: QueuedMessage) -> bool:
        """Whether the message is given up now if it can't be delivered now."""
        return bool(self._clock.seconds() >= self._end(message))

    async def _move(self, message: QueuedMessage, elsewhere: Mapping[str, Sequence[Recipient]]) -> None:
        """Let recipients wait in the destinations of where they go now."""
        sender, now = message.envelope.sender, self._clock.seconds()
        is_new = message.state is MessageState.ACTIVE
        parts = moved(
            message,
            elsewhere,
            lambda destination: self._destinations.turn(destination, sender, now) if is_new else now,
        )
        await self._queue.assign(message.queue_id, message.part, parts)
        for destination in (message.destination, *elsewhere):
            self._destinations.due_at(destination, now)

    async def _hold(self, message: QueuedMessage, reasons: list[str]) -> None:
        reason = "; ".join(reasons)[:LONGEST_REASON]
        await self._queue.settle(
            message.queue_id, (), part=message.part, retry_at=None, hold_reason=reason, hold=HoldCause.ROUTE
        )
        # Where a route says so it is nothing to worry about.
        say = _log.info if reason == AS_CONFIGURED else _log.warn
        say(
            "message put on hold",
            event="delivery.held",
            queue_id=message.queue_id,
            sender=str(message.envelope.sender),
            reason=reason,
        )

    async def _record(
        self, message: QueuedMessage, outcomes: Sequence[Outcome], retry_at: float | None
    ) -> None:
        try:
            await self._conclude(message, outcomes, retry_at)
        except SpoolError:
            raise
        except Exception as error:
            await self._record_anyhow(message, outcomes, error)
        else:
            self._faults.forget(message.key)

    async def _record_anyhow(
        self, message: QueuedMessage, outcomes: Sequence[Outcome], error: Exception
    ) -> None:
        """Record that an attempt was made, whatever went wrong after it; the second time in a row on hold."""
        again = self._faults.note(message.key)
        _log.failure(
            "what follows from an attempt could not be worked out",
            event="delivery.decision_failed",
            queue_id=message.queue_id,
            held=again,
        )
        if again:
            what = "a fault inside Elemta broke its last two attempts"
            await hold_faulty(self._queue, message, outcomes, what, error)
            self._faults.forget(message.key)
            return
        retry_at = self._clock.seconds() + self._settings.retries.delays[0]
        deferred = [
            each if each.status is Status.DELIVERED else replace(each, status=Status.DEFERRED)
            for each in outcomes
        ]
        await settle_surely(
            self._queue, message, deferred, retry_at=retry_at, owes=may_owe(message, outcomes)
        )
        self._destinations.due_at(message.destination, retry_at)

    async def _conclude(
        self, message: QueuedMessage, outcomes: Sequence[Outcome], retry_at: float | None
    ) -> None:
        now = self._clock.seconds()
        if self._expiry.tells(message):
            message = replace(message, warned=True)
        unreadable = await why_unreadable(self._queue, message) if self._is_too_old(message) else None
        settings = self._settings.for_a_clock_ahead(self._clock.ahead)
        following = follow_up(message, outcomes, settings, now=now, retry_at=retry_at, unreadable=unreadable)
        recorded = await record(self._queue, message, outcomes, following, settings, now=now)
        if recorded.retry_at is not None:
            self._destinations.due_at(message.destination, recorded.retry_at)


def _all_deferred(
    message: QueuedMessage, by_route: SortedRecipients, text: str, enhanced: str, now: float
) -> tuple[Outcome, ...]:
    """The outcomes of recipients to which nothing was delivered, all for the same reason."""
    return tuple(
        Outcome(
            message.queue_id, each.address, Status.DEFERRED, text, route.target, "", now, enhanced=enhanced
        )
        for route, recipients in by_route.here.items()
        for each in recipients
    )


def _kept_waiting(message: QueuedMessage, by_route: SortedRecipients, now: float) -> tuple[Outcome, ...]:
    """The outcomes of recipients that a policy lets wait."""
    return tuple(
        Outcome(
            message.queue_id,
            recipient.address,
            Status.DEFERRED,
            route.reason,
            "",
            "",
            now,
            enhanced=route.enhanced,
        )
        for recipient, route in by_route.waiting
    )
