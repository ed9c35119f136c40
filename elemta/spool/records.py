"""The values that the spool takes and gives."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elemta.address import Address
from elemta.envelope import Client, Envelope, MailParameters, Recipient
from elemta.fast_enum import FastEnum
from elemta.history.events import VerdictNote
from elemta.message.summary import NO_SUMMARY, HeaderSummary
from elemta.outcome import Outcome
from elemta.value_type import value_type

_KIB = 1024
_MIB = 1024 * _KIB


class MessageState(FastEnum):
    """Where a queued message stands.

    ACTIVE: to be delivered as soon as possible. DEFERRED: an attempt failed for now, the next has a
    time. HOLD: kept, visible, and not delivered until an operator releases it. Delivery knows these three.

    Operators see two kinds of HOLD as states of their own. QUARANTINE: a policy's verdict put it there.
    UNDELIVERABLE: it failed, and its sender is <>, so that nothing is left to be done about it.
    """

    ACTIVE = "active"
    DEFERRED = "deferred"
    HOLD = "hold"
    QUARANTINE = "quarantine"
    UNDELIVERABLE = "undeliverable"


class HoldCause(enum.Enum):
    """What put a part on hold, which decides how that ends.

    OPERATOR: an operator, or an unknown cause; it has no end. All else is what others can bring about, so
    it ends ``expire`` after it began. ROUTE (a route or a policy says so) and FAULT (something here went
    wrong): the sender gets a notice then. UNDELIVERABLE (it failed, and the sender is <>), QUARANTINE (a
    policy's verdict) and UNREADABLE (the sender got a notice before): it is removed.
    """

    OPERATOR = 0
    UNDELIVERABLE = 1
    QUARANTINE = 2
    UNREADABLE = 3
    ROUTE = 4
    FAULT = 5

    @property
    def has_end(self) -> bool:
        """Whether the hold ends by itself."""
        return self is not HoldCause.OPERATOR

    @property
    def tells_sender(self) -> bool:
        """Whether the sender hears of it when the hold ends."""
        return self in (HoldCause.ROUTE, HoldCause.FAULT)


def state_on_hold(causes: Sequence[HoldCause]) -> MessageState:
    """How operators see a message on hold, by what put each of its parts there."""
    if HoldCause.QUARANTINE in causes:
        return MessageState.QUARANTINE
    if causes and all(cause is HoldCause.UNDELIVERABLE for cause in causes):
        return MessageState.UNDELIVERABLE
    return MessageState.HOLD


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """Where the spool lives and what it may use. Sizes are bytes, times seconds.

    ``partition`` is the part of the directory that this process owns alone; ``node`` and ``how`` tell others
    its owner, and how it came to it. Below ``minimum_free`` there is no space for mail. Bodies up to
    ``inline_limit`` live in memory, then in the database; larger ones stream to a file. A writer is congested
    beyond ``congestion`` unwritten bytes; all writers together keep to ``memory``. One transaction takes at
    most ``batch_operations`` and ``batch_bytes``. Up to ``recent`` bytes of small messages stay in memory
    until a first attempt. ``history`` is the number of attempts kept for a message. ``reserve`` is kept aside
    for emptying the queue of a full disk; half of it bounds the database's log. What became of messages is
    kept for ``keep_history`` after their end; with 0 what was kept goes, None leaves it alone.
    """

    directory: Path
    partition: int = 0
    node: str = ""
    how: str = ""
    minimum_free: int = 256 * _MIB
    inline_limit: int = 64 * _KIB
    congestion: int = _MIB
    memory: int = 64 * _MIB
    recent: int = 8 * _MIB
    batch_operations: int = 1000
    batch_bytes: int = 16 * _MIB
    history: int = 50
    keep_history: float | None = None
    reserve: int = 16 * _MIB
    file_threads: int = 4
    refresh: float = 5.0
    first_reopen: float = 0.1
    longest_reopen: float = 30.0


@value_type
class Submission:
    """What the spool needs beside the body to take responsibility for a message.

    ``header_block`` are the fields put in front of the body (trace and added fields, each ending in
    CRLF); ``received_at`` is seconds since the epoch. With a ``hold_reason`` the message goes to HOLD;
    ``hold`` says what put it there. ``summary`` is what names the message for people, ``verdicts`` what
    policies said of it.
    """

    sender: Address
    recipients: tuple[Recipient, ...]
    parameters: MailParameters
    client: Client
    header_block: bytes
    received_at: float
    hold_reason: str | None = None
    hold: HoldCause = HoldCause.OPERATOR
    summary: HeaderSummary = NO_SUMMARY
    verdicts: tuple[VerdictNote, ...] = ()


@value_type
class PlannedPart:
    """Recipients of one message that go one way.

    ``destination`` names the way; ``turn`` is the part's place in its line, counted like seconds since the
    epoch; ``positions`` those of its recipients in the envelope, None for all of them.
    """

    destination: str
    turn: float
    positions: tuple[int, ...] | None = None


Plan = Callable[[Submission], Sequence[PlannedPart]]


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message, or that part of it which goes one way, as delivery sees it.

    ``pending`` are the recipients that still need an attempt, some of ``envelope.recipients``;
    ``attempts`` how many were made. ``next_attempt_at`` is seconds since the epoch; of an active part it is
    the place in the line of its ``destination``. ``part`` is the part's number; ``warned`` says that the
    sender got a notice of the delay.
    """

    envelope: Envelope
    state: MessageState
    attempts: int
    pending: tuple[Recipient, ...]
    next_attempt_at: float
    hold_reason: str | None = None
    part: int = 0
    destination: str = ""
    warned: bool = False
    #: What names the part: its message's queue id and its number.
    key: tuple[str, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.envelope.queue_id, self.part))

    @property
    def queue_id(self) -> str:
        return self.envelope.queue_id


@dataclass(frozen=True, slots=True)
class HeldPart:
    """A part on hold, what put it there, and when; seconds since the epoch."""

    message: QueuedMessage
    hold: HoldCause
    held_at: float


@dataclass(frozen=True, slots=True)
class DestinationDue:
    """What is due in a destination: some parts in their order, and when more will be (None: nothing else
    waits)."""

    destination: str
    messages: tuple[QueuedMessage, ...]
    next_due: float | None


@dataclass(frozen=True, slots=True)
class DestinationMail:
    """The mail that waits for a destination: how many messages, whether some were never tried, when the
    oldest came in, when the first of the others is due (None: there is none), and the words of the last
    outcome of one of these."""

    name: str
    messages: int
    active: bool
    oldest_at: float
    due: float | None
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class ArrivalPage:
    """A page of a walk through the queue in the order of arrival.

    ``after`` is the place to go on behind, ``more`` whether there is something to go on with now.
    """

    messages: tuple[QueuedMessage, ...]
    after: int
    more: bool


@dataclass(frozen=True, slots=True)
class RecipientRecord:
    """One recipient and the last ``outcome``, which is None before the first attempt.

    ``pending`` says whether it still needs an attempt: a failed recipient of a held message does;
    ``owed`` that the sender has still to hear of the delivery.
    """

    recipient: Recipient
    pending: bool
    outcome: Outcome | None = None
    owed: bool = False


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part as the spool has it.

    ``turn`` is as in :class:`QueuedMessage`; ``positions`` are its recipients' in the envelope, None for all
    of them; ``reason`` are the words of the last outcome of one of them that is not done, if there is any.
    """

    number: int
    destination: str
    state: MessageState
    turn: float
    hold: HoldCause = HoldCause.OPERATOR
    positions: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PartView:
    """A part as operators see it.

    ``reason`` says why it waits or is held. ``next_attempt_at`` is None where no attempt is planned: on hold,
    or until an operator says so.
    """

    number: int
    destination: str
    state: MessageState
    next_attempt_at: float | None
    reason: str
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """A line of the queue listing. ``size`` is octets as sent on; times are seconds since the epoch.

    ``state`` is as operators see it, and so are ``next_attempt_at``, ``reason`` and ``destination``, which
    are those of the part that says how the message stands. ``recipient`` is one that is not done: of those
    that a filter chose, if there is one.
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
    hold_reason: str | None = None
    recipient: Address | None = None
    destination: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of the listing; ``after`` is the queue id to go on behind, None at the end.

    A page of a filter may be short or empty with more behind it: each looks at so many messages at most.
    """

    messages: tuple[MessageSummary, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """Everything that the spool knows about a message but its content.

    ``history`` are the outcomes of its attempts, the oldest first, each with the number of the attempt.
    ``stored`` are its parts, and ``parts`` the same as operators see them; so is ``state``, while that of
    ``message`` is as delivery sees it.
    """

    message: QueuedMessage
    recipients: tuple[RecipientRecord, ...]
    history: tuple[tuple[int, Outcome], ...]
    in_file: bool
    stored: tuple[StoredPart, ...] = ()
    parts: tuple[PartView, ...] = ()
    state: MessageState = MessageState.HOLD

    @property
    def envelope(self) -> Envelope:
        return self.message.envelope

    @property
    def queue_id(self) -> str:
        return self.message.queue_id


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """The queue in numbers: messages and octets by state as operators see it, free bytes on the disk, and
    whether the disk can be trusted right now. ``oldest_age`` is the age in seconds of the oldest message that
    is no undeliverable notice (0.0: there is none). ``undeliverable`` is the space that undeliverable notices
    on hold take, in octets."""

    messages: Mapping[MessageState, int]
    octets: Mapping[MessageState, int]
    oldest_age: float
    free: int
    healthy: bool
    undeliverable: int = 0

    @property
    def total(self) -> int:
        return sum(self.messages.values())

    @property
    def total_octets(self) -> int:
        return sum(self.octets.values())
