"""From what came of an attempt to the record of it: what was delivered is recorded first, and in any case."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from elemta.address import Address
from elemta.delivery.queue import DeliveryQueue
from elemta.envelope import Notify, Recipient
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status, all_delivered
from elemta.spool.records import HoldCause, QueuedMessage

_log = Logger()

_TRIES = 3

Taken = dict[Address, Outcome]
"""What next hops took of one attempt so far. It is noted at once, and no fault after that loses it."""


def delivered_of(outcomes: Sequence[Outcome], taken: Mapping[Address, Outcome]) -> list[Outcome]:
    """The outcomes of all recipients that got the message: also where the outcome was lost here."""
    delivered = [outcome for outcome in outcomes if outcome.status is Status.DELIVERED]
    if [*taken.values()] == delivered:
        return delivered
    known = {outcome.recipient for outcome in delivered}
    delivered += [outcome for address, outcome in taken.items() if address not in known]
    return delivered


def rest_of(outcomes: Sequence[Outcome], delivered: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes of all others."""
    if all_delivered(outcomes):
        return ()
    done = {outcome.recipient for outcome in delivered}
    return tuple(outcome for outcome in outcomes if outcome.recipient not in done)


_NONE: frozenset[Address] = frozenset()


def owes(message: QueuedMessage, delivered: Sequence[Outcome]) -> frozenset[Address]:
    """Those recipients of whose delivery the sender wants to hear, from us."""
    if not message.envelope.sender:
        return frozenset()
    asked: set[Address] = set()
    for each in message.pending:
        if each.notify is not None and Notify.SUCCESS in each.notify:
            asked.add(each.address)
    if not asked:
        return _NONE
    # RFC 3461 §5.2.1: the host that took over the request for a notice answers it.
    return frozenset(
        each.recipient for each in delivered if not each.dsn_passed_on and each.recipient in asked
    )


def may_owe(message: QueuedMessage, outcomes: Sequence[Outcome]) -> Collection[Address]:
    """All whose delivery the sender may want to hear of; the notice finds out whether that is so."""
    if not message.envelope.sender:
        return ()
    return [each.recipient for each in outcomes if each.status is Status.DELIVERED]


async def settle_surely(
    queue: DeliveryQueue,
    message: QueuedMessage,
    outcomes: Sequence[Outcome],
    *,
    retry_at: float | None = None,
    hold_reason: str | None = None,
    hold: HoldCause = HoldCause.FAULT,
    warned: bool = False,
    owes: Collection[Address] = (),
) -> None:
    """Have outcomes of a part recorded; a fault on the way there is no reason not to ask again.

    SpoolError: they are not stored yet; the spool keeps them. To record an outcome twice changes nothing.
    """
    observer = getattr(queue, "observer", None)
    if observer is not None and observer.keeps:
        await let_observers_keep(queue, message, _ended(outcomes, hold_reason))
    for left in reversed(range(_TRIES)):
        try:
            await queue.settle(
                message.queue_id,
                outcomes,
                part=message.part,
                retry_at=retry_at,
                hold_reason=hold_reason,
                hold=hold,
                warned=warned,
                owes=owes,
            )
        except SpoolError:
            raise
        except Exception:
            if not left:
                raise
            _log.failure(
                "an attempt could not be recorded; it is tried again",
                event="delivery.record_failed",
                queue_id=message.queue_id,
            )
        else:
            if observer is not None and observer.tells_end:
                tell_ended(queue, message, _ended(outcomes, hold_reason))
            return


def _ended(outcomes: Sequence[Outcome], hold_reason: str | None) -> Sequence[Outcome]:
    """Those after which nothing more is tried: what is on hold may be released."""
    if hold_reason is None:
        return outcomes
    return [outcome for outcome in outcomes if outcome.status is Status.DELIVERED]


async def let_observers_keep(
    queue: object, message: QueuedMessage, outcomes: Sequence[Outcome], reason: str = ""
) -> None:
    """Let the observers keep what came of these recipients, before it is recorded.

    ``reason`` is that of the failures where it is not ``failed``. It never fails.
    """
    observer = getattr(queue, "observer", None)
    if observer is None or not observer.keeps:
        return
    known = {each.address: each for each in message.pending}
    waiting: list[Deferred[None]] = []
    for outcome in outcomes:
        recipient = known.get(outcome.recipient) or Recipient(outcome.recipient)
        why = _reason_of(outcome, reason)
        try:
            waiting += observer.recording(message.envelope, recipient, replace(outcome, reason=why))
        except Exception:
            _log_not_reported(message)
    for kept in waiting:
        await kept


def _reason_of(outcome: Outcome, failed: str) -> str:
    if outcome.status is Status.FAILED:
        return outcome.reason or failed or "failed"
    return str(outcome.status.value)


def _log_not_reported(message: QueuedMessage) -> None:
    _log.failure(
        "what came of a delivery could not be reported to a policy",
        event="delivery.not_reported",
        queue_id=message.queue_id,
    )


def tell_ended(queue: object, message: QueuedMessage, outcomes: Sequence[Outcome], reason: str = "") -> None:
    """Tell the observers that nothing more is tried for these recipients, which is on stable storage.

    ``reason`` is that of the failures where it is not ``failed``.
    """
    observer = getattr(queue, "observer", None)
    if observer is None or not observer.tells_end:
        return
    known = {each.address: each for each in message.pending}
    for outcome in outcomes:
        if outcome.status is Status.DEFERRED:
            continue
        recipient = known.get(outcome.recipient) or Recipient(outcome.recipient)
        why = _reason_of(outcome, reason)
        try:
            observer.ended(message.envelope, recipient, replace(outcome, reason=why))
        except Exception:
            _log_not_reported(message)


class DeliveredRecorder:
    """Records deliveries. While one can't be recorded by a fault of ours, its part is not attempted.

    What next hops take of a part is noted here from before the attempt until it is recorded: so whatever
    breaks in between, the next turn of the part is a record, and no second copy.
    """

    def __init__(self, queue: DeliveryQueue) -> None:
        self._queue = queue
        self._taken: dict[tuple[str, int], Taken] = {}

    def begin(self, message: QueuedMessage) -> Taken:
        """Where an attempt that begins now notes what next hops take."""
        taken = self._taken[message.key] = {}
        return taken

    def end(self, message: QueuedMessage) -> None:
        """The attempt is over; what it noted stays until it is recorded."""
        if message.key in self._taken and not self._taken[message.key]:
            del self._taken[message.key]

    def is_waiting(self, message: QueuedMessage) -> bool:
        """Whether something was delivered of the part and could not be recorded."""
        return message.key in self._taken and bool(self._taken[message.key])

    async def record(self, message: QueuedMessage, delivered: Sequence[Outcome]) -> Collection[Address]:
        """Record deliveries before any report of them. Gives the recipients that a notice is owed for.

        SpoolError: they are kept, there or here.
        """
        owed = _owes(message, delivered)
        try:
            await settle_surely(self._queue, message, delivered, owes=owed)
        except SpoolError:
            # A spool that trusts its disk and has nothing left to write has not kept this either.
            if not self._queue.settled:
                self._taken.pop(message.key, None)
            raise
        self._taken.pop(message.key, None)
        return owed

    async def record_waiting(self, message: QueuedMessage) -> None:
        """Try again what could not be recorded."""
        await self.record(message, self.outcomes(message))

    def outcomes(self, message: QueuedMessage) -> list[Outcome]:
        """What was delivered of a part and could not be recorded."""
        return delivered_of((), self._taken.get(message.key, {}))

    def forget(self, message: QueuedMessage) -> None:
        """It is recorded otherwise."""
        self._taken.pop(message.key, None)


def _owes(message: QueuedMessage, delivered: Sequence[Outcome]) -> Collection[Address]:
    try:
        return owes(message, delivered)
    except Exception:
        _log.failure(
            "it could not be determined which deliveries need a notice",
            event="delivery.owed_unknown",
            queue_id=message.queue_id,
        )
        return may_owe(message, delivered)
