"""What follows from an attempt: the notices for the sender are queued before the outcomes are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from twisted.logger import Logger

from elemta.delivery.bounces import BounceSpool, log_left_out, notices_for, submit, undeliverable_reason
from elemta.delivery.delivery_record import let_observers_keep, settle_surely, tell_ended
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.settings import DeliverySettings
from elemta.envelope import Envelope
from elemta.errors import NoSender, SpoolError, UnknownMessage
from elemta.message.notice import Notice, NoticeKind, NoticeSettings
from elemta.outcome import Outcome, ReturnedMessage, Status
from elemta.spool import MessageState, Spool
from elemta.spool.records import HoldCause, QueuedMessage

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class FollowUp:
    """How the outcomes of an attempt are recorded, and what becomes of the recipients that are left.

    ``ends_as`` is the status that all recipients get that were not delivered to; None: each its own.
    ``retry_at`` is for the recipients that are deferred, in seconds since the epoch; ``hold_reason`` for
    those that failed and whose sender gets no notice, or whose message can't be read; ``hold`` says
    which. ``warned``: the delay needs no further notice.
    """

    ends_as: Status | None = None
    retry_at: float | None = None
    hold_reason: str | None = None
    warned: bool = False
    hold: HoldCause = HoldCause.UNDELIVERABLE

    def recorded(self, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
        """The outcomes as they are recorded."""
        if self.ends_as is None:
            return tuple(outcomes)
        kept = (Status.DELIVERED, self.ends_as)
        return tuple(
            outcome
            if outcome.status in kept
            else replace(
                outcome, status=self.ends_as, reason="expired" if self.ends_as is Status.FAILED else ""
            )
            for outcome in outcomes
        )

    def without_notices(self, outcomes: Sequence[Outcome], retry_at: float) -> FollowUp:
        """The same where the notices could not be queued: no recipient fails before its notice is queued."""
        held = self.hold_reason if self.hold is HoldCause.UNDELIVERABLE else None
        return FollowUp(Status.DEFERRED, retry_at if _any_left(outcomes) else None, held)


def notice_settings(settings: DeliverySettings) -> NoticeSettings:
    """What decides about notices."""
    return NoticeSettings(
        settings.hostname,
        settings.warn_after,
        settings.retries.expire,
        settings.bounce_size_limit,
        settings.expand,
    )


def follow_up(
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    settings: DeliverySettings,
    *,
    now: float,
    retry_at: float | None = None,
    unreadable: str | None = None,
) -> FollowUp:
    """What follows for the message from an attempt at ``now``.

    ``retry_at`` is the time of the next one where the destination decides it, else the message's own
    schedule does. At ``expire`` after its receipt what is deferred has failed. A message that can't be read
    then, for the reason ``unreadable``, is kept on hold for a while once the notice to its sender is queued.
    """
    envelope = message.envelope
    age = now - envelope.received_at
    expired = age >= settings.retries.expire
    held = undeliverable_reason(envelope, message.pending, outcomes, expired=expired)
    deferred = not expired and any(outcome.status is Status.DEFERRED for outcome in outcomes)
    ends_as = Status.FAILED if expired else None
    if not deferred:
        retry_at = None
    elif retry_at is None:
        retry_at = settings.retries.next_attempt(message.attempts + 1, envelope.received_at, now)
    late = deferred and 0 < settings.warn_after <= age
    if unreadable is not None and held is None and expired and _any_left(outcomes):
        reason = f"it can't be read, and the sender got a notice: {unreadable}"[:_LONGEST_REASON]
        return FollowUp(ends_as, retry_at, reason, late, HoldCause.UNREADABLE)
    return FollowUp(ends_as, retry_at, held, late)


def notices_of(
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    settings: NoticeSettings,
    now: float,
    *,
    ahead: float = 0.0,
) -> tuple[Notice, ...]:
    """The notices that follow for the sender of a queued message, dated by the time of day.

    ``now`` and ``settings`` are by a clock that is so many seconds ``ahead`` of it.
    """
    pending = message.pending
    known = [recipient.address for recipient in pending] if message.warned else ()
    notices = notices_for(message.envelope, pending, outcomes, now=now, settings=settings, warned=known)
    return tuple(replace(notice, at=notice.at - ahead) for notice in notices) if ahead else notices


def dated(settings: NoticeSettings, ahead: float) -> NoticeSettings:
    """The same for what people read, by the time of day; see :func:`notices_of`."""
    return replace(settings, expire=settings.expire - ahead) if ahead else settings


def _any_left(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.status is not Status.DELIVERED for outcome in outcomes)


_log = Logger()


class NoticeSpool(BounceSpool, Protocol):
    """What notices about a queued message need of the spool."""

    async def open_content(self, queue_id: str) -> BinaryIO:
        """The whole message as it is sent on."""


async def record(
    queue: DeliveryQueue,
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    following: FollowUp,
    settings: DeliverySettings,
    *,
    now: float,
) -> FollowUp:
    """Put outcomes and what follows from them into the queue; gives the follow-up that was recorded in fact.

    The notices come first: a crash between them and the outcomes may tell a sender twice, but never not
    at all. Where one that tells of a failure can't be queued, its recipients are tried again after the first
    delay. What was delivered is not recorded here: that was recorded before any report of it.
    SpoolError: the outcomes are not stored yet.
    """
    about = notice_settings(settings)
    notices = notices_of(message, outcomes, about, now, ahead=settings.ahead)
    about = dated(about, settings.ahead)
    try:
        await tell(queue, [notice for notice in notices if notice.kind is NoticeKind.FAILURE], about)
    except Exception as error:
        tell_operator(message, error)
        following = following.without_notices(outcomes, now + settings.retries.delays[0])
    else:
        try:
            await tell(queue, [notice for notice in notices if notice.kind is not NoticeKind.FAILURE], about)
        except Exception as error:
            tell_operator(message, error)
            following = replace(following, warned=False)
    await settle_surely(
        queue,
        message,
        following.recorded(outcomes),
        retry_at=following.retry_at,
        hold_reason=following.hold_reason,
        hold=following.hold,
        warned=following.warned,
    )
    if following.hold_reason is not None:
        _log.warn(
            "message put on hold",
            event="delivery.held",
            queue_id=message.queue_id,
            sender=str(message.envelope.sender),
            reason=following.hold_reason,
        )
    return following


async def tell(spool: NoticeSpool, notices: Iterable[Notice], settings: NoticeSettings) -> None:
    """Put notices about a message into the queue: from the envelope alone, if the message can't be read.

    UnknownMessage: it is gone, and there is nothing to tell. SpoolFull, SpoolError: not all are queued.
    """
    for notice in notices:
        await submit(spool, notice, settings, await content_for_notice(spool, notice.envelope.queue_id))


async def content_for_notice(spool: NoticeSpool, queue_id: str) -> BinaryIO | None:
    """The message that a notice is about; None where it can't be read. UnknownMessage."""
    try:
        return await spool.open_content(queue_id)
    except UnknownMessage:
        raise
    except Exception as error:
        log_left_out(queue_id, error)
        return None


def tell_operator(message: QueuedMessage | Envelope, error: Exception) -> None:
    """Log that a notice could not be built or queued."""
    if not isinstance(error, SpoolError | OSError):
        _log.failure(
            "a notice to a sender could not be made", event="bounce.internal_error", queue_id=message.queue_id
        )
        return
    _log.error(
        "a notice to a sender could not be queued",
        event="bounce.not_queued",
        queue_id=message.queue_id,
        reason=str(error),
    )


_RETURNED = "returned by the operator of this mail system"
_HELD = "being returned to the sender"


async def return_to_sender(
    spool: Spool, queue_id: str, settings: NoticeSettings, now: Callable[[], float]
) -> ReturnedMessage:
    """Give up every recipient that is left, and tell the sender.

    The notice is in the queue before the message leaves it. An attempt that is under way at this moment may
    still deliver it. NoSender; UnknownMessage; SpoolError: nothing is changed.
    """
    message = (await spool.show(queue_id)).message
    if not message.envelope.sender:
        raise NoSender(f"{queue_id} is from <>, which gets no notice")
    held = message.state is not MessageState.HOLD
    if held:
        # So that no attempt begins while the notice is written.
        await spool.hold(queue_id, _HELD)
    try:
        message = (await spool.show(queue_id)).message
        return await _give_up(spool, message, settings, now())
    except Exception:
        if held:
            await spool.release(queue_id)
        raise


async def _give_up(
    spool: Spool, message: QueuedMessage, settings: NoticeSettings, now: float
) -> ReturnedMessage:
    # RFC 3463 §3.1 X.0.0: nothing more can be said.
    outcomes = [
        Outcome(
            message.queue_id,
            one.address,
            Status.FAILED,
            _RETURNED,
            "",
            "",
            now,
            enhanced="5.0.0",
            reason="bounced",
        )
        for one in message.pending
    ]
    notices = notices_of(message, outcomes, settings, now)
    await tell(spool, notices, settings)
    await let_observers_keep(spool, message, outcomes, "bounced")
    await spool.settle(message.queue_id, outcomes, retry_at=None, hold_reason=None)
    tell_ended(spool, message, outcomes, "bounced")
    return ReturnedMessage(len(outcomes), len(notices))
