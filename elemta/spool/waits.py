"""Why mail waits that could be attempted by what the spool says: delivery knows it, and operators see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from elemta.spool.records import (
    MessageRecord,
    MessageState,
    PartView,
    StoredPart,
    state_on_hold,
)


@dataclass(frozen=True, slots=True)
class Wait:
    """Mail is not attempted before ``until``, in seconds since the epoch (None: before an operator says so).

    ``reason`` says why. It is ``general`` where an outcome of the message itself says more.
    """

    reason: str
    until: float | None
    general: bool = False


@dataclass(frozen=True, slots=True)
class KnownWaits:
    """What mail waits for at one moment: the reasons by destination and by message, and what is under way.

    Messages are row keys. There may be more destinations than these.
    """

    destinations: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[int, str] = field(default_factory=dict)
    under_way: Sequence[int] = ()


NO_WAITS = KnownWaits()


class Waits(Protocol):
    """What delivery knows of mail that waits."""

    def wait(self, destination: str, part: tuple[str, int]) -> Wait | None:
        """Why a part in this destination is not attempted now; None where it may be, or is."""

    def known_waits(self) -> KnownWaits:
        """What mail waits for now, as far as it is listed quickly."""


def view_of_part(part: StoredPart, queue_id: str, hold_reason: str | None, waits: Waits | None) -> PartView:
    """A part as operators see it: one that waits for something is deferred, though it was never tried."""
    if part.state is MessageState.HOLD:
        state = state_on_hold([part.hold])
        return PartView(part.number, part.destination, state, None, hold_reason or "", part.positions)
    wait = None if waits is None else waits.wait(part.destination, (queue_id, part.number))
    reason, due = part.reason, part.turn
    state = part.state
    next_attempt_at: float | None = due
    if wait is not None:
        state = MessageState.DEFERRED
        if wait.until is None:
            next_attempt_at = None
        elif part.state is MessageState.ACTIVE:
            next_attempt_at = wait.until
        else:
            next_attempt_at = max(due, wait.until)
        if not (wait.general and reason):
            reason = wait.reason
    return PartView(part.number, part.destination, state, next_attempt_at, reason, part.positions)


_ORDER = {MessageState.ACTIVE: 0, MessageState.DEFERRED: 1}


def leading(views: Sequence[PartView]) -> PartView | None:
    """The part that says how the message as a whole stands: one that moves before one that waits, and that
    before one on hold; of those that wait the one with the next attempt."""
    return min(
        views,
        key=lambda view: (
            _ORDER.get(view.state, 2),
            view.next_attempt_at is None,
            view.next_attempt_at or 0.0,
            view.number,
        ),
        default=None,
    )


def next_attempt_of(record: MessageRecord) -> float | None:
    """When a message is attempted next, as operators see it; None where no attempt is planned."""
    first = leading(record.parts)
    return record.message.next_attempt_at if first is None else first.next_attempt_at


def shown_hold_reason(state: MessageState, hold_reason: str | None) -> str | None:
    """Why a message is on hold; None where it goes on, though one of its parts may be on hold."""
    return None if state in _ORDER else hold_reason


def with_views(record: MessageRecord, waits: Waits | None) -> MessageRecord:
    """The record with its parts, and its state, as operators see them."""
    message = record.message
    parts = tuple(
        view_of_part(part, record.queue_id, message.hold_reason, waits)
        for part in sorted(record.stored, key=lambda part: part.number)
    )
    first = leading(parts)
    if message.state is MessageState.HOLD or first is None or first.state not in _ORDER:
        state = state_on_hold([part.hold for part in record.stored])
    else:
        state = first.state
    return replace(record, parts=parts, state=state)
