"""What the admin calls about the queue answer: its messages, and the queue in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elemta.address import Address
from elemta.envelope import Client, MailParameters, Notify, Recipient
from elemta.outcome import Outcome, Status
from elemta.spool.records import (
    MessageRecord,
    MessageState,
    MessageSummary,
    PartView,
    RecipientRecord,
    SpoolStats,
)
from elemta.spool.waits import next_attempt_of, shown_hold_reason


@dataclass(frozen=True, slots=True)
class QueueSize:
    """How many messages, and how large they are together."""

    messages: int
    octets: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue in numbers, and its disk: whether it can be trusted, and what is free on it."""

    healthy: bool
    free: int
    oldest_age: float
    total: QueueSize
    states: Mapping[MessageState, QueueSize]

    @classmethod
    def of(cls, stats: SpoolStats) -> QueueStats:
        return cls(
            healthy=stats.healthy,
            free=stats.free,
            oldest_age=stats.oldest_age,
            total=QueueSize(stats.total, stats.total_octets),
            states={
                state: QueueSize(count, stats.octets.get(state, 0)) for state, count in stats.messages.items()
            },
        )


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One message in the listing.

    A held one has no next attempt, nor has one that waits for an operator. ``destination`` and ``reason`` are
    those of the part that is attempted next; ``recipient`` is one that is left.
    """

    queue_id: str
    state: MessageState
    sender: Address
    recipients: int
    pending: int
    size: int
    received_at: float
    next_attempt_at: float | None
    attempts: int
    hold_reason: str | None
    recipient: Address | None
    destination: str
    reason: str

    @classmethod
    def of(cls, summary: MessageSummary) -> QueueEntry:
        return cls(
            summary.queue_id,
            summary.state,
            summary.sender,
            summary.recipients,
            summary.pending,
            summary.size,
            summary.received_at,
            summary.next_attempt_at,
            summary.attempts,
            summary.hold_reason,
            summary.recipient,
            summary.destination,
            summary.reason,
        )


@dataclass(frozen=True, slots=True)
class MessagePage:
    """A page of the listing; ``next`` is the ``after`` of the next one, None at the end."""

    messages: tuple[QueueEntry, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class RecipientDetails:
    """One recipient of a message, its last outcome, and how it stands while it is ``pending``.

    ``state``, ``destination``, ``next_attempt_at`` and ``reason`` are those of its part of the message.
    """

    address: Address
    pending: bool
    status: Status | None
    code: int
    enhanced: str
    text: str
    route: str
    next_hop: str
    at: float | None
    notify: tuple[str, ...] | None
    orcpt: str | None
    state: MessageState | None
    destination: str
    next_attempt_at: float | None
    reason: str

    @classmethod
    def of(cls, record: RecipientRecord, part: PartView | None) -> RecipientDetails:
        outcome = record.outcome
        shown = part if record.pending else None
        return cls(
            record.recipient.address,
            record.pending,
            outcome.status if outcome else None,
            outcome.code if outcome else 0,
            outcome.enhanced if outcome else "",
            outcome.text if outcome else "",
            outcome.route if outcome else "",
            outcome.next_hop if outcome else "",
            outcome.at if outcome else None,
            _notify(record.recipient),
            record.recipient.orcpt,
            shown.state if shown else None,
            shown.destination if shown else "",
            shown.next_attempt_at if shown else None,
            shown.reason if shown else "",
        )


@dataclass(frozen=True, slots=True)
class AttemptDetails:
    """One attempt for one recipient; ``number`` counts the attempts of the message."""

    number: int
    recipient: Address
    status: Status
    code: int
    enhanced: str
    text: str
    route: str
    next_hop: str
    at: float
    seconds: float

    @classmethod
    def of(cls, number: int, outcome: Outcome) -> AttemptDetails:
        return cls(
            number,
            outcome.recipient,
            outcome.status,
            outcome.code,
            outcome.enhanced,
            outcome.text,
            outcome.route,
            outcome.next_hop,
            outcome.at,
            outcome.seconds,
        )


@dataclass(frozen=True, slots=True)
class MessageDetails:
    """One message with its client, recipients and attempts."""

    queue_id: str
    state: MessageState
    hold_reason: str | None
    sender: Address
    size: int
    received_at: float
    next_attempt_at: float | None
    attempts: int
    client: Client
    parameters: MailParameters
    recipients: tuple[RecipientDetails, ...]
    history: tuple[AttemptDetails, ...]

    @classmethod
    def of(cls, record: MessageRecord) -> MessageDetails:
        message, envelope = record.message, record.envelope
        return cls(
            queue_id=record.queue_id,
            state=record.state,
            hold_reason=shown_hold_reason(record.state, message.hold_reason),
            sender=envelope.sender,
            size=envelope.size,
            received_at=envelope.received_at,
            next_attempt_at=next_attempt_of(record),
            attempts=message.attempts,
            client=envelope.client,
            parameters=envelope.parameters,
            recipients=tuple(
                RecipientDetails.of(each, _part(record.parts, place))
                for place, each in enumerate(record.recipients)
            ),
            history=tuple(AttemptDetails.of(*each) for each in record.history),
        )


def _part(parts: Sequence[PartView], place: int) -> PartView | None:
    """The part that has the recipient at this place."""
    return next((part for part in parts if part.positions is None or place in part.positions), None)


def _notify(recipient: Recipient) -> tuple[str, ...] | None:
    if recipient.notify is None:
        return None
    # RFC 3461 §4.1: NEVER stands alone
    flags = tuple(flag.name for flag in Notify if flag in recipient.notify and flag.name)
    return flags or ("NEVER",)
