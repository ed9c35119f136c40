"""A queued message and its parts under change, as one transaction finds them and leaves them; no SQL here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.logger import Logger

from elemta.address import Address
from elemta.errors import MessageOnHold, SpoolError, UnknownMessage
from elemta.outcome import Outcome, Status
from elemta.spool.operations import Assignment, DeliveryResult, OperatorAction, OperatorChange, Payment
from elemta.spool.queue_id import unknown_message
from elemta.spool.records import HoldCause, MessageState, state_on_hold

_log = Logger()


# About what the rows of a message and of each of its recipients take, in octets.
ROWS_OF_MESSAGE = 4096
ROWS_OF_RECIPIENT = 1024

# How the database says that the sender has still to hear of a delivery.
OWED_RELAYED, OWED_FINAL = 1, 2

_HELD_BY_OPERATOR = "held by the operator"


def space_of(size: int, recipients: int) -> int:
    """The space that a message with outcomes takes in the spool, in octets: small ones are mostly rows."""
    return size + ROWS_OF_MESSAGE + ROWS_OF_RECIPIENT * recipients


@dataclass(slots=True)
class Part:
    """Recipients of the message that go one way, by position; None is all of them."""

    number: int
    destination: str
    state: MessageState
    turn: float
    attempts: int
    warned: bool
    positions: list[int] | None
    hold: HoldCause = HoldCause.OPERATOR
    held_at: float | None = None
    changed: bool = False
    gone: bool = False


@dataclass(slots=True)
class StoredMessage:
    """A message under change. ``finished`` are the positions of recipients that need no attempt any more.

    The sender has still to hear of the deliveries to those in ``owed``; of those in ``paid`` not any more.
    ``pending_unread`` is how many wait where the envelope can't be read: such a message stays until an
    operator deletes it.
    """

    key: int
    queue_id: str
    state: MessageState
    attempts: int
    size: int
    in_file: bool
    hold_reason: str | None
    recipients: Sequence[Sequence[Any]]
    finished: set[int]
    attempt: int
    parts: list[Part]
    found: MessageState
    owed: set[int] = field(default_factory=set)
    paid: list[int] = field(default_factory=list)
    found_undeliverable: int = 0
    pending_unread: int | None = None
    next_attempt_at: float | None = None
    gone: bool = False
    changed: bool = False
    outcomes: dict[int, tuple[object, ...]] = field(default_factory=dict)
    history: list[tuple[object, ...]] = field(default_factory=list)
    _places: dict[tuple[str, str], list[int]] | None = None

    def positions(self, address: Address) -> list[int]:
        """Where the address stands among the recipients: more than once if the client named it twice."""
        if len(self.recipients) == 1:
            (only,) = self.recipients
            return [0] if only[0] == address.local and only[1] == address.domain else []
        if self._places is None:
            self._places = {}
            for place, parts in enumerate(self.recipients):
                self._places.setdefault((parts[0], parts[1]), []).append(place)
        return self._places.get((address.local, address.domain), [])

    @property
    def seen_as(self) -> MessageState:
        """The state as operators see it."""
        if self.state is not MessageState.HOLD:
            return self.state
        return state_on_hold([part.hold for part in self.parts if not part.gone])

    @property
    def undeliverable(self) -> int:
        """The space that the message takes as an undeliverable notice on hold; 0 where it is none."""
        for part in self.parts:
            if part.hold is HoldCause.UNDELIVERABLE and not part.gone:
                return space_of(self.size, len(self.recipients))
        return 0

    @property
    def pending(self) -> int:
        if self.pending_unread is not None:
            return self.pending_unread
        return len(self.recipients) - len(self.finished)

    def left_in(self, part: Part) -> list[int]:
        """The positions of a part that still need an attempt."""
        places: Iterable[int] = range(len(self.recipients)) if part.positions is None else part.positions
        return [place for place in places if place not in self.finished]

    def split(self, part: Part, positions: list[int]) -> Part:
        """A new part with some positions of another one, that is left as it was."""
        number = max(each.number for each in self.parts) + 1
        new = replace(part, number=number, positions=positions, changed=True)
        self.parts.append(new)
        return new

    def conclude(self) -> None:
        """Let the message as a whole say what its parts come to."""
        self.changed = True
        for part in self.parts:
            if not part.gone and self.pending_unread is None and not self.left_in(part):
                part.gone = True
        left = [part for part in self.parts if not part.gone]
        if not left:
            # A notice that is still to be sent needs the message's header.
            self.gone = not self.owed
            self.state, self.hold_reason = MessageState.DEFERRED, None
            return
        states = {part.state for part in left}
        self.state = next(
            state
            for state in (MessageState.ACTIVE, MessageState.DEFERRED, MessageState.HOLD)
            if state in states
        )
        self.attempts = max(self.attempts, *(part.attempts for part in left))
        if MessageState.HOLD not in states:
            self.hold_reason = None
        if self.state is not MessageState.ACTIVE:
            # Also where no part but one that is gone changed: what others of the same batch did to the rest
            # must not count.
            self.next_attempt_at = min(part.turn for part in left if part.state is self.state)


def storable(text: str) -> str:
    """Text as the database can keep it: half characters, which a hostile peer may cause, are spelled out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def settle(message: StoredMessage, result: DeliveryResult) -> None:
    """Note the outcomes of an attempt, and let what is left of the part wait or stay on hold."""
    result.recorded = recorded = []
    result.before = message.attempt
    result.skipped = result.ends_hold and not _has_end(message, result.part)
    if result.skipped:
        return
    keep_failed = result.hold_reason is not None
    wait: set[int] = set()
    for outcome in result.outcomes:
        positions = message.positions(outcome.recipient)
        if not positions:
            _log.warn(
                "an outcome names a recipient that the message does not have",
                event="spool.outcome_without_recipient",
                queue_id=message.queue_id,
                recipient=str(outcome.recipient),
            )
        counted = [place for place in positions if place not in message.finished]
        for position in counted:
            _record(message, position, outcome, keep_failed=keep_failed, owes=result.owes)
        if counted:
            recorded.append((outcome, counted))
        if outcome.status is Status.DEFERRED and result.retry_at is not None:
            wait.update(positions)
    if result.warned or keep_failed or result.retry_at is not None:
        for part in list(message.parts):
            if result.part is None or result.part == part.number:
                _let_wait(message, part, result, wait)
    message.conclude()


def _let_wait(message: StoredMessage, part: Part, result: DeliveryResult, wait: set[int]) -> None:
    left = message.left_in(part)
    if not left:
        return
    if result.warned and part.state is not MessageState.HOLD:
        part.warned = part.changed = True
    if result.hold_reason is not None:
        message.hold_reason = storable(result.hold_reason)
        held = [position for position in left if position not in wait]
        if held:
            _hold(message, part, held, result)
        if len(held) == len(left):
            return
        part.positions = [position for position in left if position in wait]
    if result.retry_at is not None:
        # An operator's hold that came meanwhile stays.
        if part.state is not MessageState.HOLD:
            part.state = MessageState.DEFERRED
        part.turn, part.changed = result.retry_at, True
        part.attempts += result.attempted


def _has_end(message: StoredMessage, number: int | None) -> bool:
    """Whether the part is on a hold that ends by itself: an operator may have released or held it."""
    return any(part.number == number and part.held_at is not None for part in message.parts)


def _hold(message: StoredMessage, part: Part, positions: list[int], result: DeliveryResult) -> None:
    """Put some recipients of a part on hold: as a part of their own, if they are not all of it."""
    held = part if positions == message.left_in(part) else message.split(part, positions)
    if held.state is not MessageState.HOLD:
        # What an operator put there meanwhile stays until the operator releases it.
        held.hold, held.held_at = result.hold, result.at
    held.state, held.attempts, held.changed = MessageState.HOLD, held.attempts + 1, True


def _record(
    message: StoredMessage, position: int, outcome: Outcome, *, keep_failed: bool, owes: Collection[Address]
) -> None:
    status = outcome.status
    finished = status is Status.DELIVERED or (status is Status.FAILED and not keep_failed)
    if finished:
        message.finished.add(position)
    texts = (outcome.enhanced, outcome.text, outcome.route, outcome.next_hop)
    if not "".join(texts).isascii():
        texts = (storable(texts[0]), storable(texts[1]), storable(texts[2]), storable(texts[3]))
    said = (status.value, outcome.code, *texts, outcome.at)
    owed = 0
    if status is Status.DELIVERED and outcome.recipient in owes:
        owed = OWED_FINAL if outcome.final else OWED_RELAYED
        message.owed.add(position)
    message.outcomes[position] = (message.key, position, not finished, *said, owed)
    message.attempt += 1
    message.history.append((message.key, message.attempt, position, *said, outcome.seconds))


def pay(message: StoredMessage | None, payment: Payment) -> UnknownMessage | None:
    """Note that the sender hears of deliveries, or will not; an error where that is not owed any more."""
    if message is None:
        return unknown_message(payment.queue_id)
    paid = set(message.owed)
    if payment.recipients is not None:
        paid &= {position for address in payment.recipients for position in message.positions(address)}
    if not paid:
        return UnknownMessage(f"no notice is pending about the deliveries of {payment.queue_id}")
    message.owed -= paid
    message.paid += sorted(paid)
    message.conclude()
    return None


def assign(message: StoredMessage, assignment: Assignment) -> None:
    """Give recipients of a part another destination; a part whose recipients all left is gone."""
    part = next((part for part in message.parts if part.number == assignment.part), None)
    if part is None:
        return
    left = set(message.left_in(part))
    for planned in assignment.parts:
        moved = [place for place in (planned.positions or sorted(left)) if place in left]
        left.difference_update(moved)
        if not moved:
            continue
        new = part if not left else message.split(part, moved)
        new.destination, new.changed = storable(planned.destination), True
        if new is part and part.positions is not None:
            part.positions = moved
        if new.state is MessageState.ACTIVE:
            new.turn = planned.turn
        elif new.state is MessageState.DEFERRED:
            # It may be on its way before its time, which was that of the destination that it had.
            new.turn = min(new.turn, planned.turn)
        if new is not part:
            part.positions, part.changed = sorted(left), True
    message.conclude()


def change(message: StoredMessage | None, wish: OperatorChange) -> SpoolError | None:
    """Do what an operator wants, or say why not."""
    if message is None:
        return unknown_message(wish.queue_id)
    if wish.action is OperatorAction.DELETE:
        message.gone = True
        return None
    if wish.action is OperatorAction.HOLD:
        message.hold_reason = storable(wish.reason or _reason_kept(message))
        for part in message.parts:
            part.state, part.changed = MessageState.HOLD, True
            part.hold, part.held_at = HoldCause.OPERATOR, None
    elif wish.action is OperatorAction.RETRY and message.state is MessageState.HOLD:
        return MessageOnHold(f"message {wish.queue_id} is on hold; release it instead")
    else:
        _make_due(message, wish)
    message.conclude()
    return None


def _reason_kept(message: StoredMessage) -> str:
    # The hold has no end now; what a policy or a delivery said of the message still tells why.
    kept = message.hold_reason if message.state is MessageState.HOLD else None
    return kept or _HELD_BY_OPERATOR


def _make_due(message: StoredMessage, wish: OperatorChange) -> None:
    released = wish.action is OperatorAction.RELEASE
    for part in message.parts:
        if (part.state is MessageState.HOLD) == released:
            part.turn, part.changed = wish.at, True
            if released:
                part.state = MessageState.ACTIVE
                part.hold, part.held_at = HoldCause.OPERATOR, None
            wish.woken.add(part.destination)
            message.next_attempt_at = wish.at
