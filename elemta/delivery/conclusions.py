"""What follows from an attempt for the message: what is recorded, who is told, and when there is another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elemta.delivery.bounces import Notices, NoticeSettings, decide
from elemta.delivery.settings import DeliverySettings
from elemta.outcome import Outcome, Status
from elemta.spool.records import HoldCause, QueuedMessage

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What to put into the queue after an attempt: the notices first, then the outcomes.

    ``retry_at`` is for the recipients that are deferred, in seconds since the epoch; ``hold_reason`` for
    those that failed and whose sender can't be told, or whose message can't be read; ``hold`` says
    which. ``warned``: the delay needs no telling any more.
    """

    outcomes: tuple[Outcome, ...]
    notices: Notices
    retry_at: float | None = None
    hold_reason: str | None = None
    warned: bool = False
    hold: HoldCause = HoldCause.UNDELIVERABLE

    def without_notices(self, retry_at: float) -> Conclusion:
        """The same where the notices could not be queued: nobody counts as failed before he is told."""
        outcomes = tuple(
            replace(outcome, status=Status.DEFERRED) if outcome.status is Status.FAILED else outcome
            for outcome in self.outcomes
        )
        again = any(outcome.status is Status.DEFERRED for outcome in outcomes)
        held = self.hold_reason if self.hold is HoldCause.UNDELIVERABLE else None
        return Conclusion(outcomes, Notices(), retry_at if again else None, held)


def notice_settings(settings: DeliverySettings) -> NoticeSettings:
    """What decides about notices."""
    return NoticeSettings(
        settings.hostname, settings.warn_after, settings.retries.expire, settings.bounce_size_limit
    )


def conclude(
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    settings: DeliverySettings,
    *,
    now: float,
    retry_at: float | None = None,
    unreadable: str | None = None,
) -> Conclusion:
    """Draw the conclusion of an attempt at ``now``.

    ``retry_at`` is the time of the next one where the destination decides it, else the message's own
    schedule does. At ``expire`` after its receipt what is deferred has failed. A message that can't be read
    then, for the reason ``unreadable``, is kept on hold for a while once its sender is told.
    """
    known = [recipient.address for recipient in message.pending] if message.warned else ()
    notices = decide(message, outcomes, now=now, settings=notice_settings(settings), warned=known)
    age = now - message.envelope.received_at
    expired = age >= settings.retries.expire
    if expired:
        outcomes = [_given_up(outcome) for outcome in outcomes]
    deferred = any(outcome.status is Status.DEFERRED for outcome in outcomes)
    if not deferred:
        retry_at = None
    elif retry_at is None:
        retry_at = settings.retries.next_attempt(message.attempts + 1, message.envelope.received_at, now)
    late = deferred and 0 < settings.warn_after <= age
    if unreadable is not None and notices.hold is None and expired and _any_failed(outcomes):
        reason = f"it can't be read, and the sender was told: {unreadable}"[:_LONGEST_REASON]
        return Conclusion(tuple(outcomes), notices, retry_at, reason, late, HoldCause.UNREADABLE)
    return Conclusion(tuple(outcomes), notices, retry_at, notices.hold, late)


def _any_failed(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.status is Status.FAILED for outcome in outcomes)


def _given_up(outcome: Outcome) -> Outcome:
    return replace(outcome, status=Status.FAILED) if outcome.status is Status.DEFERRED else outcome
