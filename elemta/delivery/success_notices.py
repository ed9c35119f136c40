"""Telling senders of deliveries: after those are recorded, and until the notice is in the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from elemta.delivery.bounces import notices_for, paired, submit
from elemta.delivery.delivery_record import owes
from elemta.delivery.faulty_parts import RecentFaults
from elemta.delivery.notices import content_for_notice, notice_settings, tell_operator
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.settings import DeliverySettings
from elemta.errors import UnknownMessage
from elemta.message.notice import Notice, NoticeKind
from elemta.outcome import Outcome, Status
from elemta.runtime import SteadyWall
from elemta.spool.records import QueuedMessage

_log = Logger()

# Messages that one look takes in, and for which something is done at the same time.
_PAGE = 50


class SuccessNotices:
    """Sends what the spool says is owed.

    A delivery is recorded first, and with it that its sender has still to hear of it. The notice and the note
    that it is no longer owed are one transaction: whenever the process ends, a sender gets one notice. A
    notice that can't be queued is tried again, and written off ``expire`` after the delivery.
    """

    def __init__(self, clock: SteadyWall, queue: DeliveryQueue, settings: DeliverySettings) -> None:
        self.settings = settings
        self._clock = clock
        self._queue = queue
        self._sending: set[str] = set()
        # Messages whose notice could not be queued, by queue id.
        self._faults: RecentFaults[str] = RecentFaults()

    async def send(self, message: QueuedMessage, delivered: Sequence[Outcome]) -> None:
        """Tell the sender of deliveries that were just recorded. Does not raise."""
        try:
            owed = owes(message, delivered)
            if owed:
                found = [
                    (recipient, outcome)
                    for recipient, outcome in paired(message.pending, delivered)
                    if recipient.address in owed
                ]
                recipients, outcomes = zip(*found, strict=True)
                date = self._clock.date
                await self._send(Notice(NoticeKind.SUCCESS, message.envelope, recipients, outcomes, date))
        except Exception as error:
            # The spool knows what is owed, so the next look finds it.
            tell_operator(message, error)

    async def walk(self, now: float, goes_on: Callable[[], bool]) -> None:
        """Send what is owed since before, and what could not be sent. SpoolError: the queue can't be read."""
        after: str | None = None
        while goes_on():
            page = await self._queue.owed(after, _PAGE)
            due = [each for each in page if not self._faults.is_left_alone(each.envelope.queue_id, now)]
            sending = [Deferred.fromCoroutine(self._send(owed)) for owed in due]
            await gatherResults(sending, consumeErrors=True)
            if len(page) < _PAGE:
                return
            after = page[-1].envelope.queue_id

    async def _send(self, owed: Notice) -> None:
        """Queue the notice. Does not raise but for a fault in the handling of what went wrong."""
        queue_id = owed.envelope.queue_id
        if queue_id in self._sending:
            return
        self._sending.add(queue_id)
        try:
            await self._queue_notice(owed)
        except UnknownMessage:
            pass  # an operator removed it, or its notice was sent
        except Exception as error:
            tell_operator(owed.envelope, error)
            await self._failed(owed)
        else:
            self._faults.forget(queue_id)
        finally:
            self._sending.discard(queue_id)

    async def _queue_notice(self, owed: Notice) -> None:
        settings, now = notice_settings(self.settings), self._clock.date
        envelope, recipients = owed.envelope, owed.recipients
        delivered = [replace(each, status=Status.DELIVERED, dsn_passed_on=False) for each in owed.outcomes]
        notices = notices_for(envelope, recipients, delivered, now=now, settings=settings)
        if not notices:
            await self._queue.write_off(owed)
            return
        content = await content_for_notice(self._queue, envelope.queue_id)
        await submit(self._queue, notices[0], settings, content, pays=owed)

    async def _failed(self, owed: Notice) -> None:
        now, envelope = self._clock.seconds(), owed.envelope
        self._faults.note(envelope.queue_id, now + self.settings.retries.delays[0])
        delivered_at = max([envelope.received_at, *(each.at for each in owed.outcomes)])
        expire = self.settings.retries.expire + self._clock.ahead
        if now < delivered_at + expire or not self._queue.healthy:
            return
        _log.error(
            "a sender gets no notice of a delivery: it could not be queued for too long",
            event="bounce.written_off",
            queue_id=envelope.queue_id,
            sender=str(envelope.sender),
        )
        try:
            await self._queue.write_off(owed)
        except Exception as error:
            tell_operator(envelope, error)
